"""keras_vgg.data.folders and inventory: a folder as people have it, and what is said of it."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from keras_vgg import data
from keras_vgg.data.hold_out import hold_out
from keras_vgg.data.left_out import short_name
from keras_vgg.data.listing import image_files
from keras_vgg.data.split import Split
from keras_vgg.fit import train
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs.remarks import remarks_on


def draw(path: Path, value: int, kind: str = "PNG") -> Path:
    """Write an image that no other value gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, kind)
    return path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten cats and ten dogs."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(10):
            draw(tmp_path / "photos" / name / f"{i}.png", 100 * label + i)
    return tmp_path / "photos"


def everything(source: data.Source) -> set[str]:
    return {str(path) for split in source.splits().values() for path in split.paths}


def reasons(source: data.Source) -> dict[str, int]:
    return {left_out.reason: left_out.count for left_out in source.left_out}


def test_images_below_a_class_are_read_at_any_depth(photos: Path) -> None:
    deep = draw(photos / "dog/2019/summer/1.png", 500)
    source = data.load_source(f"folder:{photos}")
    assert str(deep) in everything(source)
    assert sum(split.size for split in source.splits().values()) == 21
    assert source.left_out == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a", "JPEG"),
        ("a.jfif", "JPEG"),
        ("a.JPE", "JPEG"),
        ("a.jpg_large", "JPEG"),
        ("a.PNG_", "PNG"),
        ("a.txt", "WEBP"),
        ("a.tif", "PNG"),
    ],
)
def test_the_bytes_say_what_an_image_is(photos: Path, name: str, kind: str) -> None:
    path = draw(photos / "cat" / name, 500, kind)
    assert str(path) in everything(data.load_source(f"folder:{photos}"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: draw(p / "cat/a.tif", 1, "TIFF"), "TIFF (.tif)"),
        (lambda p: write(p / "cat/a.heic", b"\0\0\0\x18ftypheic" + bytes(40)), "HEIC (.heic)"),
        (lambda p: write(p / "dog/a.avif", b"\0\0\0\x18ftypavif" + bytes(40)), "AVIF (.avif)"),
        (lambda p: write(p / "dog/scan.dcm", bytes(128) + b"DICM"), "DICOM (.dcm)"),
        (lambda p: write(p / "dog/Thumbs.db", b"\xd0\xcf\x11\xe0"), "no image (.db)"),
        (lambda p: write(p / "dog/README", b"words"), "no image (without a suffix)"),
        (lambda p: write(p / "dog/empty", b""), "no image (without a suffix)"),
        (lambda p: write(p / "dog/.DS_Store", b"x"), "hidden file"),
        (lambda p: draw(p / "dog/.thumbnails/1.png", 7), "hidden folder"),
        (lambda p: draw(p / ".git/1.png", 7), "hidden folder"),
        (lambda p: draw(p / "alone.png", 7), "in no class folder"),
        (lambda p: (p / "dog/x.png").symlink_to(p / "nowhere"), "broken link"),
        (lambda p: (p / "dog/x.png").symlink_to(p / "dog/x.png"), "broken link"),  # to itself
        (lambda p: (p / "x").symlink_to(p / "x"), "broken link"),
        (lambda p: (p / "dog/up").symlink_to(p / "dog"), "link to a folder that was read already"),
        (lambda p: (p / "dog/all").symlink_to(p), "link to an enclosing folder"),
        (lambda p: write(p / "dog/a.csv", b"BMI,age,height\n24,51,1.80\n"), "no image (.csv)"),
        (lambda p: os.mkfifo(p / "dog/pipe.png"), "neither a file nor a folder"),
    ],
)
def test_what_is_left_out_is_counted_and_named(
    photos: Path, make: Callable[[Path], object], reason: str
) -> None:
    before = everything(data.load_source(f"folder:{photos}"))
    make(photos)
    source = data.load_source(f"folder:{photos}")
    assert everything(source) == before
    assert reasons(source) == {reason: 1}
    (line,) = data.take_inventory(source).lines()
    assert line.startswith(f"left out 1: 1 {reason}: {photos}")


