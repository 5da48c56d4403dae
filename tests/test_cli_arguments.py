"""Arguments that are swapped, given twice, or contradict each other get one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from keras_vgg import cli
from keras_vgg.cli.arguments import is_model
from keras_vgg.cli.convert import Convert
from keras_vgg.cli.rows import require_no_input, row_format


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of photographs, two runs, a cross-validation, a LiteRT file and a weight file."""
    monkeypatch.chdir(tmp_path)
    for run in ("run", "other", "cv/fold-1"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    for name in ("photos/a.png", "model.tflite", "weights.h5"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict photos run", "the model comes first: keras-vgg predict run photos"),
        ("predict photos/a.png model.tflite", "keras-vgg predict model.tflite photos/a.png"),
        ("predict run other photos", "other is a model and not an image: predict takes one model"),
        ("predict run run", "predict takes one model, here run, and then images"),
        ("explain photos/a.png run", "the model comes first: keras-vgg explain run photos/a.png"),
        ("explain run other", "explain takes one model, here run"),
        ("evaluate run run", "run is given twice; name each run once"),
        ("evaluate run photos", "keras-vgg evaluate run --source folder:photos"),
        ("evaluate nowhere", "nowhere is not a run directory: it does not exist"),
        ("evaluate", "evaluate needs at least one run directory"),
        ("report run ./run", "run is given twice"),
        ("report photos", "photos is not a run directory: it has no recipe.json"),
        ("report run cv", "cv holds the runs of a cross-validation: name one of them, such as "),
        ("calibrate cv", "such as cv/fold-1; `keras-vgg evaluate cv` shows the figures of all"),
        ("report run --out page.pdf", "--out page.pdf must end in .html"),
        ("data check folder:photos --report a.csv", "--report a.csv must end in .json"),
        ("data show digits --out a.jpg", "--out a.jpg must end in .png"),
        ("summary D --plot a.svg", "--plot a.svg must end in .png"),
        ("convert weights.h5 a.keras --naming timm", "--naming timm is for .safetensors and .pth"),
        ("train photos --workdir x", "keras-vgg train --source folder:photos --workdir RUN"),
        ("train csv:a.csv --workdir x", "csv:a.csv is no recipe; to train on these images:"),
        ("finetune run", "run is a run, and finetune takes a folder of photographs"),
        ("calibrate run other", "calibrate takes no argument 'other' after the others"),
        ("summary D E", "summary takes no argument 'E' after the others"),
        ("convert new.h5 weights.h5", "keras-vgg convert weights.h5 new.h5"),
        ("data pack packed folder:photos", "keras-vgg data pack folder:photos packed"),
        ("data pack folder:photos folder:photos", "keras-vgg data pack folder:photos OUT"),
        ("data pack packed digits", "keras-vgg data pack digits packed"),
    ],
)
def test_the_right_order_is_one_line(
    folder: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments.split()) == cli.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_a_push_names_the_run_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", "owner/name", "run"]) == cli.BAD_INPUT
    assert "the run comes first: keras-vgg push run owner/name" in capsys.readouterr().err


def test_a_repository_is_a_source_of_a_conversion(folder: Path) -> None:
    Convert(Path("hf://owner/name"), Path("weights.h5"), overwrite=True).check()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("run", True), ("model.tflite", True), ("photos", False), ("none.keras", False)],
)
def test_what_a_model_is(folder: Path, path: str, expected: bool) -> None:
    assert is_model(folder / path) is expected


def test_an_annotation_of_a_photograph_is_no_model(folder: Path) -> None:
    annotation = folder / "photos" / "a.xml"
    annotation.write_text("<annotation/>")
    assert not is_model(annotation)
    annotation.with_suffix(".bin").write_bytes(b"weights")
    assert is_model(annotation)


@pytest.mark.parametrize(
    ("format", "name", "message"),
    [
        ("csv", "a.jsonl", "--format csv and --out .*a.jsonl disagree: .* ends in .csv, or leave"),
        ("jsonl", "a.CSV", "--format jsonl and --out .* ends in .jsonl, or leave out --format"),
        ("csv", "a.tsv", "--format csv and --out .*a.tsv disagree: name a file that ends in .csv$"),
        ("jsonl", "a.json", "disagree"),
        ("table", "a.csv", "--format table is printed, and not written into a file"),
        (None, "a.xlsx", "needs --format csv or --format jsonl"),
        (None, "a.tsv", "needs --format csv or --format jsonl"),
    ],
)
def test_a_format_and_a_name_that_disagree(tmp_path: Path, format, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_format(format, tmp_path / name)


@pytest.mark.parametrize(
    ("format", "name", "expected"),
    [
        (None, "a.csv", "csv"),
        (None, "a.ndjson", "jsonl"),
        ("csv", "a.txt", "csv"),
        ("jsonl", "a", "jsonl"),
        ("jsonl", "a.jsonl", "jsonl"),
    ],
)
def test_a_name_decides_the_format(tmp_path: Path, format, name: str, expected: str) -> None:
    assert row_format(format, tmp_path / name) == expected


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("predict run list.csv --out list.csv", "--out list.csv"),
        ("predict run l*.csv --out ./list.csv", "--out list.csv"),
        ("predict run photos --classes list.csv --out list.csv", "--out list.csv"),
        ("compare photos list.csv --out list.csv", "--out list.csv"),
        ("search photos list.csv --out list.csv", "--out list.csv"),
        ("search run photos/a.png --picture photos/a.png", "--picture photos/a.png"),
        ("predict run photos --format csv --out photos/a.png", "--out photos/a.png"),
        ("predict run list.csv --format csv --out photos/a.png", "--out photos/a.png"),
        ("compare photos photos --format csv --out photos/a.png", "--out photos/a.png"),
    ],
)
def test_an_output_is_no_input(
    folder: Path, command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "list.csv").write_text("path\nphotos/a.png\n")
    assert cli.main(command.split()) == cli.BAD_INPUT
    expected = f"{option} would replace a file that the command reads: name another file"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["photos/a.png", "photos/found.png"])
def test_a_picture_of_what_was_found_is_not_in_the_folder_to_search(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", "photos", "list.csv", "--picture", name]) == cli.BAD_INPUT
    assert f"--picture {name} is inside the folder to search" in capsys.readouterr().err


def test_an_earlier_output_may_be_replaced(folder: Path) -> None:
    for name in ("photos/answers.csv", "answers.csv"):
        (folder / name).write_text("")
        require_no_input("--out", folder / name, [folder / "photos", folder / "photos/a.png"])


@pytest.mark.parametrize("command", ["predict run photos", "compare photos photos"])
def test_every_command_with_rows_looks_at_the_name(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command.split(), "--format", "csv", "--out", "a.jsonl"]) == cli.BAD_INPUT
    assert "--format csv and --out a.jsonl disagree" in capsys.readouterr().err
