"""training/kept_network.py: a run becomes a file in float16, and the file a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors import safe_open
from sklearn.datasets import load_digits

from keras_vgg.fit import Run
from keras_vgg.models import vgg
from keras_vgg.runs import evaluate_run
from tests.test_training import script

pytestmark = pytest.mark.usefixtures("blank_plots")

kept_network = script("kept_network")


@pytest.fixture(scope="module")
def trained(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with batch norm whose network tells the classes apart."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run = Run.open(shutil.copytree(tiny_run.directory, folder))
    keras.utils.set_random_seed(0)
    model = vgg(
        run.recipe.configuration,
        weights=None,
        classes=10,
        **run.recipe.network_options(),
        classifier_activation=None,
        kernel_initializer="he_normal",
        include_preprocessing=True,
    )
    images = load_digits().images[:64, :, :, None] * np.ones(3) * 255 / 16
    scores = model(keras.ops.image.resize(images, (32, 32)))
    last: Any = model.layers[-1]
    last.kernel.assign(2 * last.kernel / keras.ops.std(scores, axis=0))
    last.activation = keras.activations.softmax
    model.save(run.model_path)
    return run


@pytest.fixture(scope="module")
def kept(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("kept") / "net.safetensors"
    kept_network.main(["keep", str(trained.directory), str(file)])
    return file


def test_the_new_run_answers_as_the_first(trained: Run, kept: Path, tmp_path: Path) -> None:
    kept_network.main(["open", str(kept), str(tmp_path / "run"), "--source", "digits"])
    run = Run.open(tmp_path / "run")
    assert run.class_names == trained.class_names
    assert run.recipe.differences(trained.recipe) == {}
    assert run.results["validation_accuracy"] == trained.results["validation_accuracy"]
    # Of 36 images: the test split has 1,438.
    expected, found = (evaluate_run(each, "validation") for each in (trained, run))
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert np.ptp(expected.probabilities) > 0.1  # The network tells the classes apart.
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=5e-3)


def test_the_file_holds_float16_and_no_path(trained: Run, kept: Path) -> None:
    with safe_open(kept, "np") as opened:
        kinds = {opened.get_tensor(name).dtype.name for name in opened.keys()}  # noqa: SIM118
        stated = opened.metadata()
    assert kinds <= {"float16", "int64"}
    assert json.loads(stated["recipe"])["source"] == "folder:DIR"
    assert kept.stat().st_size < 0.6 * 4 * trained.model().count_params()


def test_the_recipe_keeps_names_of_files_and_no_folders(trained: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(trained.directory, tmp_path / "run"))
    paths = {"init": str(tmp_path / "run"), "teachers": (str(tmp_path / "large"),)}
    Run(run.directory, run.recipe.replace(**paths)).write_recipe()
    kept_network.main(["keep", str(run.directory), str(tmp_path / "net.safetensors")])
    with safe_open(tmp_path / "net.safetensors", "np") as opened:
        recipe = json.loads(opened.metadata()["recipe"])
    assert (recipe["init"], recipe["teachers"]) == ("run", ["large"])
    assert str(tmp_path) not in json.dumps(recipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keep", "RUN", "FILE"], "exists; name a new one"),
        (["keep", "RUN", "net.h5"], "must end in .safetensors"),
        (["keep", "nowhere", "net.safetensors"], "nowhere is not a run directory"),
        (["open", "FILE", "RUN", "--source", "digits"], "exists; name a new one"),
        (["open", "nowhere.safetensors", "new", "--source", "digits"], "nowhere.safetensors"),
        (["open", "net.h5", "new", "--source", "digits"], "must end in .safetensors"),
    ],
)
def test_wrong_inputs(
    trained: Run, kept: Path, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(trained.directory), "FILE": str(kept)}
    with pytest.raises(SystemExit, match=message):
        kept_network.main([names.get(word, word) for word in arguments])
    assert not list(tmp_path.iterdir())


def test_what_keep_and_open_would_lose_is_refused(
    trained: Run, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(shutil.copytree(trained.directory, tmp_path / "run"))
    (run.directory / "results.json").unlink()
    with pytest.raises(SystemExit, match="has not finished training"):
        kept_network.main(["keep", str(run.directory), str(tmp_path / "net.safetensors")])

    def full(self: Run, name: str, value: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Run, "write_json", full)
    with pytest.raises(SystemExit, match="no space left"):
        kept_network.main(["open", str(kept), str(tmp_path / "new"), "--source", "digits"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
