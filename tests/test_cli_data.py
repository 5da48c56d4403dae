"""keras-vgg data: check, stats, pack and show, as a user types them."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import cli, console, data, recipe_for, runs
from keras_vgg.recipe import Recipe
from tests.test_cli import error_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of four JPEGs."""
    for number in range(8):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (50, 40 + number, 3), np.uint8)
        Image.fromarray(noise).save(path)
    return tmp_path / "photos"


FRACTIONS = ["--validation-fraction", "0.25", "--test-fraction", "0"]


def test_check_of_a_good_set(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = tmp_path / "report.json"
    arguments = ["data", "check", f"folder:{photos}", "--report", str(report), *FRACTIONS]
    assert cli.main(arguments) == cli.OK
    out = capsys.readouterr().out
    assert "JPEG, colour 6" in out
    assert "50 to 50" in out
    assert "\ntrain: a 3, b 3\n" in out
    assert str(report) in out
    found = json.loads(report.read_text())["splits"]
    assert {name: split["images"] for name, split in found.items()} == {"train": 6, "validation": 2}


def test_check_says_what_is_left_out_equal_or_flat(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (photos / "a" / "notes.txt").write_text("words")
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / "set" / part)
    dark = np.linspace(1000, 1200, 80).reshape(8, 10).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "set" / "train" / "b" / "dark.png")
    report = tmp_path / "report.json"
    arguments = ["data", "check", f"folder:{tmp_path / 'set'}", "--report", str(report)]
    assert cli.main([*arguments, "--validation-fraction", "0"]) == cli.OK
    out = " ".join(capsys.readouterr().out.split())
    assert "left out 2: 2 no image (.txt): " in out
    assert "8 test images also in train: " in out
    assert "1 of 1 16-bit files that were looked at use few of their levels" in out
    inventory = json.loads(report.read_text())["inventory"]
    notes = [str(tmp_path / "set" / part / "a" / "notes.txt") for part in ("test", "train")]
    assert inventory["left_out"] == [
        {"reason": "no image (.txt)", "count": 2, "first": notes},
    ]
    (equal,) = inventory["equal"]
    first, *_ = equal.pop("first")
    assert equal == {"earlier": "train", "later": "test", "count": 8}
    assert first == [str(tmp_path / "set" / part / "a" / "0.jpg") for part in ("train", "test")]


def test_check_of_a_damaged_set(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = photos / "a" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:400])
    report = tmp_path / "reports" / "report.json"
    arguments = ["data", "check", f"folder:{photos}", "--report", str(report)]
    assert cli.main([*arguments, "--validation-fraction", "0", "--test-fraction", "0"]) == 2
    captured = capsys.readouterr()
    assert f"1 image of folder:{photos} cannot be decoded: {bad}" in captured.err
    ((name, reason),) = json.loads(report.read_text())["splits"]["train"]["bad"]
    assert name == str(bad)
    assert reason
    # What would be skipped is reported all the same.
    assert cli.main([*arguments, "--on-bad-image", "skip", *FRACTIONS]) == 2
    assert str(bad) in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_said_before_the_check(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(data, "check", lambda *_, **__: pytest.fail("checked"))
    report = tmp_path / "report.json"
    assert cli.main(["data", "check", f"folder:{photos}", "--report", str(report)]) == 2
    assert f"{report} cannot be written: Read-only file system" in capsys.readouterr().err
    report.mkdir()
    assert cli.main(["data", "check", f"folder:{photos}", "--report", str(report)]) == 2
    assert f"{report} is a folder; name a file" in capsys.readouterr().err


def test_stats_are_of_the_training_images(photos: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["data", "stats", f"folder:{photos}", *FRACTIONS]) == cli.OK
    out = capsys.readouterr().out
    source = data.load_source(f"folder:{photos}", validation_fraction=0.25, test_fraction=0)
    found = data.statistics(source.train)
    assert "6 of 6 training images" in out
    assert "--mean-rgb " + " ".join(f"{v:.3f}" for v in found.mean) in out
    assert "--std-rgb " + " ".join(f"{v:.3f}" for v in found.std) in out
    assert f"{found.eigenvalues[0]:.6f}" in out


def test_a_pack_has_smaller_images_and_says_how_to_use_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "pack"
    arguments = ["data", "pack", f"folder:{photos}", str(folder), "--max-side", "20", *FRACTIONS]
    assert cli.main(arguments) == cli.OK
    assert f"--source records:{folder}" in capsys.readouterr().out
    packed = data.load_source(f"records:{folder}").train
    encoded, _ = next(iter(packed.records.dataset()))
    assert packed.size == 6
    assert max(tf.io.decode_image(encoded).shape[:2]) == 20


@pytest.mark.slow
def test_the_bits_of_16_bit_files_may_be_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 4096, (9, 9)).astype(np.uint16)
        path = tmp_path / "deep" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    folder, out = f"folder:{tmp_path / 'deep'}", tmp_path / "pack"
    options = ["--bit-depth", "12", *FRACTIONS]
    check = ["data", "check", folder, "--report", str(tmp_path / "r.json")]
    assert cli.main([*check, *FRACTIONS]) == cli.OK
    assert "use few of their levels" in capsys.readouterr().out
    assert cli.main([*check, *options]) == cli.OK
    assert "use few of their levels" not in capsys.readouterr().out
    assert cli.main(["data", "pack", folder, str(out), *options]) == cli.OK
    printed = capsys.readouterr().out
    assert f"--source records:{out} --bit-depth 12" in printed
    assert "use few of their levels" not in printed
    means = []
    for source in (folder, f"records:{out}"):
        assert cli.main(["data", "stats", source, *options]) == cli.OK
        means.append(capsys.readouterr().out.partition("--mean-rgb ")[2].split()[0])
    assert means[0] == means[1]
    assert 110 < float(means[0]) < 145  # of 0 to 255


