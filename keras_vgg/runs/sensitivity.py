"""How sensitive a run's network is to the loss of filters, kept layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.console import progress_bars
from keras_vgg.export import prune
from keras_vgg.files import sha256_of, write_json
from keras_vgg.fit import evaluation_transform
from keras_vgg.run import Run, read_fields
from keras_vgg.runs.images import as_arrays, open_split

if TYPE_CHECKING:
    import keras


def sensitivity_file(workdir: Path, number: int) -> Path:
    """Return where the sensitivity of a pruning's step is kept until the step has its filters."""
    return workdir / f"step-{number}.sensitivity.json"


def run_sensitivities(
    run: Run, model: keras.Model, criterion: str, count: int, file: Path, verbose: int | str
) -> list[prune.Sensitivity]:
    """Return the sensitivity of each layer of a run's network, as `prune.sensitivities` does.

    Each layer is written into a file as soon as it is measured. A layer that the file already has
    of the same network, criterion and number of images is not measured again.

    Args:
        model: The run's network.
        criterion: As in `prune.importance`.
        count: At most so many training images give the importance, and validation images the
            sensitivity; evenly spread.
        file: The file, which need not exist.
        verbose: As in `keras_vgg.train`.

    Raises:
        ValueError, OSError: as `open_split`, `prune.importance` and `prune.sensitivities`; the file
            is damaged.
    """
    transform = evaluation_transform(run.recipe)
    identity = {
        "model_sha256": sha256_of(run.model_path),
        "criterion": criterion,
        "images": count,
    }
    record: dict[str, Any] = read_fields(file) if file.is_file() else {}
    if any(record.get(name) != value for name, value in identity.items()):
        images, labels = as_arrays(open_split(run, "train").spread(count), transform)
        scores = prune.importance(model, criterion, images, labels)
        record = {**identity, "scores": {n: s.tolist() for n, s in scores.items()}, "layers": {}}
        write_json(file, record)
    scores = {name: np.asarray(values) for name, values in record["scores"].items()}
    measured = {
        name: prune.Sensitivity(
            name, prune.order_of(scores[name]), tuple(kept["removed"]), tuple(kept["divergences"])
        )
        for name, kept in record["layers"].items()
    }
    pictures, _ = as_arrays(open_split(run, "validation").spread(count), transform)
    with progress_bars(verbose not in (0, 2)) as bars:
        task = bars.add_task("sensitivity, layers", total=len(scores), completed=len(measured))

        def keep(layer: prune.Sensitivity) -> None:
            record["layers"][layer.layer] = as_fields(layer)
            write_json(file, record)
            bars.advance(task)

        return prune.sensitivities(
            model, scores, pictures, keep, several_labels=run.several_labels, measured=measured
        )


def as_fields(layer: prune.Sensitivity) -> dict[str, Any]:
    """Return what a JSON file keeps of a layer's sensitivity."""
    return {"removed": layer.removed, "divergences": layer.divergences}
