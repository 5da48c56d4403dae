"""Push a run to the Hugging Face hub, with a model card."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from keras_vgg import __version__, architecture
from keras_vgg.containers import open_archive
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run

# The members of a .keras archive: as a folder, they are how Keras saves a network on the hub.
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")


def push_run(run: Run, repository: str, *, private: bool = False) -> str:
    """Upload a run's best model to a repository of the Hugging Face hub, with a model card.

    The repository gets the model as Keras saves models there, so `keras.saving.load_model`,
    `vgg(weights=...)` and `--init` take hf://OWNER/NAME; and `README.md`, the card, with the
    network, the recipe, the data and the figures of `results.json`; and `recipe.json`,
    `results.json` and `class_names.json`. Folders of this machine are left out of these. A
    repository that does not exist is made. The hub client has its login (`hf auth login`, or
    HF_TOKEN).

    Args:
        run: A finished run.
        repository: OWNER/NAME.
        private: Make a new repository private.

    Returns:
        The repository's address.

    Raises:
        ValueError: the run has not finished training, a file of the run is damaged, or
            `repository` is not OWNER/NAME, or holds a model.keras. Nothing is uploaded.
        FileNotFoundError: the run's model is missing.
        OSError: the hub refuses the upload, or cannot be reached.
    """
    repository = repository.removeprefix("hf://")
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ValueError(f"the repository must be OWNER/NAME, not {repository!r}") from error
    if repository.count("/") != 1:
        raise ValueError(f"the repository must be OWNER/NAME, not {repository!r}")
    run.require_finished()
    run.require_sound_model()
    with tempfile.TemporaryDirectory() as folder:
        _write_files(run, repository, Path(folder))
        api = huggingface_hub.HfApi(library_name="keras_vgg", library_version=__version__)
        try:
            api.create_repo(repository, private=private or None, exist_ok=True)
            has_other_network = api.file_exists(repository, "model.keras")
            if not has_other_network:
                api.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    commit_message=f"Push a run of keras_vgg {__version__}",
                )
        # The errors of the system, httpx and Xet have no narrower class in common.
        except Exception as error:
            raise _refusal(run, repository, error) from error
    if has_other_network:
        raise ValueError(
            f"hf://{repository} holds model.keras, which would be loaded in place of this run: "
            "remove it there, or name another repository"
        )
    return f"{api.endpoint}/{repository}"


def _refusal(run: Run, repository: str, error: Exception) -> OSError:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    reason = str(cause).partition("\n")[0] or type(cause).__name__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    remedy = ""
    if status in (401, 403):
        remedy = ". Log in with a token that may write there: hf auth login, or HF_TOKEN"
    return OSError(f"{run.directory} could not be pushed to hf://{repository}: {reason}{remedy}")


# What a card states; first of one label an image, then of several.
_FIGURES = ("top-1 accuracy", "mean average precision")
_SELECTED_BY = {
    "accuracy": "the accuracy",
    "balanced_accuracy": "the balanced accuracy",
    "pr_auc": "the area under the precision-recall curves",
}


def _write_files(run: Run, repository: str, folder: Path) -> None:
    with open_archive(run.model_path) as archive:
        missing = [name for name in _MEMBERS if name not in archive.namelist()]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")  # `open_archive` names the file
        for name in _MEMBERS:
            archive.extract(name, folder)
    recipe = run.recipe.without_folders()
    documents = {
        "recipe.json": dataclasses.asdict(recipe),
        "results.json": _own_results(run),
        "class_names.json": run.class_names,
    }
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(run, repository), encoding="utf-8")


def _own_results(run: Run) -> dict[str, Any]:
    """Return the results without those on other sets, whose folders are of this machine."""
    return {
        name: value
        for name, value in run.results.items()
        if not (isinstance(value, Mapping) and "source" in value)
    }


def model_card(run: Run, repository: str) -> str:
    """Return the model card of a run as Markdown, with the metadata that the hub reads."""
    recipe, results = run.recipe.without_folders(), _own_results(run)
    name = repository.partition("/")[2]
    figures = list(_figures(results))
    several = "validation_pr_auc" in results
    card_data = huggingface_hub.ModelCardData(
        library_name="keras",
        pipeline_tag="image-classification",
        tags=["vgg", "keras_vgg"],
        model_name=name,
        eval_results=[
            huggingface_hub.EvalResult(
                task_type="image-classification",
                dataset_type=recipe.source.partition(":")[0],
                dataset_name=recipe.source,
                dataset_split=split,
                metric_type="mean_average_precision" if several else "accuracy",
                metric_name=f"{_FIGURES[several]}, {protocol}",
                metric_value=round(top1, 4),
            )
            for split, protocol, _, top1, _ in figures
        ],
    )
    return f"---\n{card_data.to_yaml()}\n---\n\n{_body(run, recipe, repository, figures)}"


def _selected_by(run: Run) -> str:
    name = "pr_auc" if run.several_labels else run.recipe.select_by
    share = run.results.get(f"validation_{name}")
    return _SELECTED_BY[name] if share is None else f"{_SELECTED_BY[name]} ({share:.2%})"


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[str, str, int | None, float, Any]]:
    """Yield (split, protocol, images, top-1, top-5) of results.json, accuracies in [0, 1].

    With several labels an image, the mean average precision is in place of top-1.
    """
    several = "validation_pr_auc" in results
    if not several:  # the area under the curves, while training, is no mean average precision
        yield "validation", "while training", None, results["validation_accuracy"], None
    key = "mean_average_precision" if several else "top1"
    for name, figures in results.items():
        if isinstance(figures, Mapping) and isinstance(figures.get(key), float):
            split, _, protocol = name.partition("_")
            yield (
                split,
                protocol.replace("_", " ") or "center",
                figures.get("count"),
                figures[key],
                figures.get("top5"),
            )


def _body(run: Run, recipe: Recipe, repository: str, figures: list[tuple]) -> str:
    network = architecture.describe(
        recipe.configuration, recipe.width_multiplier, recipe.filters, recipe.batch_norm
    )
    classes, side = run.class_names, recipe.image_size
    colours = "grey images (one channel: the luma)" if recipe.color == "grey" else "RGB images"
    splits = run.read_json("data.json")["splits"]
    sizes = ", ".join(f"{values['images']:,} {split}" for split, values in splits.items())
    differences = recipe.differences(Recipe())
    rows = "\n".join(
        f"| {split} | {protocol} | {'' if count is None else format(count, ',')} | {top1:.2%} | "
        f"{'' if top5 is None else format(top5, '.2%')} |"
        for split, protocol, count, top1, top5 in figures
    )
    values = {field: repr(value).replace("|", r"\|") for field, (value, _) in differences.items()}
    fields = "\n".join(f"| {field} | `{value}` |" for field, value in values.items())
    listed = ", ".join(classes[:50]) + (f" and {len(classes) - 50} more" if classes[50:] else "")
    return f"""# {repository.partition("/")[2]}

{network}, head `{recipe.head}`, {run.results["parameters"]:,} parameters: a network of
*Very Deep Convolutional Networks for Large-Scale Image Recognition* (arXiv:1409.1556), trained with
keras_vgg {__version__}. It takes {colours} in [0, 255], {side}x{side}, and gives the probabilities
of {len(classes)} classes. The preprocessing is its first layer.

## Use it

```python
import keras
import keras_vgg.layers  # the layers of the network

model = keras.saving.load_model("hf://{repository}")
```

`keras_vgg.vgg(..., weights="hf://{repository}")` and `keras-vgg train --init hf://{repository}`
load the weights into another network.

## Accuracy

| split | protocol | images | {_FIGURES[run.several_labels]} | top-5 |
|---|---|---|---|---|
{rows}

The best epoch was selected by {_selected_by(run)} on the validation split.

## Data

`{recipe.source}`: {sizes} images. Classes: {listed}.

## Recipe

`recipe.json` holds every field. These differ from the defaults:

| field | value |
|---|---|
{fields}
"""
