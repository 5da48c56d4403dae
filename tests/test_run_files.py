"""A damaged file of a run is one line that names it, and nothing else of the run is lost."""

import io
import re
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import cli
from keras_vgg.fit import Run
from keras_vgg.run import claim, read_fields
from keras_vgg.runs import cross_validate, run_of
from keras_vgg.tuning import search

NOT_FIELDS = {
    "list": "[]",
    "null": "null",
    "number": "3",
    "empty": "",
    "deep": "[" * 100_000,
    "bytes": "\udcff",
}


@pytest.fixture
def run(tiny_run, tmp_path):
    return Run.open(shutil.copytree(tiny_run.directory, tmp_path / "run"))


@pytest.fixture
def digit(tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(path)
    return path


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(capsys, run, name, *arguments):
    """The one line of a command that fails; the run's files are as they were."""
    before = contents(run.directory)
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert (status, err.count("\n")) == (cli.BAD_INPUT, 1), err
    assert str(run.directory / name) in err
    after = contents(run.directory)
    assert {p: after[p] for p in before} == before
    return err


def test_a_run_in_the_home_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert Run.open("~/run").directory == run.directory
    for name in ("~/run", "~/run/model.keras"):
        opened = run_of(name)
        assert opened is not None
        assert opened.directory == run.directory
    with claim("~/run", run.recipe) as (claimed, is_new):
        assert (claimed.directory, is_new) == (run.directory, False)
    assert run_of("~/nowhere") is None
    nowhere = re.escape(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=f"{nowhere} is not a run directory"):
        Run.open("~/nowhere")
    # A folder that is called ~ is found, too: a shell leaves --workdir=~/run as it is.
    shutil.copytree(run.directory, tmp_path / "empty" / "~" / "run")
    assert Run.open("~/run").directory.resolve() == tmp_path / "empty" / "~" / "run"


def test_a_new_run_in_the_home_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with claim("~/new", run.recipe) as (claimed, is_new):
        assert (claimed.directory, is_new) == (tmp_path / "new", True)
    with pytest.raises(ValueError, match="holds a run without folds"):
        cross_validate(run.recipe.replace(folds=2), "~/run")
    with pytest.raises(ValueError, match="exists and is not a search"):
        search(run.recipe, "~/run", tuner="grid")
    command = cli._with_home(cli._parse("train", ["--workdir=~/new"]))
    assert command.workdir == tmp_path / "new"
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("text", NOT_FIELDS.values(), ids=NOT_FIELDS)
def test_json_that_holds_no_fields(text, tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"data\.json cannot be read: it"):
        read_fields(path)


@pytest.mark.parametrize(
    ("name", "text", "commands"),
    [
        ("recipe.json", "3", ("evaluate", "predict", "export", "report", "explain")),
        ("recipe.json", '{"epochs": 0}', ("evaluate",)),
        ("data.json", "{}", ("evaluate", "predict", "export", "report")),
        ("data.json", "[]", ("predict", "report")),
        ("data.json", '{"class_names": [3], "splits": {}}', ("predict", "report")),
        ("data.json", '{"class_names": "abc", "splits": {}}', ("predict", "report")),
        ("results.json", "null", ("evaluate", "report", "train")),
        ("results.json", '{"best_epoch": "last"}', ("evaluate", "report")),
        ("results.json", '{"test": {"top1": 0.5}}', ("report",)),
        ("environment.json", "3", ("report",)),
        ("metrics.csv", "epoch,loss\n1," + "9" * 200_000 + "\n", ("report",)),
        ("metrics.csv", "epoch,loss\n1,2,3,4\n", ("report",)),
        ("metrics.csv", "epoch,loss\none,2\n", ("report",)),
    ],
)
def test_a_damaged_file_is_named(run, digit, capsys, name, text, commands):
    (run.directory / name).write_text(text)
    arguments = {
        "predict": ("predict", run.directory, digit),
        "explain": ("explain", run.directory, digit),
        "evaluate": ("evaluate", run.directory, "--split", "validation"),
        "train": ("train", run.directory / "recipe.json", "--workdir", run.directory),
    }
    for command in commands:
        refused(capsys, run, name, *arguments.get(command, (command, run.directory)))


def flipped(content):
    changed = bytearray(content)
    for place in range(100, len(changed), len(changed) // 50):
        changed[place] ^= 255
    return bytes(changed)


def empty_zip(_):
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return file.getvalue()


def foreign_class(content):
    """A class of another package, whose code would be run if it were imported."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "config.json":
                text = text.replace(b'"Functional"', b'"Popen"').replace(
                    b'"keras.src.models.functional"', b'"subprocess"'
                )
            new.writestr(name, text)
    return file.getvalue()


@pytest.mark.parametrize("damage", [flipped, empty_zip, foreign_class, lambda _: b"", bytes.upper])
def test_a_damaged_model_is_named(run, digit, capsys, damage):
    path = run.model_path
    path.write_bytes(damage(path.read_bytes()))
    for arguments in (("predict", run.directory, digit), ("export", run.directory)):
        refused(capsys, run, "model.keras", *arguments)


def test_a_missing_model_is_said_to_be_missing(run, digit, capsys):
    run.model_path.unlink()
    text = f"{run.model_path} is missing: copy it back, or train in another workdir"
    assert text in refused(capsys, run, "", "predict", run.directory, digit)
    recipe = run.directory / "recipe.json"
    assert text in refused(capsys, run, "", "train", recipe, "--workdir", run.directory)


def test_an_archive_of_something_else_is_no_model(run, monkeypatch):
    assert isinstance(run.model(), keras.Model)
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: keras.layers.Dense(2))
    with pytest.raises(ValueError, match=r"model\.keras is damaged: it holds a Dense"):
        run.model()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_a_model_that_memory_does_not_hold_is_not_called_damaged(run, monkeypatch, error):
    def exhausted(*_, **__):
        raise error

    monkeypatch.setattr(keras.saving, "load_model", exhausted)
    with pytest.raises(MemoryError, match=r"memory is too small to read .*model\.keras \("):
        run.model()
