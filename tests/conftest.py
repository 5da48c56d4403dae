"""Shared fixtures. Real data is looked for beside the repository; see `data_folder`."""

import os
from pathlib import Path

from keras_vgg import hardware

hardware.prepare_environment()  # before TensorFlow is imported

import keras  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("KERAS_VGG_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; KERAS_VGG_DATA names another folder")
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _fresh_keras():
    yield
    keras.backend.clear_session()


@pytest.fixture
def offline_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current folder, without a network: where a page's code is run."""
    from keras_vgg.weights import download

    def offline(checkpoint):
        raise ConnectionError(f"no network in a test: {checkpoint.file}")

    monkeypatch.setattr(download, "fetch", offline)
    monkeypatch.chdir(tmp_path)
    return tmp_path