def test_named_splits_are_for_tensorflow_datasets(
    photos: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["data", "stats", f"folder:{photos}", "--train-split", "train[:90%]"]
    assert "only TensorFlow Datasets have named splits" in error_of(capsys, *words)


@pytest.mark.slow
def test_a_pack_is_written_checked_and_shown(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "packed"
    pack = ["data", "pack", f"folder:{photos}", str(out), "--shard-images", "2", *FRACTIONS]
    assert cli.main(pack) == cli.OK
    assert f"--source records:{out}" in capsys.readouterr().out
    assert cli.main(pack) == cli.OK
    assert "nothing to do" in capsys.readouterr().err
    report = tmp_path / "r.json"
    check = ["data", "check", f"records:{out}", "--report", str(report)]
    assert cli.main(check) == cli.OK
    capsys.readouterr()
    sheet = tmp_path / "sheet.png"
    show = ["data", "show", f"records:{out}", "--out", str(sheet), "--images", "2"]
    recipe = Path(__file__).parents[1] / "training" / "recipes" / "imagenet_d.py"
    assert cli.main([*show, "--recipe", str(recipe), "--views", "2"]) == cli.OK
    assert str(sheet) in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.width > 300
    shard = next(out.glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert cli.main(check) == 2
    found = capsys.readouterr()
    assert "cannot be decoded" in found.err or "SHA-256" in found.err
    assert json.loads(report.read_text())["source"] == f"records:{out}"


def test_show_takes_the_recipe_that_train_takes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Recipe] = []
    monkeypatch.setattr(runs, "show_augmentation", lambda recipe, *_, **__: drawn.append(recipe))
    for source in (f"folder:{photos}", "digits"):
        words = ["data", "show", source, "--out", str(tmp_path / "sheet.png"), *FRACTIONS]
        assert cli.main(words) == cli.OK
    fractions = {"validation_fraction": 0.25, "test_fraction": 0.0}
    assert drawn == [recipe_for(source, **fractions) for source in (f"folder:{photos}", "digits")]
    assert [recipe.horizontal_flip for recipe in drawn] == [True, False]
    assert capsys.readouterr().out.count("defaults for photographs: image_size 32") == 1


def test_check_of_many_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(13):
        (tmp_path / "many" / f"c{number:02d}").mkdir(parents=True)
        for image in range(2 + (number == 5)):
            noise = np.random.default_rng([number, image]).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(noise).save(tmp_path / "many" / f"c{number:02d}" / f"{image}.png")
    words = ["data", "check", f"folder:{tmp_path / 'many'}", "--report", str(tmp_path / "r.json")]
    assert cli.main([*words, "--validation-fraction", "0", "--test-fraction", "0"]) == cli.OK
    expected = "train: 13 classes, from 2 images (c00) to 3 (c05)"
    assert expected in capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_pack_makes_large_images_smaller(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, report = tmp_path / "packed", tmp_path / "report.json"
    command = ["data", "pack", f"folder:{photos}", str(out), "--max-side", "20", *FRACTIONS]
    assert cli.main(command) == cli.OK
    assert cli.main(["data", "check", f"records:{out}", "--report", str(report)]) == cli.OK
    for split in json.loads(report.read_text())["splits"].values():
        assert split["height"] == [20, 20, 20]  # of 50
        assert 16 <= split["width"][0] <= split["width"][2] <= 19  # of 40 to 47
    capsys.readouterr()
    assert "max_side differ; choose another folder" in error_of(capsys, *command[:4], *FRACTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data", "chekc", "digits"],
            "unknown command 'data chekc'; did you mean data check?",
        ),
        (["data", "check"], "Missing from keras-vgg data check: STR"),
        (["data", "check", "folder:/nowhere"], "there is no folder /nowhere"),
        (["data", "stats", "digits", "--limit", "0"], "limit=0"),
        (["data", "stats", "digitz"], "unknown source 'digitz'"),
        (["data", "check", "{tmp}"], "is a folder: write folder:/"),
        (["data", "pack", "digits", "{file}"], "is not a folder"),
        (["data", "pack", "digits", "{tmp}/new", "--shard-images", "0"], "shard_images=0"),
        (["data", "pack", "digits", "{tmp}/new", "--max-side", "0"], "max_side=0"),
        (["data", "show", "digits", "--views", "0"], "views=0"),
        (["data", "show", "digits", "--recipe", "{tmp}/none.py"], "no recipe at"),
        (["data", "check", "records:{tmp}"], "has no manifest.json"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    words = [a.format(tmp=tmp_path, file=tmp_path / "file") for a in arguments]
    assert message in error_of(capsys, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_help_of_the_group(capsys: pytest.CaptureFixture) -> None:
    for arguments in (["data"], ["data", "--help"]):
        assert cli.main(arguments) == cli.OK
        out = capsys.readouterr().out
        assert all(f"data {name}" in out for name in ("check", "stats", "pack", "show"))
        assert "evaluate" not in out


def test_a_title_is_not_folded_to_its_table(capsys: pytest.CaptureFixture) -> None:
    title = "folder:/" + "a_long_path/" * 20
    table = console.new_table(title, "split", "images")
    table.add_row("train", "6")
    console.show(table)
    assert title in capsys.readouterr().out


def test_show_of_another_source_and_of_whole_batches(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Recipe] = []
    monkeypatch.setattr(runs, "show_augmentation", lambda recipe, *_, **__: drawn.append(recipe))
    own = Recipe(source="csv:a.csv", columns="label=x", group_pattern="p", mixup=0.2)
    (tmp_path / "recipe.json").write_text(own.to_json())
    command = ["data", "show", f"folder:{photos}", "--recipe", str(tmp_path / "recipe.json")]
    assert cli.main([*command, "--out", str(tmp_path / "sheet.png")]) == cli.OK
    assert (drawn[0].columns, drawn[0].group_pattern) == ("", None)
    assert "not drawn, because they change whole batches: mixup" in capsys.readouterr().out


def test_show_of_a_cross_validation(tmp_path: Path) -> None:
    runs.show_augmentation(Recipe(folds=3), tmp_path / "sheet.png", images=1, views=1)
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("command", ["check", "stats", "pack", "show"])
def test_a_download_is_allowed_as_in_a_recipe(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list = []

    def load(*_: object, **options: object) -> None:
        asked.append(options["download"])
        raise ValueError("as far as this")

    monkeypatch.setattr(data, "load_source", load)
    monkeypatch.setattr("keras_vgg.fit.inputs.data.load_source", load)
    monkeypatch.chdir(tmp_path)
    out = ["out"] if command == "pack" else []
    assert cli.main(["data", command, "mnist", *out, "--download", "True"]) == cli.BAD_INPUT
    assert "as far as this" in capsys.readouterr().err
    assert asked == [True]
