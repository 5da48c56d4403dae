"""Shared fixtures. Real data is looked for beside the repository; see `data_folder`."""

from __future__ import annotations

import functools
import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keras_vgg import containers, hardware

if TYPE_CHECKING:
    from keras_vgg.run import Run

# The files that take longest, in the fast tests and in the slow ones. A process takes whole files
# (pytest -n 2 --dist loadfile), so they begin first, and the last ones to end are short.
LONGEST = (
    "docs",
    "report_page",
    "tuning",
    "data",
    "export",
    "demo",
    "convert",
    "predict",
    "records",
    "augment",
    "export_answers",
    "explain",
    "models",
    "finetune",
    "cli",
    "fit_transfer",
    "several_labels",
    "survive",
    "fit",
)
LONGEST_SLOW = (
    "notebooks",
    "docs",
    "hosts",
    "survive",
    "gpu_benchmark",
    "distribution",
    "tuning_workers",
    "dense_backends",
    "inference_benchmark",
    "folds",
    "perceptual_packages",
    "distillation",
    "backends",
    "tuning",
    "export_targets",
    "evaluation_benchmark",
    "finetune",
    "style",
    "optimizer",
    "step_state",
    "stylizing",
    "demo",
    "style_network",
    "frozen_jax",
    "uneven",
)
NO_DATA = "no real data at"
CHECK_HDF5 = containers._check_hdf5


def pytest_collection(session: pytest.Session) -> None:
    """Import the frameworks, before a test's file does; pytest -n 2 itself runs no test."""
    if session.config.pluginmanager.has_plugin("dsession"):
        return
    hardware.prepare_environment()
    import sklearn.datasets  # noqa: F401

    import keras_vgg.export
    import keras_vgg.fit
    import keras_vgg.models  # noqa: F401

    # What the imports made stays: no collection, of which there is one after every file, looks at
    # it. Building networks makes so many objects that Python's own thresholds cost an eighth of a
    # training.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cases = Counter()
    for item in items:
        fast = item.get_closest_marker("fast_cases")
        if fast and not item.get_closest_marker("slow"):
            assert len(fast.args) == 1, item.nodeid
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] > fast.args[0]:
                item.add_marker(pytest.mark.slow)
    longest = LONGEST_SLOW if config.option.markexpr == "slow" else LONGEST
    first = {f"test_{name}.py": place for place, name in enumerate(longest)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were left out for want of real data."""
    skipped = terminalreporter.stats.get("skipped", ())
    count = sum(NO_DATA in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(
            f"{count} tests were left out: there is {NO_DATA} ../shared/data"
        )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One epoch of digits, trained once in a process; a test that writes copies it."""
    from keras_vgg.fit import fit
    from tests.test_fit import TINY

    return fit(TINY.replace(epochs=1), tmp_path_factory.mktemp("tiny") / "run", verbose=0)


@pytest.fixture(scope="session")
def varied_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run like `tiny_run` whose answers differ from image to image; a test that writes copies it.

    Its network has random weights, and scores of deviation 2.
    """
    import keras
    import numpy as np
    from sklearn.datasets import load_digits

    from keras_vgg.models import vgg
    from keras_vgg.run import Run

    folder = tmp_path_factory.mktemp("varied") / "run"
    run = Run.open(shutil.copytree(tiny_run.directory, folder))
    keras.utils.set_random_seed(0)
    model = vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=10,
        width_multiplier=1 / 16,
        hidden_units=8,
        classifier_activation=None,
        kernel_initializer="he_normal",
        include_preprocessing=True,
    )
    images = load_digits().images[:64, :, :, None] * np.ones(3) * 255 / 16
    scores = model(keras.ops.image.resize(images, (32, 32)))
    last: Any = model.layers[-1]
    centred = keras.ops.std(scores, axis=0)
    last.kernel.assign(2 * last.kernel / centred)
    last.bias.assign(-2 * keras.ops.mean(scores, axis=0) / centred)
    last.activation = keras.activations.softmax
    model.save(run.model_path)
    return run


@pytest.fixture(autouse=True, scope="session")
def _one_thread_count() -> Iterator[None]:
    """An export is measured in one process instead of two; a test of the times sets it back."""
    from keras_vgg.export import verify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "THREADS", (2,))
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_files_are_sound() -> Iterator[None]:
    """No process checks the HDF5 files that tests write: it takes 0.2 s each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "_check_hdf5", lambda path, member, state: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _measured_once() -> Iterator[None]:
    """The images in memory of a training, the digits, are measured once: it takes 0.2 s."""
    from keras_vgg import data

    statistics, known = data.statistics, {}

    @functools.wraps(statistics)
    def kept(split: data.Split, *arguments: Any, **options: Any) -> data.ChannelStatistics:
        if split.images is None or arguments or options:
            return statistics(split, *arguments, **options)
        digest = split.fingerprint()
        if digest not in known:
            known[digest] = statistics(split)
        return known[digest]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "statistics", kept)
        yield


@pytest.fixture(autouse=True, scope="session")
def measured_images() -> Iterator[int]:
    """A kept network is tested on 32 training images at the end: 1,000 take 1 s.

    The fixture is the number outside of tests.
    """
    from keras_vgg.fit import outcome

    before = outcome._MEASURED_IMAGES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "_MEASURED_IMAGES", 32)
        yield before


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_VGG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def blank_plots() -> Iterator[None]:
    """The plots of runs and of reports have no picture, which takes 0.4 s each time."""
    from matplotlib.figure import Figure

    def blank(figure: Figure, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"blank")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", blank)
        patch.setattr("keras_vgg.report.page.to_svg", lambda *_: "<svg/>")
        yield


@pytest.fixture
def hdf5_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process checks HDF5 files, as it does outside the tests."""
    monkeypatch.setattr(containers, "_check_hdf5", CHECK_HDF5)


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("KERAS_VGG_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"{NO_DATA} {folder}; KERAS_VGG_DATA names another folder")
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    """Seed all generators but TensorFlow's own, from which no test and no function draws.

    To seed that one, TensorFlow throws away all compiled functions: 0.2 s more for a test.
    """
    import keras
    import tensorflow as tf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.random, "set_seed", lambda seed: None)
        keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _fresh_keras() -> Iterator[None]:
    """Free the networks of a file. What is left after it stays: no later collection looks at it."""
    import keras

    yield
    keras.backend.clear_session()
    gc.freeze()


@pytest.fixture
def offline_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current folder, without a network: where a page's code is run."""
    from keras_vgg.weights import download

    def offline(checkpoint):
        raise ConnectionError(f"no network in a test: {checkpoint.file}")

    monkeypatch.setattr(download, "fetch", offline)
    monkeypatch.chdir(tmp_path)
    return tmp_path
