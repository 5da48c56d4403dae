"""keras-vgg search: what is found, what the index remembers, and what is refused."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_vgg import cli, plotting, retrieval, vgg
from keras_vgg.runs import photo_index, predictor, search_answers, similar
from keras_vgg.runs.photo_index import PhotoIndex, open_index, update_index
from keras_vgg.runs.similar import Description, Match, PhotoSearch, SearchAnswer, _fitted


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "base.keras"
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    vgg("A", width_multiplier=1 / 16, **options).save(path)
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of four photographs in two folders, a copy of one, and a damaged file; a query."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, whole in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / "all" / name).mkdir(parents=True)
        for i in range(2):
            part = Image.fromarray(whole[200 * i : 200 * i + 200, 300 * i : 300 * i + 250])
            part.save(folder / "all" / name / f"{i}.png")
    query = Image.open(folder / "all" / "temple" / "0.png")
    query.resize((125, 100)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "query.jpg")
    jpeg = (folder / "query.jpg").read_bytes()
    (folder / "all" / "cut.jpg").write_bytes(jpeg[:400])
    return folder


def options(weights, *more):
    return ["--weights", str(weights), "--size", "64", *map(str, more)]


def test_the_copy_comes_first_and_a_second_run_describes_what_is_new(
    weights, photographs, tmp_path, capfd
):
    folder = shutil.copytree(photographs / "all", tmp_path / "all")
    query, index = photographs / "query.jpg", tmp_path / "index.npz"
    arguments = ["search", str(folder), str(query), *options(weights, "--index", index)]
    assert cli.main([*arguments, "--top", "2"]) == 3  # one file cannot be read
    out, err = capfd.readouterr()
    first = next(line for line in out.splitlines() if str(query) in line)
    assert str(folder / "temple" / "0.png") in first
    assert "yes, " in first
    assert out.count(".png") == 2
    assert f"not read: {folder / 'cut.jpg'}: " in err
    assert "4 photographs, 5 new or changed; index" in err
    assert cli.main(arguments) == 3
    err = capfd.readouterr().err
    assert f"not read: {folder / 'cut.jpg'}: " in err  # named again, and not new
    assert "4 photographs, 0 new or changed; index" in err
    shutil.copy(query, folder / "new.jpg")
    os.remove(folder / "cut.jpg")
    os.utime(folder / "flower" / "0.png", (1, 1))
    shutil.rmtree(folder / "temple")
    assert cli.main([*arguments, "--whitening", "folder", "--top", "1"]) == 0
    out, err = capfd.readouterr()
    assert "3 photographs, 2 new or changed, 3 are no longer there; index" in err
    assert "new.jpg" in out


@pytest.mark.slow
def test_rows_for_a_program_and_a_picture(weights, photographs, tmp_path, capfd):
    arguments = ["search", str(photographs / "all"), str(photographs / "query.jpg")]
    arguments += [str(photographs / "all" / "cut.jpg"), *options(weights, "--top", "2")]
    arguments += ["--picture", str(tmp_path / "found.png")]
    assert cli.main([*arguments, "--out", str(tmp_path / "found.csv")]) == 3
    header, first, second, bad = (tmp_path / "found.csv").read_text().splitlines()
    assert header == "query,rank,path,similarity,near_duplicate,bits,reason"
    assert first.split(",")[1:3] == ["1", str(photographs / "all" / "temple" / "0.png")]
    assert (first.split(",")[4], second.split(",")[4]) == ("yes", "no")
    assert bad.startswith(f"{photographs / 'all' / 'cut.jpg'},,,,,,")
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.size[0] > 300
    capfd.readouterr()
    assert cli.main([*arguments, "--format", "jsonl"]) == 3
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [match["rank"] for match in lines[0]["matches"]] == [1, 2]
    assert lines[0]["matches"][0]["near_duplicate"] is True
    assert lines[0]["matches"][0]["bits"] <= retrieval.NEAR
    assert lines[1]["matches"] == []
    assert lines[1]["reason"]


def test_similarities_are_those_of_embed(weights, photographs, tmp_path):
    search = PhotoSearch(
        photographs / "all",
        Description(str(weights), size=64, pooling="rmac"),
        index=tmp_path / "i.npz",
    )
    own = str(photographs / "all" / "flower" / "1.png")
    (answer,) = search([own], 9)
    assert len(answer.matches) == 3  # without the query itself
    numbers, similarities = retrieval.nearest(
        search.index.descriptors, search._describe([own])[0], 4
    )
    names = [search.index.files[i].path for i in numbers[0]]
    assert names[0] == "flower/1.png"
    assert sorted(m.similarity for m in answer.matches) == pytest.approx(
        sorted(similarities[0][1:]), abs=1e-6
    )


def test_an_interrupted_index_goes_on(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(photo_index, "_CHUNK", 2)
    monkeypatch.setattr(photo_index, "_SECONDS", -1)
    path, described = tmp_path / "i.npz", []

    def describe(paths):
        described.extend(paths)
        if len(described) == 4:
            raise KeyboardInterrupt
        return np.ones((len(paths), 3), "float32"), np.ones((len(paths), 32), "uint8"), {}

    folder = photographs / "all"
    with pytest.raises(KeyboardInterrupt):
        update_index(PhotoIndex(os.path.realpath(folder), {}), path, describe)
    kept = open_index(path, folder, {})
    assert len(kept.files) == 2
    index, update = update_index(kept, path, describe)
    assert update.described == 3
    assert len(index.files) == len(index.descriptors) == 5
    again = open_index(path, folder, {})
    assert again.files == index.files


def test_a_file_that_could_not_be_read_is_tried_again(photographs, tmp_path):
    folder, path = photographs / "all", tmp_path / "i.npz"
    locked = [str(folder / "temple" / "0.png")]

    def describe(paths):
        bad = {name: "Permission denied" for name in paths if name in locked}
        count = len(paths) - len(bad)
        return np.ones((count, 3), "float32"), np.ones((count, 32), "uint8"), bad

    index, update = update_index(PhotoIndex(os.path.realpath(folder), {}), path, describe)
    assert (len(index.files), len(index.bad), update.described) == (4, 1, 5)
    index, update = update_index(index, path, describe)
    assert (len(index.files), len(index.bad), update.described) == (4, 1, 0)
    locked.clear()
    _, update = update_index(index, path, describe)
    assert update.described == 1
    assert len(open_index(path, folder, {}).files) == 5


def test_a_network_for_grey_describes_photographs(photographs, tmp_path):
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    model = vgg("A", width_multiplier=1 / 16, input_shape=(None, None, 1), **options)
    model.save(tmp_path / "grey.keras")
    search = PhotoSearch(
        photographs / "all",
        Description(weights=str(tmp_path / "grey.keras"), size=64),
        index=tmp_path / "i.npz",
    )
    (answer,) = search([str(photographs / "query.jpg")])
    assert answer.matches[0].path.endswith("temple/0.png")


def test_an_index_of_something_else_is_refused(photographs, tmp_path):
    folder, path = photographs / "all", tmp_path / "i.npz"
    empty = PhotoIndex(os.path.realpath(folder), {"size": 64})

    def describe(paths):
        return np.ones((len(paths), 3), "float32"), np.ones((len(paths), 32), "uint8"), {}

    update_index(empty, path, describe)
    with pytest.raises(ValueError, match=r"size 64 instead of 96: name another file with --index"):
        open_index(path, folder, {"size": 96})
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"i.npz is the index of .*all, not of "):
        open_index(path, tmp_path / "other", {"size": 64})
    # Another folder whose files have the same names, as cameras give them.
    names = shutil.copytree(folder, tmp_path / "names")
    for photograph in names.rglob("*.*"):
        photograph.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"i.npz is the index of .*all, not of "):
        open_index(path, names, {"size": 64})
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert len(open_index(path, moved, {"size": 64}).files) == 5
    np.savez(path, listing=np.frombuffer(b'{"format": 1, "files": [[1]]}', "uint8"))
    with pytest.raises(ValueError, match="is no index of photographs"):
        open_index(path, folder, {})
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        open_index(path, folder, {})


def test_a_strip_is_described_by_its_middle():
    strip = np.zeros((2, 900, 3), "uint8")
    strip[:, 446:454] = 200
    fitted = _fitted(strip, 64)
    assert fitted.shape == (64, 256, 3)
    assert (fitted == 200).all()
    assert _fitted(np.zeros((50, 75, 3), "uint8"), 64).shape == (64, 96, 3)


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "{query}"], "nowhere is no folder: the folder to search comes first"),
        (["{folder}"], "search needs a folder, and at least one photograph to compare"),
        (["{folder}", "nothing.jpg"], "nothing.jpg: no such image file or folder"),
        (["{folder}", "{query}", "--top", "0"], "--top must be at least 1, not 0"),
        (["{folder}", "{query}", "--size", "16"], "size must be at least 32 pixels, not 16"),
        (["{folder}", "{query}", "--pooling", "sum"], "invalid choice"),
        (["{folder}", "{query}", "--picture", "p.jpg"], "--picture p.jpg must end in .png"),
        (["{folder}", "{query}", "--whitening", "no.npz"], "No such file or directory: 'no.npz'"),
        (["{folder}", "{query}", "--weights", "no.h5"], "no weight file at no.h5"),
        (["{folder}", "{folder}/cut.jpg"], "no query can be read; the first is "),
        (["{folder}", "{query}", "--layer", "block6_pool"], "has no layer 'block6_pool'"),
        (["{one}", "{one}/0.png"], "has no other photograph than the query: nothing found"),
        (["{empty}", "{query}"], "has no image (JPEG, PNG, BMP, GIF, WebP) at any depth"),
    ],
)
def test_searches_that_make_no_sense(weights, photographs, tmp_path, capfd, arguments, message):
    places = {"folder": photographs / "all", "query": photographs / "query.jpg", "empty": tmp_path}
    places["one"] = tmp_path / "one"
    if "{one}" in arguments:
        places["one"].mkdir()
        shutil.copy(photographs / "all" / "temple" / "0.png", places["one"])
    arguments = [argument.format(**places) for argument in arguments]
    if "--weights" not in arguments:
        arguments += ["--weights", str(weights)]
    if "--size" not in arguments:
        arguments += ["--size", "64"]
    assert cli.main(["search", *arguments]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("keras-vgg: error")]
    assert message in line


@pytest.mark.slow
def test_large_images_come_in_small_batches(weights, photographs, tmp_path, monkeypatch):
    batches = []

    def stand_in(network, images, batch_size, **_):
        batches.append(batch_size)
        return np.ones((len(images), 4), "float32")

    network = SimpleNamespace(inputs=[SimpleNamespace(shape=(None, None, None, 3))])
    monkeypatch.setattr(similar, "embed", stand_in)
    monkeypatch.setattr(similar, "base_network", lambda *_: network)
    for size in (64, 224, 448, 1024):
        PhotoSearch(
            photographs / "all",
            Description(str(weights), size=size),
            index=tmp_path / f"{size}.npz",
        )
    assert batches == [16, 16, 4, 1]


def test_the_index_states_the_bits_of_16_bit_files(weights):
    """Indexes of earlier versions, which decoded all 16, stay valid."""
    assert "bit_depth" not in Description(str(weights)).settings
    assert Description(str(weights), bit_depth="12").settings["bit_depth"] == "12"


@pytest.mark.slow
def test_a_search_in_16_bit_files(weights, tmp_path, capfd):
    for name in ("a", "b", "c"):
        values = np.random.default_rng(ord(name)).integers(0, 4096, (64, 64), "uint16")
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    arguments = ["search", str(tmp_path), str(tmp_path / "a.png"), *options(weights)]
    arguments += ["--index", str(tmp_path / "i.npz")]
    assert cli.main(arguments) == 0
    assert "4 of 4 16-bit files that were looked at use few" in capfd.readouterr().err
    assert cli.main([*arguments, "--bit-depth", "12"]) == 2
    assert "is an index with bit_depth None instead of '12'" in capfd.readouterr().err
    (tmp_path / "i.npz").unlink()
    assert cli.main([*arguments, "--bit-depth", "12"]) == 0
    capfd.readouterr()
    assert cli.main(arguments) == 2
    assert "is an index with bit_depth '12' instead of None" in capfd.readouterr().err


def test_a_picture_of_many_photographs_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(search_answers, "_MOST_DRAWN", 2)
    matches = tuple(Match(f"{i}.png", 0.5, 100, False) for i in range(3))
    answers = [SearchAnswer(f"q{i}.jpg", matches) for i in range(4)]
    read, lines = [], []

    def load(path):
        read.append(path)
        return np.zeros((1500, 1000, 3), "uint8")

    search_answers.draw_search(answers, load, tmp_path / "a.png", on_line=lines.append)
    assert read == ["q0.jpg", "0.png", "1.png", "q1.jpg", "0.png", "1.png"]
    assert lines == [
        f"{tmp_path / 'a.png'} shows the first 2 of 4 queries",
        f"{tmp_path / 'a.png'} shows the first 2 of 3 photographs of a query",
    ]
    assert search_answers._small(load("")).shape == (225, 150, 3)


def test_dollars_in_the_names_of_files_are_no_formula(tmp_path):
    answers = [SearchAnswer("$x_$.jpg", (Match("$5_$.png", 0.5, 100, False),))]
    search_answers.draw_search(answers, lambda path: np.zeros((9, 9, 3), "u1"), tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_names_that_the_font_cannot_write_have_no_boxes(tmp_path):
    cat = "\N{CJK UNIFIED IDEOGRAPH-732B}.jpg"
    answers = [SearchAnswer(cat, (Match(cat, 0.5, 100, False),))]
    image = np.zeros((9, 9, 3), "u1")
    search_answers.draw_search(answers, lambda _: image, tmp_path / "a.png")  # and no warning
    assert (tmp_path / "a.png").is_file()
    assert plotting.drawable(f"été, {cat}\n0.5") == "été, ?.jpg\n0.5"


def test_files_are_read_by_as_many_threads_as_the_process_has_cores(monkeypatch):
    asked = []

    def pool(threads):
        asked.append(threads)
        return ThreadPoolExecutor(threads)

    for module in (similar, predictor):
        monkeypatch.setattr(module, "own_cores", lambda: 3)
        monkeypatch.setattr(module, "ThreadPoolExecutor", pool)
    bad = SimpleNamespace(_image_or_reason=lambda path: "bad")
    assert PhotoSearch._describe(bad, ["a.png"])[2] == {"a.png": "bad"}
    assert list(predictor.Predictor.stream(SimpleNamespace(), [])) == []
    assert asked == [3, 3]


def test_near_duplicates_come_before_more_similar_photographs(tmp_path):
    files = [SimpleNamespace(path=name) for name in ("other.png", "copy.png", "query.png")]
    hashes = np.stack([np.full(32, value, np.uint8) for value in (0xF0, 0x0F, 0x0F)])
    search = SimpleNamespace(
        _whitening=None,
        _folder=str(tmp_path),
        _descriptors=np.array([[0.9], [0.5], [1.0]], np.float32),
        index=SimpleNamespace(files=files, hashes=hashes),
    )
    query = str(tmp_path / "query.png")
    found = PhotoSearch._matches(search, query, np.ones((1, 1)), [hashes[2]], 2)
    assert [(os.path.basename(m.path), m.near_duplicate) for m in found] == [
        ("copy.png", True),
        ("other.png", False),
    ]


def test_queries_are_a_list(tmp_path):
    search = PhotoSearch.__new__(PhotoSearch)
    with pytest.raises(ValueError, match="files must be a list: put 'cat"):
        list(search("cat.jpg"))
