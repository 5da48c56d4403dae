"""keras_vgg.data.tables: labels, splits and groups from CSV, TSV and JSON Lines."""

import gzip
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_vgg import augment, cli, data
from keras_vgg.console import notes_once
from keras_vgg.data.table_columns import find_roles
from keras_vgg.data.table_rows import existing_files
from keras_vgg.data.tables import read_table
from keras_vgg.fit.defaults import look_at
from keras_vgg.fit.inputs import load_source
from keras_vgg.recipe import Recipe

ROWS = [(f"images/{i}.png", "cat" if i % 3 else "dog", f"p{i // 4}") for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four images, without a table."""
    root = tmp_path_factory.mktemp("tables")
    (root / "images").mkdir()
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    return root


@pytest.fixture
def table(folder: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """A function that writes a table beside the images."""

    def write(text: str | bytes, name: str = "table.csv", encoding: str = "utf-8") -> Path:
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        request.addfinalizer(lambda: path.unlink(missing_ok=True))
        return path

    return write


def csv_of(rows: list[tuple[str, ...]], *names: str, delimiter: str = ",") -> str:
    return "".join(delimiter.join(row) + "\n" for row in [names, *rows])


def everything(source: data.Source) -> dict[str, str]:
    """Return file name -> class."""
    return {
        Path(path).name: source.class_names[label]
        for split in source.splits().values()
        for path, label in zip(split.paths, split.labels, strict=True)
    }


EXPECTED = {Path(path).name: label for path, label, _ in ROWS}


# --- forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [
        ("table.csv", ",", "utf-8"),
        ("table.csv", ";", "utf-8-sig"),
        ("table.csv", "|", "utf-8"),
        ("table.txt", "\t", "utf-8-sig"),
        ("table.tsv", "\t", "utf-8"),
        ("table.csv", ",", "utf-8-sig"),
    ],
)
def test_delimiter_and_byte_order_mark(
    table: Callable, name: str, delimiter: str, encoding: str
) -> None:
    text = csv_of(ROWS, "path", "label", "patient", delimiter=delimiter)
    source = data.load_source(f"csv:{table(text, name, encoding)}")
    assert everything(source) == EXPECTED
    assert source.class_names == ("cat", "dog")
    groups = [set(split.groups) for split in source.splits().values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 6


def test_json_lines(table: Callable) -> None:
    lines = [json.dumps(dict(zip(("file", "class", "session"), row, strict=True))) for row in ROWS]
    text = "\ufeff" + "\n\n".join(lines)
    for name in ("table.jsonl", "table.txt"):
        source = data.load_source(f"csv:{table(text, name)}")
        assert everything(source) == EXPECTED
        assert set(source.train.groups) < {f"p{i}" for i in range(6)}


def test_quotes_line_breaks_and_endings(table: Callable) -> None:
    rows = [f'"images/{i}.png", "a ""big"", old {"cat" if i % 2 else "dog"}"' for i in range(24)]
    text = "\r\n".join([" Path ,LABEL", *rows[:9], "", *rows[9:]])
    source = data.load_source(f"csv:{table(text)}")
    assert source.class_names == ('a "big", old cat', 'a "big", old dog')
    assert len(everything(source)) == 24
    # A cell of two lines, in a column that nobody reads: later rows have the right numbers.
    text = 'path,note,label\nimages/0.png,"two\nlines",cat\nimages/1.png,one,\n'
    (bad,) = read_table(table(text)).bad
    assert (bad.line, bad.reason) == (4, "no label")


def test_classes_are_in_order_of_numbers_or_names(table: Callable) -> None:
    for labels, expected in (
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("10", "9", "x"), ("10", "9", "x")),
        (("NA", "null", "1.5"), ("1.5", "NA", "null")),
    ):
        rows = [(path, labels[i % 3]) for i, (path, _, _) in enumerate(ROWS)]
        assert data.load_source(f"csv:{table(csv_of(rows, 'path', 'y'))}", columns="label=y")
        source = data.load_source(f"csv:{table(csv_of(rows, 'path', 'label'))}")
        assert source.class_names == expected


def test_a_column_of_splits(table: Callable) -> None:
    splits = ["Train"] * 14 + ["training"] * 2 + ["val"] * 3 + ["test"] * 5
    rows = [(*row, split) for row, split in zip(ROWS, splits, strict=True)]
    source = data.load_source(f"csv:{table(csv_of(rows, 'path', 'label', 'patient', 'split'))}")
    assert [split.size for split in source.splits().values()] == [16, 3, 5]
    assert [Path(path).name for path in source.test.paths] == [f"{i}.png" for i in range(19, 24)]
    lines = data.take_inventory(source).lines()
    assert "1 group has images in validation and in test: p4" in lines
    # Without rows for validation, it is held out of train: no patient of it trains.
    rows = [(*row[:3], "train" if row[3] == "val" else row[3]) for row in rows]
    text = csv_of(rows, "path", "label", "patient", "split")
    source = data.load_source(f"csv:{table(text)}", validation_fraction=0.3)
    assert source.test.size == 5
    assert not set(source.train.groups) & set(source.validation.groups)


def test_a_class_that_train_has_not(table: Callable) -> None:
    rows = [(path, label, "train") for path, label, _ in ROWS[:20]]
    rows += [(path, "bird", "test") for path, _, _ in ROWS[20:23]] + [(*ROWS[23][:2], "test")]
    source = data.load_source(f"csv:{table(csv_of(rows, 'path', 'label', 'split'))}")
    assert source.class_names == ("cat", "dog")
    assert source.test.size == 1
    (left_out,) = source.left_out
    assert str(left_out).startswith("3 test rows (class that train has not): line 22 (bird), ")


def test_several_labels(table: Callable) -> None:
    cells = ["cat|dog", "", "dog", "cat | dog|cat"]
    rows = [(row[0], cells[i % 4]) for i, row in enumerate(ROWS)]
    source = data.load_source(
        f"csv:{table(csv_of(rows, 'path', 'tags'))}", validation_fraction=0, test_fraction=0
    )
    assert source.several_labels
    assert source.class_names == ("cat", "dog")
    assert source.train.labels[:4].tolist() == [[1, 1], [0, 0], [0, 1], [1, 1]]
    for as_text in (True, False):  # a JSON list in a cell of CSV, and in JSON Lines
        lists = [[part.strip() for part in cell.split("|") if part.strip()] for cell in cells]
        if as_text:
            quoted = [json.dumps(names).replace('"', '""') for names in lists]
            rows = [(row[0], f'"{quoted[i % 4]}"') for i, row in enumerate(ROWS)]
            path = table(csv_of(rows, "path", "labels"))
        else:
            lines = [{"path": row[0], "labels": lists[i % 4]} for i, row in enumerate(ROWS)]
            path = table("\n".join(map(json.dumps, lines)), "table.jsonl")
        other = data.load_source(f"csv:{path}", validation_fraction=0, test_fraction=0)
        np.testing.assert_array_equal(other.train.labels, source.train.labels)
    # The draw keeps each label's share, and folds hold labels too.
    folds = [data.load_source(f"csv:{path}", folds=3, fold=k).test for k in (1, 2, 3)]
    counts = np.array([fold.labels.sum(axis=0) for fold in folds])
    assert counts.sum(axis=0).tolist() == [12, 18]
    assert (np.abs(counts - [4, 6]) <= 1).all()


def test_rows_without_labels(table: Callable) -> None:
    """For prediction: labels and splits are not read."""
    text = "image,split,label\nimages/0.png,someday,\nimages/1.png,,cat\nimages/99.png,,\n"
    read = read_table(table(text), require_labels=False)
    assert [(row.written, row.labels) for row in read.rows] == [
        ("images/0.png", ()),
        ("images/1.png", ()),
    ]
    (bad,) = read.bad
    assert str(bad).startswith("line 4: file does not exist (/")
    alone = read_table(table("file\nimages/0.png\n"), require_labels=False)
    assert alone.label_column is None
    assert Path(alone.rows[0].path).is_file()


# --- columns ---------------------------------------------------------------------------------


def test_columns_of_other_names(table: Callable) -> None:
    rows = [(*row, "train") for row in ROWS]
    path = table(csv_of(rows, "where", "diagnosis", "who", "set"))
    columns = "path=where, label=diagnosis,group=who,split="
    source = data.load_source(f"csv:{path}", columns=columns)
    assert everything(source) == EXPECTED
    assert source.test is not None  # "set" is not a column of splits
    assert source.train.groups is not None
    recipe = Recipe(source=f"csv:{path}", columns=columns)
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("where,label,x", {}, "no column is known as the path; the columns are 'where', 'label',"),
        ("path,diagnosis,x", {}, "known as the label; .* name it with columns='label=NAME'"),
        ("path,label,file", {}, "the path may be in any of the columns 'path', 'file'; choose one"),
        ("path,label,path", {}, "has 2 columns 'path': rename one of them"),
        ("path,label,tags", {}, "a column of one label and one of several, 'label' and 'tags'"),
        (
            "path,label,x",
            {"columns": "label=y"},
            "has no column 'y', which columns='label=y' names",
        ),
        (
            "path,label,x",
            {"columns": "image=path"},
            "columns must name each of path, label, labels",
        ),
        ("path,label,x", {"columns": "label"}, "columns must name each of path, label, labels"),
        ("path,label,patient", {"group_pattern": "."}, "has the column 'patient' of groups: leave"),
        ("path,label,x", {"group_pattern": "q"}, "finds no group in 24 of 24 paths: images/0.png"),
    ],
)
def test_columns_that_cannot_be_told(
    table: Callable, header: str, options: dict, message: str
) -> None:
    path = table(csv_of(ROWS, *header.split(",")))
    with pytest.raises(ValueError, match=message):
        data.load_source(f"csv:{path}", **options)


# --- bad rows --------------------------------------------------------------------------------

BAD = """path,label,split
images/0.png,cat,train
images/1.png,,train
,dog,train
images/2.png,dog,holdout
images/3.png,dog
images/0.png,dog,train
images/4.png,"dog
",train
images/99.png,dog,train
images/5.png,cat,
"""


def test_bad_rows_are_named_by_line(table: Callable) -> None:
    read = read_table(table(BAD))
    assert [(bad.line, bad.reason) for bad in read.bad] == [
        (3, "no label"),
        (4, "no path"),
        (5, "unknown split"),
        (6, "wrong number of cells"),
        (7, "path of an earlier row"),
        (10, "file does not exist"),
        (11, "no split"),
    ]
    assert [row.line for row in read.rows] == [2, 8]  # the quotes of 8 hold a line break
    with pytest.raises(ValueError, match=r"7 of 9 rows of .*table.csv cannot be used: ") as caught:
        data.load_source(f"csv:{table(BAD)}")
    message = str(caught.value)
    assert message.count("line") == 6  # five rows, and the earlier row of one of them
    assert "line 5: unknown split (holdout); line 6: wrong number of cells (2, and the" in message
    assert message.endswith('; .... Correct them, or skip them with on_bad_image="skip"')
    with pytest.raises(ValueError, match="More than 10% is too many to skip"):
        data.load_source(f"csv:{table(BAD)}", on_bad_image="skip")


def test_a_column_that_names_no_split(table: Callable) -> None:
    path = table(
        csv_of([(*row[:2], "AB"[i % 2]) for i, row in enumerate(ROWS)], "path", "label", "set")
    )
    with pytest.raises(ValueError, match=r"the column 'set' names no split.* columns='split='"):
        data.load_source(f"csv:{path}")
    assert everything(data.load_source(f"csv:{path}", columns="split=")) == EXPECTED


def test_bad_json_lines_are_named(table: Callable) -> None:
    lines = ['{"path": "images/0.png", "label": 3}', "{", "[1]", "", '{"path": 7}']
    lines += [
        '{"path": "images/1.png", "label": ["cat"]}',
        '{"path": "images/2.png", "label": null}',
    ]
    read = read_table(table("\n".join(lines), "table.jsonl"))
    assert [row.labels for row in read.rows] == [("3",)]
    assert [(bad.line, bad.reason) for bad in read.bad] == [
        (2, "not JSON"),
        (3, "not a JSON object"),
        (5, "no label"),
        (6, "label is not a text"),
        (7, "no label"),
    ]


def test_few_bad_rows_may_be_skipped(
    table: Callable, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = csv_of([*ROWS, ("images/99.png", "cat", "p1"), ("", "cat", "p1")], "path", "label", "x")
    path = table(text)
    source = data.load_source(f"csv:{path}", on_bad_image="skip")
    assert everything(source) == EXPECTED
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"skipped: 2 of 26 rows of {path} cannot be used: line 26: file does not")
    assert [str(one).partition(":")[0] for one in source.left_out] == [
        "1 rows (file does not exist)",
        "1 rows (no path)",
    ]
    assert "line 26 (" in data.take_inventory(source).lines()[-1]
    # A look at the images, which decides values of a recipe, skips bad rows without a word.
    skipping = Recipe(source=f"csv:{path}", on_bad_image="skip", folds=5, test_fraction=0.0)
    with monkeypatch.context() as patch:
        patch.setattr("keras_vgg.data.tables.without_bad_images", lambda split: split)
        look = look_at(skipping)
    assert look.test is None
    assert capsys.readouterr().err == ""


def damaged_table(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder with a damaged image, and a table with a row of no file."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "images" / "0.png").write_bytes(b"cut")
    text = csv_of([*ROWS, ("images/99.png", "cat", "p1")], "path", "label", "x")
    (copy / "damaged.csv").write_text(text)
    return copy / "damaged.csv"


@pytest.mark.slow
def test_what_a_look_skips_is_named_afterwards(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = damaged_table(folder, tmp_path)
    recipe = Recipe(source=f"csv:{path}", on_bad_image="skip")
    with notes_once():
        look_at(recipe)
        assert capsys.readouterr().err == ""
        for _ in range(2):
            load_source(recipe)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" cannot be ")[2][:7] for line in lines] == ["used: l", "decoded"]


@pytest.mark.slow
def test_a_check_of_a_table_may_skip_its_bad_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = damaged_table(folder, tmp_path)
    report = tmp_path / "report.json"
    arguments = ["data", "check", f"csv:{path}", "--report", str(report)]
    assert cli.main(arguments) == 2
    assert "skip them with on_bad_image" in capsys.readouterr().err
    assert cli.main([*arguments, "--on-bad-image", "skip"]) == 2  # a damaged image
    printed = capsys.readouterr()
    assert "skipped: 1 of 25 rows" in printed.err
    assert "images/0.png" in printed.err
    assert "1 rows (file does not exist)" in printed.out
    assert sum(len(s["bad"]) for s in json.loads(report.read_text())["splits"].values()) == 1


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "a.csv", "a.csv is empty"),
        ("path,label\n", "a.csv", "has no row that can be used"),
        ("path,label\nimages/0.png,cat\n", "a.csv", "has 1 classes in its column 'label', and"),
        (
            "path,label\nimages/0.png,caf\xe9\n".encode("latin-1"),
            "a.csv",
            "line 2 has the byte 0xe9",
        ),
        ("path,label\n".encode("utf-16"), "a.csv", "is UTF-16; save it as UTF-8"),
        (
            'path,label\nimages/0.png,"cat\nimages/1.png,dog\n',
            "a.csv",
            "begins in line 2 cannot be",
        ),
        (
            'path,label\nimages/0.png,"cat"x\n',
            "a.csv",
            "line 2 cannot be read: .* is a quote missi",
        ),
        ('[{"path": "images/0.png"}]', "a.json", "is one JSON array; write one object a line"),
        (
            csv_of([(*r[:2], "test") for r in ROWS], "path", "label", "split"),
            "a.csv",
            "split is train",
        ),
    ],
)
def test_files_that_are_no_tables(
    table: Callable, text: str | bytes, name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data.load_source(f"csv:{table(text, name)}")


def test_no_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(FileNotFoundError, match=r"source 'csv:.*x.csv': there is no file"):
        data.load_source(f"csv:{tmp_path / 'x.csv'}")
    with pytest.raises(ValueError, match="is a folder, not a table; its source would be folder:"):
        data.load_source(f"csv:{folder}")
    with pytest.raises(ValueError, match=r"source 'csv:' needs a path"):
        data.load_source("csv:")
    report = str(tmp_path / "report.json")
    arguments = ["data", "check", f"csv:{tmp_path / 'x.csv'}", "--report", report]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


def test_files_of_a_large_folder_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{i}.png" for i in range(200)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    asked = []
    monkeypatch.setattr("os.path.isfile", lambda path: asked.append(path) or False)
    paths = [str(tmp_path / name) for name in [*names, "absent.png", "folder.png"]]
    elsewhere = [str(tmp_path / "nowhere" / name) for name in names]
    assert existing_files(paths + elsewhere) == set(paths[:200])
    assert [Path(path).name for path in asked] == ["absent.png", "folder.png"]


def test_the_recipe_keeps_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Recipe(source="csv:a.csv").with_absolute_paths().source == f"csv:{tmp_path / 'a.csv'}"


# --- the same images as another source -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(300, 100), (60_000, 10_000)])
def test_fashion_mnist_as_a_table_gives_the_batches_of_its_idx_files(
    data_folder: Path, tmp_path: Path, counts: tuple[int, int]
) -> None:
    """Train and test are rows of the table; validation is held out of train by both sources."""
    rows = []
    for name, prefix, count in (("train", "train", counts[0]), ("test", "t10k", counts[1])):
        images, labels = (
            _first(data_folder / "fashion-mnist" / f"{prefix}-{kind}-ubyte.gz", count, header)
            for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
        )
        (tmp_path / "idx").mkdir(exist_ok=True)
        (tmp_path / "idx" / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / "idx" / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
        (tmp_path / name).mkdir()
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        for number, (image, label) in enumerate(zip(pixels, labels[8:], strict=True)):
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
            rows.append((f"{name}/{number}.png", str(label), name))
    (tmp_path / "table.csv").write_text(csv_of(rows, "path", "label", "split"))
    options = {"validation_fraction": 0.1, "seed": 3}
    table = data.load_source(f"csv:{tmp_path / 'table.csv'}", **options)
    idx = data.load_source(f"idx:{tmp_path / 'idx'}", **options)
    assert table.class_names == idx.class_names
    for name, split in idx.splits().items():
        other = table.splits()[name]
        np.testing.assert_array_equal(other.labels, split.labels)
        for place in range(0, split.size, 29):
            pixels = np.asarray(Image.open(other.paths[place]))
            np.testing.assert_array_equal(pixels, split.images[place, ..., 0])
    augmented = partial(augment.train_image, size=24, scale=(24, 32), brightness=0.2)
    batches = [
        data.training_dataset(one.train, 64, augmented, seed=5, start_epoch=1).take(3)
        for one in (idx, table)
    ]
    batches += [
        data.evaluation_dataset(one.test, 50, partial(augment.eval_image, size=28))
        for one in (idx, table)
    ]
    for one, another in (batches[:2], batches[2:]):
        pairs = zip(one.as_numpy_iterator(), another.as_numpy_iterator(), strict=True)
        for (images, labels), (other_images, other_labels) in pairs:
            np.testing.assert_array_equal(other_images, images)
            np.testing.assert_array_equal(other_labels, labels)


def _first(path: Path, count: int, header: int) -> bytes:
    """Return an IDX file of the first images or labels of another."""
    if not path.is_file():
        pytest.skip(f"no {path}")
    content = gzip.decompress(path.read_bytes())
    item = (len(content) - header) // int.from_bytes(content[4:8], "big")
    return content[:4] + count.to_bytes(4, "big") + content[8 : header + count * item]


def test_no_such_column_is_not_the_column_without_a_name() -> None:
    roles = find_roles(Path("t.csv"), ["", "path", "label", "set"], "split=")
    assert roles == {"path": "path", "label": "label"}
