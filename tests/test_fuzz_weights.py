"""Damaged weight files: each loads or is refused by one of two errors, and each ends."""

from __future__ import annotations

import faulthandler
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vgg import containers, convert, weights
from tests.test_containers import run_of
from tests.test_fuzz_images import damaged
from tests.test_weights import save_legacy, small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hdf5_process")]

WIDTH = 1 / 64  # small files: the damage hits their structure more often
MOST_SECONDS = 60  # of one file; the process ends then, for HDF5 cannot be interrupted


def network() -> keras.Model:
    return small(width_multiplier=WIDTH, batch_norm=True, include_preprocessing=True)


def converted(model: keras.Model, path: Path) -> None:
    model.save(path.with_suffix(".keras"))
    convert.convert_weights(path.with_suffix(".keras"), path)


def save_pth(model: keras.Model, path: Path) -> None:
    torch = pytest.importorskip("torch")
    from keras_vgg.weights.torch_naming import to_torch

    state = to_torch(weights.tensors_of(model), "torchvision")
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=path.suffix == ".pth")


# name -> (how it is written, number of damaged files); a file with HDF5 takes a process.
FORMATS: dict[str, tuple[Callable[[keras.Model, Path], None], int]] = {
    "a.h5": (save_legacy, 150),
    "a.weights.h5": (keras.Model.save_weights, 120),
    "a.keras": (keras.Model.save, 150),
    "a.safetensors": (converted, 600),
    "a.pth": (save_pth, 400),
    "a.pt": (save_pth, 400),  # PyTorch's format before zip
}


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may take longer than a limit."""
    monkeypatch.setattr(containers, "LEAST_SECONDS", 5)
    yield
    faulthandler.cancel_dump_traceback_later()


def refusal(load: Callable[[], object]) -> str | None:
    """What one of the two errors says, or None; any other error passes, and an endless load ends
    the process."""
    faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
    try:
        with warnings.catch_warnings(action="ignore"):
            load()
    except (ValueError, OSError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("ending")
def test_a_damaged_file_loads_or_is_refused(name: str, tmp_path: Path) -> None:
    write, count = FORMATS[name]
    path = tmp_path / name
    write(network(), path)
    content = path.read_bytes()
    model = network()
    before = model.get_weights()
    random = np.random.default_rng([*name.encode()])
    refused = 0
    for number in range(count):
        path.write_bytes(damaged(content, random))
        reason = refusal(partial(weights.load_weights, model, path))
        if reason is None:
            model.set_weights(before)
            continue
        refused += 1
        assert name in reason, f"file {number}: {reason}"
        assert all(map(np.array_equal, before, model.get_weights())), f"file {number}: {reason}"
    assert 0 < refused < count


@pytest.mark.usefixtures("ending")
def test_a_run_of_a_damaged_model_is_a_model_or_refused(tmp_path: Path) -> None:
    network().save(tmp_path / "a.keras")
    content = (tmp_path / "a.keras").read_bytes()
    run = run_of(tmp_path, tmp_path / "a.keras")
    random = np.random.default_rng(1)
    refused = 0
    for number in range(60):
        run.model_path.write_bytes(damaged(content, random))
        reason = refusal(run.model)
        refused += reason is not None
        assert reason is None or "model.keras" in reason, f"file {number}: {reason}"
    assert 0 < refused < 60