def test_a_linked_class_does_not_read_the_others_through_a_link_back(photos: Path) -> None:
    cats = (photos / "cat").rename(photos.parent / "cats")
    (photos / "cat").symlink_to(cats)
    (cats / "back").symlink_to(photos)
    source = data.load_source(f"folder:{photos}")
    assert source.class_counts() == {"train": [7, 7], "validation": [1, 1], "test": [2, 2]}
    assert reasons(source) == {"link to an enclosing folder": 1}


def test_a_path_that_goes_back_behind_a_link(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its link/.., the path would lead to another folder, which does not exist."""
    (photos.parent / "work").mkdir()
    monkeypatch.chdir(photos.parent / "work")
    Path("link").symlink_to(photos / "cat")
    assert len(image_files(["link/../dog"]).paths) == 10


def test_a_class_without_images_says_what_it_holds(photos: Path) -> None:
    for name in ("1.heic", "2.heic"):
        write(photos / "phone/deep" / name, b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(ValueError, match=r"class phone \(it holds 2 HEIC \(\.heic\): .*1\.heic"):
        data.load_source(f"folder:{photos}")
    with pytest.raises(ValueError, match=r"at any depth \(it holds 2 HEIC \(\.heic\): "):
        image_files([photos / "phone"])


@pytest.mark.slow
def test_a_name_that_claims_an_image_is_a_damaged_image(photos: Path) -> None:
    path = write(photos / "cat/a.jpg", b"<html>not found</html>")
    source = data.load_source(f"folder:{photos}")
    assert source.left_out == ()
    bad = [name for split in source.splits().values() for name, _ in data.find_bad_images(split)]
    assert bad == [str(path)]


def test_names_that_are_not_utf8_are_read_and_named(photos: Path) -> None:
    strange, bad = (photos / "cat" / os.fsdecode(name) for name in (b"caf\xe9.png", b"bad\xe9.png"))
    draw(strange, 500)
    write(bad, b"x")
    train = data.load_source(f"folder:{photos}", validation_fraction=0, test_fraction=0).train
    with pytest.raises(ValueError, match=r"1 of 22 images of .*cat/bad\\xe9\.png: "):
        data.raise_for_bad_images(train)
    one = train.take(np.flatnonzero(train.paths == str(strange)))
    ((image, _),) = data.evaluation_dataset(one, None, lambda image: image)
    assert image.shape == (8, 9, 3)


@pytest.mark.slow
def test_a_set_with_names_that_are_not_utf8_is_used(
    photos: Path, capsys: pytest.CaptureFixture
) -> None:
    strange = os.fsdecode(b"caf\xe9.png")
    draw(photos / "cat" / strange, 500)
    draw(photos / os.fsdecode(b"\xe9t\xe9") / "1.png", 501)
    draw(photos / os.fsdecode(b"\xe9t\xe9") / "2.png", 502)
    write(photos / "cat" / os.fsdecode(b"bad\xe9.png"), b"x")
    source = data.load_source(f"folder:{photos}", on_bad_image="skip", test_fraction=0.5)
    assert source.class_names == ("cat", "dog", r"\xe9t\xe9")
    assert r"cat/bad\xe9.png" in capsys.readouterr().err
    images = [
        image
        for split in source.splits().values()
        for image, _ in data.evaluation_dataset(split, None, lambda image: image)
    ]
    assert len(images) == 23
    assert len({split.fingerprint() for split in source.splits().values()}) == 3
    assert short_name(photos / "cat" / strange) == r"cat/caf\xe9.png"
    out = photos.parent / os.fsdecode(b"pack\xe9")
    data.pack(source, out)
    packed = data.load_source(f"records:{out}")
    assert packed.train.size == source.train.size
    assert data.find_bad_images(packed.train) == []
    whole = data.load_source(f"folder:{photos}", validation_fraction=0, test_fraction=0)
    with pytest.raises(ValueError, match=r"cat/bad\\xe9\.png"):
        data.raise_for_bad_images(whole.train)


# --- what is held out ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_small_class_has_an_image_on_each_side(photos: Path, count: int) -> None:
    for i in range(count):
        draw(photos / "rare" / f"{i}.png", 500 + i)
    source = data.load_source(f"folder:{photos}", test_fraction=0, validation_fraction=0.1)
    label = source.class_names.index("rare")
    assert np.count_nonzero(source.validation.labels == label) == 1
    assert np.count_nonzero(source.train.labels == label) == count - 1


def test_a_class_of_one_image_is_trained_and_named(photos: Path) -> None:
    draw(photos / "rare/0.png", 500)
    source = data.load_source(f"folder:{photos}")
    assert np.count_nonzero(source.train.labels == 2) == 1
    lines = data.take_inventory(source).lines()
    assert "uneven classes: cat has 7 training images, rare 1" in lines
    assert "validation has no image of rare" in lines
    assert "test has no image of rare" in lines


@pytest.mark.slow
def test_a_drawn_split_keeps_equal_files_on_one_side(photos: Path) -> None:
    for i in range(6):
        for copy in range(3):
            draw(photos / "cat" / f"copy{copy}_of_{i}.png", i)
    for seed in range(30):
        source = data.load_source(f"folder:{photos}", seed=seed, validation_fraction=0.3)
        assert data.take_inventory(source).equal == ()
        for split in source.splits().values():
            assert set(split.labels) == {0, 1}
        assert sum(split.size for split in source.splits().values()) == 38


class CountedList(list[str]):
    """A list that counts how often it is walked through."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return super().__iter__()


@pytest.mark.parametrize("kind", ["one label", "several labels", "groups"])
def test_many_equal_files_are_looked_at_once(kind: str) -> None:
    """Not once for each of them, which takes seconds for thousands."""
    names = np.array([f"{i}.png" for i in range(300)], dtype=object)
    labels = np.arange(300) // 100
    several = kind == "several labels"
    split = Split(
        "all",
        300,
        labels=np.eye(3, dtype=np.uint8)[labels] if several else labels.astype(np.int32),
        paths=names,
        groups=names if kind == "groups" else None,
    )
    mixed, same = CountedList(names[50:150]), CountedList(names[220:260])
    equal = {path: paths for paths in (mixed, same) for path in paths}
    for paths in (mixed, same):
        paths.walks = 0
    rest, held = hold_out(split, 0.5, "held", np.random.default_rng(0), equal)
    assert held is not None
    assert {*rest.paths} | {*held.paths} == {*names}
    for paths in (mixed, same):
        assert paths.walks <= 1
        assert len({path in held.paths for path in paths}) == 1


def test_folds_and_tables_keep_equal_files_on_one_side_too(photos: Path) -> None:
    rows = ["path,label"]
    for i in range(6):
        for copy in range(3):
            draw(photos / "cat" / f"copy{copy}_of_{i}.png", i)
    for path in sorted(photos.glob("*/*.png")):
        rows.append(f"{path},{path.parent.name}")
    table = write(photos.parent / "table.csv", "\n".join(rows).encode())
    for source in (f"folder:{photos}", f"csv:{table}"):
        for fold in (1, 2, 3):
            held = data.load_source(source, folds=3, fold=fold)
            assert data.take_inventory(held).equal == ()
        drawn = data.load_source(source, validation_fraction=0.3)
        assert data.take_inventory(drawn).equal == ()
        assert sum(split.size for split in drawn.splits().values()) == 38


def test_without_equal_files_the_draw_is_what_it_was(photos: Path) -> None:
    source = data.load_source(f"folder:{photos}", seed=3)
    rng = np.random.default_rng(3)
    expected = [10 * label + rng.permutation(10)[:2] for label in range(2)]
    paths = sorted(everything(source))
    assert [*source.test.paths] == [paths[i] for i in np.sort(np.concatenate(expected))]


def test_copies_in_two_classes_are_trained_and_said(photos: Path) -> None:
    draw(photos / "dog/cat3.png", 3)
    for seed in range(10):
        source = data.load_source(f"folder:{photos}", seed=seed)
        assert str(photos / "dog/cat3.png") in source.train.paths
        (line,) = data.take_inventory(source).lines()
        first = f"{photos}/dog/cat3.png = {photos}/cat/3.png"
        assert line == f"1 train image also in another class: {first}"


# --- folders of splits -----------------------------------------------------------------------


@pytest.fixture
def split_photos(photos: Path) -> Path:
    root = photos.parent / "split"
    root.mkdir()
    photos.rename(root / "train")
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            draw(root / "test" / name / f"{i}.png", 900 + 10 * label + i)
    return root


def test_other_spellings_of_the_splits_are_read(split_photos: Path) -> None:
    (split_photos / "train").rename(split_photos / "Training")
    (split_photos / "test").rename(split_photos / "Test")
    for label, name in enumerate(("cat", "dog")):
        draw(split_photos / "valid" / name / "0.png", 950 + label)
    source = data.load_source(f"folder:{split_photos}")
    assert source.class_names == ("cat", "dog")
    assert (source.validation.size, source.test.size) == (2, 8)
    assert source.left_out == ()
    draw(split_photos / "extra" / "cat" / "0.png", 960)
    (left_out,) = data.load_source(f"folder:{split_photos}").left_out
    assert (left_out.reason, left_out.count) == ("folder beside train", 1)


def test_classes_may_have_the_names_of_splits(photos: Path) -> None:
    (photos / "cat").rename(photos / "Train")
    (photos / "dog").rename(photos / "valid")
    assert data.load_source(f"folder:{photos}").class_names == ("Train", "valid")


def test_a_class_may_be_called_train(photos: Path) -> None:
    """As the vehicle of Pascal VOC; a split folder holds folders."""
    (photos / "cat").rename(photos / "train")
    assert data.load_source(f"folder:{photos}").class_names == ("dog", "train")
    (photos / "dog").rename(photos / "val")
    with pytest.raises(ValueError, match="train has 0 class folders"):
        data.load_source(f"folder:{photos}")


def test_equal_files_on_two_sides_are_counted_and_named(split_photos: Path) -> None:
    for i in range(3):
        draw(split_photos / "test/cat" / f"copy{i}.png", i)
    source = data.load_source(f"folder:{split_photos}", validation_fraction=0)
    (equal,) = data.take_inventory(source).equal
    assert (equal.earlier, equal.later, equal.count) == ("train", "test", 3)
    assert str(equal).startswith(
        f"3 test images also in train: {split_photos}/test/cat/copy0.png = "
        f"{split_photos}/train/cat/0.png"
    )


def test_hashes_are_remembered_and_a_changed_file_is_hashed_again(
    split_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = draw(split_photos / "test/cat/copy.png", 0)
    source = data.load_source(f"folder:{split_photos}")
    (equal,) = data.take_inventory(source).equal
    assert equal.count == 1

    monkeypatch.setattr(data.equal, "_hashed", {})  # as in another process
    opened = []
    digest = data.equal.hashlib.file_digest
    monkeypatch.setattr(
        data.equal.hashlib, "file_digest", lambda f, a: opened.append(f.name) or digest(f, a)
    )
    assert data.take_inventory(source).equal == (equal,)
    assert opened == []
    content = bytearray(copy.read_bytes())
    content[-20] ^= 1
    copy.write_bytes(content)
    os.utime(copy, ns=(1, 1))
    assert data.take_inventory(source).equal == ()
    assert opened == [str(copy)]


@pytest.mark.parametrize(("bytes_to_hash", "terminal"), [(1, True), (1, False), (10**6, True)])
def test_a_long_search_for_equal_files_shows_its_progress(
    split_photos: Path, monkeypatch: pytest.MonkeyPatch, bytes_to_hash: int, terminal: bool
) -> None:
    draw(split_photos / "test/cat/copy.png", 0)
    shown, hashed = [], []
    bars, sha256_of = data.equal.progress_bars, data.equal.sha256_of
    monkeypatch.setattr(data.equal, "progress_bars", lambda show: shown.append(show) or bars(show))
    monkeypatch.setattr(data.equal, "sha256_of", lambda p: hashed.append(p) or sha256_of(p))
    monkeypatch.setattr(data.equal, "_SHOWN_FROM", bytes_to_hash)
    stderr = SimpleNamespace(isatty=lambda: terminal)
    monkeypatch.setattr(data.equal, "sys", SimpleNamespace(stderr=stderr))
    source = data.load_source(f"folder:{split_photos}")  # validation is drawn from train
    assert shown == [bytes_to_hash == 1 and terminal]
    (equal,) = data.take_inventory(source).equal
    assert equal.count == 1
    assert len(hashed) == len(set(hashed)) == len(everything(source))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', "\x00"])
def test_a_damaged_memory_of_hashes_is_written_anew(
    split_photos: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    draw(split_photos / "test/cat/copy.png", 0)
    source = data.load_source(f"folder:{split_photos}")
    first = data.take_inventory(source)
    memories = [*data.equal.cache_folder().glob("hashes/*.json")]
    assert memories
    for memory in memories:
        memory.write_text(content)
    monkeypatch.setattr(data.equal, "_hashed", {})  # as in another process
    assert data.take_inventory(source) == first


def test_equal_images_in_memory_are_counted() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1], np.int32)
    train = data.Split("train", 6, labels=labels, images=images)
    test = data.Split("test", 2, labels=labels[:2], images=images[[3, 0]])
    source = data.Source("x", ("a", "b"), train, None, test)
    (equal,) = data.take_inventory(source).equal
    assert str(equal) == "2 test images also in train"


def test_a_class_that_test_lacks_is_said(split_photos: Path) -> None:
    for i in range(10):
        draw(split_photos / "train/owl" / f"{i}.png", 600 + i)
    source = data.load_source(f"folder:{split_photos}")
    assert source.class_names == ("cat", "dog", "owl")
    assert sorted(set(source.test.labels)) == [0, 1]
    assert "test has no image of owl" in data.take_inventory(source).lines()


def test_a_class_that_only_test_has_is_left_out(split_photos: Path) -> None:
    draw(split_photos / "test/ant/0.png", 700)
    source = data.load_source(f"folder:{split_photos}")
    assert source.test.size == 8
    assert [source.class_names[label] for label in source.test.labels] == ["cat"] * 4 + ["dog"] * 4
    assert reasons(source) == {"in a class of test that train has not": 1}


def test_a_flat_test_folder_is_said_and_leaves_no_test_split(split_photos: Path) -> None:
    for name in ("cat", "dog"):
        for path in (split_photos / "test" / name).iterdir():
            path.rename(split_photos / "test" / f"{name}{path.name}")
        (split_photos / "test" / name).rmdir()
    source = data.load_source(f"folder:{split_photos}")
    assert source.test is None
    assert reasons(source) == {"in no class folder (keras-vgg predict classifies them)": 8}


def test_at_most_five_lines(split_photos: Path) -> None:
    for name in ("owl", "ant"):
        draw(split_photos / "train" / name / "0.png", 600)
    for name in ("cat", "dog"):
        draw(split_photos / "test" / name / "copy.png", 600)
    draw(split_photos / "test/cat/train.png", 0)
    write(split_photos / "train/cat/notes.txt", b"words")
    source = data.load_source(f"folder:{split_photos}")
    lines = data.take_inventory(source).lines()
    assert len(lines) == 5
    assert lines[-1].startswith("and ")


def test_a_training_prints_the_inventory_and_keeps_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise RuntimeError("the first epoch begins")

    write(photos / "cat" / "notes.txt", b"words")
    draw(photos / "cat" / "again.png", 105)  # equals a dog
    dark = np.linspace(1000, 1200, 72).reshape(8, 9).astype(np.uint16)
    Image.fromarray(dark).save(photos / "dog" / "dark.png")
    recipe = Recipe(
        source=f"folder:{photos}", width_multiplier=0.01, hidden_units=1, epochs=1, test_fraction=0
    )
    monkeypatch.setattr("keras_vgg.fit.training.datasets", begin)
    with pytest.raises(RuntimeError, match="the first epoch begins"):
        train(recipe, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("validation images, 2 classes; training images of 9x8 pixels")
    inventory = run.read_json("data.json")["inventory"]
    lines = data.Inventory.from_json(run.class_names, inventory).lines()
    assert lines
    assert len(lines) <= 5
    start = printed.index(lines[0])
    assert printed[start : start + len(lines)] == lines
    expected = (
        r"1 \w+ image also in another class: .*",
        r"left out 1: 1 no image \(\.txt\): .*notes\.txt",
        r"1 of 1 16-bit files that were looked at use few of their levels.*1000 to 1200.*",
    )
    assert all(any(re.fullmatch(text, line) for line in lines) for text in expected), lines
    assert inventory["left_out"][0]["count"] == 1
    assert inventory["sizes"]["train"]["height"] == [8, 8, 8]
    assert inventory["sizes"]["train"]["width"] == [9, 9, 9]
    assert remarks_on(run)[: len(lines)] == lines
