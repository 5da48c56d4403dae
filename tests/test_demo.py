"""The page: its answers are the library's, no picture gets a message, and it stays local."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import gradio_client
import httpx
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import cli, demo, explain, runs
from keras_vgg.demo.answer import Examples, TimeLimit
from keras_vgg.demo.guard import require_upload
from keras_vgg.demo.server import _bound_socket
from keras_vgg.explain.heat import resized
from keras_vgg.files import sha256_of
from keras_vgg.fit import Run
from tests.test_fit import TINY

CHROMIUM = Path("/usr/bin/chromium")
LIMIT = 2**20  # max_upload_mb=1


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "a &lt;run"
    return Run.open(shutil.copytree(tiny_run.directory, folder))


@pytest.fixture(scope="module")
def reached():
    """The addresses that this process connects to, from before Gradio is imported."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        connect = socket.socket.connect

        def recorded(self, address):
            found.append(address)
            return connect(self, address)

        patch.setattr(socket.socket, "connect", recorded)
        yield found


@pytest.fixture(scope="module")
def url(run, reached):
    with demo.serving(run, port=0, max_upload_mb=1) as address:
        yield address


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    with contextlib.closing(
        gradio_client.Client(url, verbose=False, analytics_enabled=False, download_files=folder)
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM)


def pixels(height=40, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def bomb():
    """A PNG of 60000 x 60000 pixels in a kilobyte."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def save(path, kind="whole"):
    """One of many kinds of picture; its sides as it is to be seen, (height, width)."""
    image = Image.fromarray(pixels())
    if kind == "sixteen":
        image = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 256)
    options = {}
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x112] = 6
    if kind == "animated":
        options = {"save_all": True, "append_images": [Image.fromarray(255 - pixels())]}
    image = {"palette": lambda: image.convert("P"), "cmyk": lambda: image.convert("CMYK")}.get(
        kind, lambda: image
    )()
    image.save(path, **options)
    return (60, 40) if kind == "turned" else (40, 60)


GOOD = {
    "whole": "a.png",
    "turned": "b.jpg",
    "animated": "c.gif",
    "sixteen": "d.png",
    "palette": "e.png",
    "cmyk": "f.jpg",
    "web": "g.webp",
    "bmp": "h.bmp",
}
BAD = {
    "text.png": (b"no picture", "not a JPEG, PNG, BMP, GIF or WebP image"),
    "<b>.png": (b"no picture", "not a JPEG, PNG"),
    "empty.jpg": (b"", "the file is empty"),
    "bomb.png": (bomb(), "more than 25,000,000 pixels: height 60000, width 60000"),
    "cut.jpg": (None, "Invalid JPEG data"),
}


def bad(folder, name):
    content, message = BAD[name]
    path = folder / name
    if content is None:
        save(path)
        content = path.read_bytes()[:900]
    path.write_bytes(content)
    return path, message


def asked(client, path):
    """(the heat as an array or None, the text of the answer)."""
    _, heat, text = client.predict(gradio_client.handle_file(path), api_name="/classify")
    if heat is not None:
        heat = np.asarray(Image.open(heat["value"] if isinstance(heat, dict) else heat))
    return heat, text


def in_order(text, *parts):
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


# Decoding itself is tested elsewhere: the page shows some kinds of all.
@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k not in ("whole", "turned"))) for k in GOOD],
)
def test_a_picture_gets_its_classes_and_heat_of_its_size(run, client, tmp_path, kind):
    path = tmp_path / GOOD[kind]
    sides = save(path, kind)
    heat, text = asked(client, path)
    ((*expected,),) = runs.predict_files(run, [path])
    assert heat.shape == (*sides, 3)
    assert f"{path.name}, {sides[1]} x {sides[0]} pixels" in text
    assert len(expected) == 5
    assert text.count('scope="row"') == 5
    assert in_order(text, *(f'scope="row">{name}<' for name, _ in expected))
    assert in_order(text, *(f">{share:.2%}</td>" for _, share in expected[:1]))


@pytest.fixture
def without_heat(monkeypatch):
    """The tests that use it look at the classes; to compute heat takes 2 s."""
    monkeypatch.setattr(explain, "grad_cam", lambda model, images, **_: np.zeros(images.shape[:3]))


@pytest.mark.slow
@pytest.mark.usefixtures("without_heat")
def test_a_calibrated_run_answers_as_predict_does(varied_run, tmp_path):
    run = Run.open(shutil.copytree(varied_run.directory, tmp_path / "run"))
    path = tmp_path / GOOD["whole"]
    save(path, "whole")
    before = demo.Answerer(run).of_file(path).classes
    digest = sha256_of(run.model_path)
    calibration = {"temperature": 2.0, "thresholds": {}, "model_sha256": digest}
    run.write_json("calibration.json", calibration)
    ((*expected,),) = runs.predict_files(run, [path])
    answered = demo.Answerer(run).of_file(path).classes
    assert [name for name, _ in answered] == [name for name, _ in before]
    assert answered != before
    np.testing.assert_allclose([p for _, p in answered], [p for _, p in expected], atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("without_heat")
def test_a_run_with_several_labels_answers_as_predict_does(varied_run, tmp_path):
    from keras_vgg.demo.page import _table as page_table  # late: it imports Gradio

    run = Run.open(shutil.copytree(varied_run.directory, tmp_path / "run"))
    run.write_json("data.json", run.read_json("data.json") | {"several_labels": True})
    path = tmp_path / GOOD["whole"]
    save(path, "whole")
    (answered,) = runs.Predictor(run)([path])
    assert "0.5 on" in demo.Answerer(run).notes[0]
    probabilities = dict(answered.ranked(None))
    # The least probable label has the lowest threshold, and the most probable one a higher.
    *_, last = probabilities
    thresholds = dict.fromkeys(run.class_names, 1.0) | {last: probabilities[last] / 2}
    kept = {"validation": [thresholds[name] for name in run.class_names]}
    digest = sha256_of(run.model_path)
    run.write_json("thresholds.json", {"model_sha256": digest, "thresholds": kept})
    (answered,) = runs.Predictor(run)([path])
    answer = demo.Answerer(run).of_file(path)
    assert answer.thresholds is not None
    has = [
        name
        for (name, share), threshold in zip(answer.classes, answer.thresholds, strict=True)
        if share >= threshold
    ]
    assert has == [name for name, _ in answered.labels] == [last]
    assert len(answer.classes) == 6  # the five best, and the label that the picture has
    html = page_table("a.png", answer)
    assert f"<caption>a.png; labels: {last}</caption>" in html
    assert html.count("class=best") == 1
    assert html.count("100.00%") == 5
    none = answer._replace(thresholds=[1.0] * 6)
    assert "<caption>a.png; no label</caption>" in page_table("a.png", none)
    assert page_table("a.png", none._replace(thresholds=None)).count("class=best") == 1


@pytest.fixture(scope="module")
def answerer(run):
    return demo.Answerer(run, "block1_conv1")


def test_the_heat_is_grad_cams_of_what_the_network_saw(answerer, monkeypatch):
    image = pixels(48, 96)
    # A network of one epoch has no heat of its own.
    heat = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    asked = []

    def grad_cam(model, images, layer, classes):
        asked.append((images.shape, layer))
        return heat[np.newaxis]

    monkeypatch.setattr(explain, "grad_cam", grad_cam)
    answer = answerer.of_image(image)
    assert asked == [((1, 32, 32, 3), "block1_conv1")]
    # Of 48 x 96, rescaled to 36 x 72, evaluation sees the middle 32 x 32; the rest is not seen.
    placed = np.full((48, 96), np.nan, np.float32)
    placed[3:45, 27:69] = resized(heat, (42, 42))
    np.testing.assert_array_equal(answer.heat, explain.overlay(image, placed))
    assert answer.seen == 42 * 42 / (48 * 96)


def test_too_little_memory_is_a_message_on_the_page(answerer, monkeypatch):
    from keras_vgg.demo.page import _heat_and_table  # late: it imports Gradio

    def too_large(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(explain, "grad_cam", too_large)
    heat, text = _heat_and_table("a.png", lambda: answerer.of_image(pixels()))
    assert heat is None
    assert "a.png</b>: the memory is too small: end what else" in text
    assert "choose a smaller picture (OOM when allocating)" in text


@pytest.mark.parametrize("sides", [(1, 100_000), (30_000, 1), (1, 1), (7, 90)])
def test_a_picture_of_any_shape(answerer, sides):
    answer = answerer.of_image(np.zeros((*sides, 3), np.uint8))
    assert answer.heat.shape == (*sides, 3)


@pytest.mark.slow
def test_how_much_of_a_picture_the_network_saw(client, tmp_path):
    Image.fromarray(pixels(1, 1000)).save(tmp_path / "line.png")
    assert (
        "1000 x 1 pixels, of which the network saw the middle 0.1%"
        in asked(client, tmp_path / "line.png")[1]
    )
    Image.fromarray(pixels(32, 32)).save(tmp_path / "square.png")
    assert "32 x 32 pixels</caption>" in asked(client, tmp_path / "square.png")[1]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("text.png", "empty.jpg")))
        for name in BAD
        if os.name != "nt" or "<" not in name
    ],
)
def test_no_picture_gets_a_message_and_the_next_one_its_answer(client, tmp_path, name, capfd):
    path, message = bad(tmp_path, name)
    heat, text = asked(client, path)
    assert heat is None
    assert 'role="alert"' in text
    assert message in text
    assert "<b>.png" not in text
    assert tempfile.gettempdir() not in text
    save(tmp_path / "next.png")
    assert asked(client, tmp_path / "next.png")[0].shape == (40, 60, 3)
    err = capfd.readouterr().err
    assert "Traceback" not in err, err


@pytest.mark.slow
def test_a_large_photograph(client, tmp_path):
    Image.fromarray(np.zeros((900, 1400, 3), np.uint8)).save(tmp_path / "large.png")
    assert asked(client, tmp_path / "large.png")[0].shape == (900, 1400, 3)


def upload(url, name, content):
    with httpx.Client(trust_env=False) as http:
        return http.post(f"{url}/gradio_api/upload", files={"files": (name, content)})


def test_an_upload_over_the_limit_is_refused(url):
    assert upload(url, "a.png", bytes(LIMIT + 1)).status_code == 413
    assert upload(url, "a.png", bytes(LIMIT - 1)).status_code == 200


def everything_uploaded():
    """The files that the pages of this process keep."""
    return sorted(p for p in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if p.is_file())


@pytest.mark.parametrize("told", [True, False], ids=["content-length", "chunked"])
def test_a_request_over_the_limit_is_refused(url, told):
    # Two files, each under it; with what a form may have besides, the body is a little too large.
    form = httpx.Request(
        "POST",
        f"{url}/gradio_api/upload",
        files=[("files", ("a.png", bytes(LIMIT - 7))), ("files", ("b.png", bytes(2**16)))],
    )
    body, before = form.read(), everything_uploaded()
    with httpx.Client(trust_env=False) as http:
        answer = http.post(
            form.url,
            content=body if told else iter([body]),
            headers={"content-type": form.headers["content-type"]},
        )
        assert answer.status_code == 413
        assert "content-security-policy" in answer.headers
        # No form, and nobody reads it: neither is kept.
        data = b'{"data": ["' + bytes(LIMIT + 2**16) + b'"]}'
        assert http.post(f"{url}/gradio_api/call/classify", content=data).status_code == 413
    assert everything_uploaded() == before


def status(url, method="GET", path="/config", **headers):
    with httpx.Client(trust_env=False) as http:
        return http.request(method, url + path, headers=headers).status_code


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_this_machines_names_are_answered(url, name):
    for host in (name, f"{name}:7860", f"{name}:1"):
        assert status(url, host=host) == 200
        assert status(url, host=host, origin=f"http://{host}") == 200


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "evil.example", "localhost.evil.example", "127.0.0.2", "::1", ""]
)
def test_another_name_for_this_machine_is_refused(url, host):
    assert status(url, host=host) == 403
    assert status(url, host=host, origin=f"http://{host}") == 403
    # As a websocket is asked for.
    asked = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert status(url, host=host, **asked, **{"sec-websocket-key": "a" * 22 + "=="}) == 403


ORIGINS = ["http://evil.example", "http://localhost:1", "http://localhost", "null", ""]


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_page_of_another_site_is_refused(url, origin):
    port = httpx.URL(url).port
    here = {"host": f"localhost:{port}"}
    before = everything_uploaded()
    assert status(url, origin=origin, **here) == 403
    assert status(url, "OPTIONS", origin=origin, **here) == 403
    with httpx.Client(trust_env=False, headers={**here, "origin": origin}) as http:
        files = {"files": ("cross.png", b"content of another site")}
        assert http.post(f"{url}/gradio_api/upload", files=files).status_code == 403
    assert everything_uploaded() == before
    assert status(url, origin=f"http://localhost:{port}", **here) == 200
    # Where TLS ends at a proxy.
    assert status(url, origin=f"https://localhost:{port}", **here) == 200


@pytest.mark.parametrize(
    ("host", "address", "refused"),
    [
        ("::1", "::1", {"evil.example:1"}),
        ("Machine", "127.0.1.1", {"evil.example:1"}),
        ("0.0.0.0", "0.0.0.0", set()),
        ("192.0.2.1", "192.0.2.1", set()),
    ],
)
def test_whom_an_address_answers(host, address, refused):
    from fastapi.responses import PlainTextResponse
    from fastapi.testclient import TestClient

    from keras_vgg.demo.guard import Guard

    app = Guard(PlainTextResponse("here"), host=host, address=address, max_upload=1)
    known = f"[{address}]:1" if ":" in address else f"{address}:1"
    client = TestClient(app)
    for name in (known, f"{host}:1" if ":" not in host else known, "localhost", "evil.example:1"):
        got = client.get("/", headers={"host": name})
        assert got.status_code == (403 if name in refused else 200), name
    for origin in ORIGINS:
        assert client.get("/", headers={"host": known, "origin": origin}).status_code == 403
    assert client.get("/", headers={"host": known, "origin": f"http://{known}"}).text == "here"


def outcome(url, data):
    """What the queue says of a request that no page makes."""
    with httpx.Client(trust_env=False, timeout=30) as http:
        made = http.post(f"{url}/gradio_api/call/classify", json={"data": [data]})
        if made.status_code != 200:
            return made.text
        return http.get(f"{url}/gradio_api/call/classify/{made.json()['event_id']}").text


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def test_no_file_of_the_server_and_nothing_from_elsewhere(run, url, reached):
    secret = run.directory / "recipe.json"
    for path in (str(secret), "/etc/passwd", "../../etc/passwd", "http://192.0.2.1/a.png"):
        said = outcome(url, file_data(path, url="http://192.0.2.1/a.png"))
        assert said == "only uploaded files are read"
    with httpx.Client(trust_env=False) as http:
        for path in (secret, "/etc/passwd", Path("setup.cfg").resolve(), Path(__file__)):
            answer = http.get(f"{url}/gradio_api/file={path}")
            assert answer.status_code in (403, 404), path
        assert http.post(f"{url}/gradio_api/run/classify", json={"data": [None]}).is_error
    hosts = {a[0] for a in reached if isinstance(a, tuple)}
    assert hosts <= {"127.0.0.1", "::1", "localhost"}


def joined(url, **body):
    """The answer to a question that is put to Gradio's queue, as the page does it."""
    with httpx.Client(trust_env=False) as http:
        body = {"fn_index": 0, "session_hash": "x", **body}
        return http.post(f"{url}/gradio_api/queue/join", json=body)


def test_a_picture_of_the_server_is_neither_shown_nor_copied(url, tmp_path):
    private = tmp_path / "private.jpg"
    save(private)
    (uploaded,) = upload(url, "a.png", b"content").json()
    link = Path(uploaded).parent / "link.jpg"
    link.symlink_to(private)
    pipe = Path(uploaded).parent / "pipe.png"
    os.mkfifo(pipe)
    before = everything_uploaded()
    try:
        for path in (private, link, pipe, "/dev/zero", Path(uploaded).parent, "a\0b", 7, None):
            for more in ({}, {"is_stream": True}, {"orig_name": "a.jpg"}):
                given = path if isinstance(path, int | None) else str(path)
                answer = joined(url, data=[file_data(given, **more)])
                assert (answer.status_code, "uploaded files are read" in answer.text) == (
                    403,
                    True,
                ), path
        assert everything_uploaded() == before
        # What Gradio and the page make of a path that no guard has seen.
        for path in (private, link, pipe, Path("/dev/zero")):
            with pytest.raises(ValueError, match="only uploaded files"):
                require_upload(str(path), Path(uploaded).parents[1], LIMIT)
        with pytest.raises(ValueError, match="the file has 7 bytes; at most 6 are read"):
            require_upload(uploaded, Path(uploaded).parents[1], 6)
    finally:
        link.unlink()
        pipe.unlink()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"fn_index": 99}, 404),
        ({"fn_index": "classify"}, 404),
        ({"fn_index": True}, 404),
        ({"fn_index": None}, 404),
        ({"data": "a.png"}, 400),
        ({"data": [None] * 3}, 400),
        ({"data": [["nested"]]}, 403),
        ({"session_hash": 5}, 400),
        ({"event_data": {"index": "all"}, "fn_index": 1, "data": []}, 400),
        ({"event_data": ["index"], "fn_index": 1, "data": []}, 400),
        ({"event_data": {"index": 1}, "fn_index": 1, "data": []}, 400),
        ({"fn_index": 1, "data": []}, 400),
        ({"data": []}, 400),
        # There is no such example, which the answer says.
        ({"event_data": {"index": 10**9, "value": 0}, "fn_index": 1, "data": []}, 200),
    ],
    ids=str,
)
def test_what_no_page_asks_is_refused_without_a_traceback(url, body, status, capfd):
    assert joined(url, **{"data": [None], **body}).status_code == status
    err = capfd.readouterr().err
    assert "Traceback" not in err, err


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 30_000, b"\xff"])
def test_a_body_that_is_no_question(url, content, capfd):
    with httpx.Client(trust_env=False) as http:
        answer = http.post(f"{url}/gradio_api/queue/join", content=content)
    assert answer.status_code in (400, 404)
    err = capfd.readouterr().err
    assert "Traceback" not in err, err


def random_value(random, private, depth=0):
    """Anything that JSON can hold, the paths of files that are no uploads often among it."""
    paths = (str(private), "/dev/zero", "/etc/passwd", "../a.png", f"file://{private}", "a\0b")
    kinds = ["path", "file", "text", "number", "constant", "list", "object"]
    kind = random.choice(kinds[: 5 if depth > 3 else 7])
    if kind == "path":
        return str(random.choice(paths))
    if kind == "file":
        more = {"url": str(random.choice(paths)), "is_stream": bool(random.integers(2))}
        return file_data(str(random.choice(paths)), **more)
    if kind == "text":
        return "".join(map(chr, random.integers(0, 0xD7FF, random.integers(0, 30))))
    if kind == "number":
        return [0, 1, -1, 2.5, 10**30, 1e308][random.integers(6)]
    if kind == "constant":
        return [None, True, False][random.integers(3)]
    values = [random_value(random, private, depth + 1) for _ in range(random.integers(0, 4))]
    if kind == "list":
        return values
    names = ("path", "url", "meta", "_type", "data", "index", "a")
    return {str(random.choice(names)): value for value in values}


@pytest.mark.slow
def test_random_questions_show_no_file_and_do_no_harm(url, client, tmp_path, capfd):
    random = np.random.default_rng(0)
    private = tmp_path / "private.jpg"
    save(private)
    before = everything_uploaded()
    with httpx.Client(trust_env=False) as http:
        for number in range(1500):
            body = {"fn_index": 0, "session_hash": "x", "data": [None]}
            for name in random.choice(["fn_index", "session_hash", "data", "event_data"], 2):
                body[str(name)] = random_value(random, private)
            content = json.dumps(body).encode()
            if number % 3 == 0:  # flipped bytes
                changed = bytearray(content)
                for place in random.integers(0, len(changed), 3):
                    changed[place] ^= 1 << int(random.integers(8))
                content = bytes(changed)
            answer = http.post(f"{url}/gradio_api/queue/join", content=content)
            assert answer.status_code < 500, content
            assert private.read_bytes()[:64] not in answer.content, content
    assert everything_uploaded() == before
    assert "Traceback" not in capfd.readouterr().err
    save(tmp_path / "next.png")
    assert asked(client, tmp_path / "next.png")[0].shape == (40, 60, 3)


@pytest.mark.parametrize(
    "path",
    [
        *("/openapi.json", "/gradio_api/openapi.json", "/docs", "/monitoring", "/?deep_link=a"),
        *("/gradio_api/vibe-code", "/gradio_api/proxy=http://192.0.2.1/a", "/gradio_api/app_id"),
        *("/gradio_api/stream/a/b/1/playlist-file", "/gradio_api/custom_component/a/b/c/d"),
        "/gradio_api/call/unknown/1",
    ],
)
def test_addresses_that_the_page_does_not_need(url, path):
    assert status(url, path=path) == 404
    assert status(url, "POST", path=path) == 404


def test_posts_that_the_page_does_not_make(url, capfd):
    paths = ("run/classify", "api/classify", "call/unknown", "call/v2/classify", "vibe-edit")
    for path in (*paths, "component_server", "process_recording", "login", "run-history/connect"):
        assert status(url, "POST", path=f"/gradio_api/{path}") == 404, path
    err = capfd.readouterr().err
    assert "Traceback" not in err, err


def test_no_part_of_an_answer_waits_for_the_client():
    """A connection sends what it has at once: TCP's default holds small parts back for 40 ms."""
    with (
        _bound_socket("127.0.0.1", 0) as bound,
        socket.create_connection(bound.getsockname()),
        bound.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.slow
def test_all_uploads_together_are_limited(run, tmp_path, monkeypatch):
    from keras_vgg.demo import guard

    monkeypatch.setattr(guard, "_UPLOADS", 3)
    module = importlib.import_module("keras_vgg.demo.server")
    monkeypatch.setattr(module, "_SHARED_FOLDER", module._SharedFolder())  # no other test's uploads
    with demo.serving(run, port=0, max_upload_mb=1, examples=0) as address:
        for count in range(4):
            name = f"{count}.png"
            kept = upload(address, name, bytes([count]) * (LIMIT - 9)).status_code
            assert kept == (200 if count < 3 else 503)
        assert status(address) == 200


@pytest.mark.slow
def test_an_answer_has_a_time_limit_and_the_next_one_waits_for_it():
    limit, release = TimeLimit(0.5), threading.Event()
    with pytest.raises(ValueError, match="there was no answer within"):
        limit.ask(lambda: release.wait(60))
    with pytest.raises(ValueError, match="an earlier picture is still being classified"):
        limit.ask(lambda: "never begun")
    release.set()
    assert TimeLimit(60).ask(lambda: "answer") == "answer"
    with pytest.raises(OSError, match="the question's own"):
        TimeLimit(60).ask(lambda: (_ for _ in ()).throw(OSError("the question's own")))


STUCK = """
import sys, time
from keras_vgg import hardware
hardware.prepare_environment()
from keras_vgg.demo import answer, serve
from keras_vgg.files import sha256_of
from keras_vgg.fit import Run
answer.Answerer.of_file = lambda self, path: (print("asked", flush=True), time.sleep(3600))
serve(Run.open(sys.argv[1]), port=0, announce=lambda address: print(address, flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a process gets no such signals on Windows")
def test_sigterm_ends_it_while_an_answer_takes_for_ever(run, tmp_path):
    command = [sys.executable, "-c", STUCK, str(run.directory)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        address = process.stdout.readline().strip()
        (uploaded,) = upload(address, "a.png", b"content").json()
        assert joined(address, data=[file_data(uploaded)]).status_code == 200
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert not [*tmp_path.glob("keras-vgg-demo-*")]


def test_what_the_page_is_told(url):
    with httpx.Client(trust_env=False) as http:
        answer = http.get(url)
        config = http.get(f"{url}/config").json()
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert config["analytics_enabled"] is False
    assert config["max_file_size"] == LIMIT
    assert config["footer_links"] == []
    assert {d["queue"] for d in config["dependencies"]} == {True}


@pytest.mark.slow
def test_nothing_is_left_by_pages_that_overlap(run, tmp_path, monkeypatch):
    module = importlib.import_module("keras_vgg.demo.server")
    monkeypatch.setattr(module, "_SHARED_FOLDER", module._SharedFolder())  # no other test's
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "as it was"))
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    with second:
        with first:
            urls = [s.enter_context(demo.serving(run, port=0, examples=2)) for s in (first, second)]
            for url, name in zip(urls, ("a.png", "b.png"), strict=True):
                assert upload(url, name, b"content").status_code == 200
                assert [p for p in tmp_path.glob(f"keras-vgg-demo-*/**/{name}") if p.is_file()]
        assert [p for p in tmp_path.glob("keras-vgg-demo-*/**/b.png") if p.is_file()]
        assert upload(urls[1], "c.png", b"content").status_code == 200
    assert not [*tmp_path.glob("keras-vgg-demo-*")]  # TensorFlow has files of its own here
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "as it was")


def test_examples(run):
    examples = Examples(run, 3)
    assert [image.shape for image, _ in examples.thumbnails] == [(8, 8, 3)] * 3
    np.testing.assert_array_equal(examples[1], examples.thumbnails[1][0])
    for index in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            examples[index]
    assert Examples(run, 0).thumbnails == []


def test_examples_download_and_prepare_nothing(monkeypatch):
    asked = []

    def load_source(recipe, bad):
        asked.append((recipe.source, recipe.data_dir, recipe.download, recipe.manual_dir, bad))
        raise ValueError("not prepared")

    monkeypatch.setattr("keras_vgg.demo.answer.load_source", load_source)
    recipe = TINY.replace(source="tfds:cifar10", data_dir="d", download=True, manual_dir="m")
    recipe = recipe.replace(on_bad_image="skip")  # which would decode all images
    assert Examples(SimpleNamespace(recipe=recipe), 3).thumbnails == []
    assert asked == [("tfds:cifar10", "d", False, None, "error")]


def test_no_examples_of_other_images_than_those_of_the_run(run):
    described = run.read_json("data.json")
    described["splits"]["train"]["images"] -= 1  # a damaged one was skipped
    changed = SimpleNamespace(recipe=run.recipe, read_json=lambda name: described)
    assert Examples(changed, 3).thumbnails == []


def test_the_page_does_not_say_where_the_images_are():
    from keras_vgg.demo.page import _about  # late: it imports Gradio

    recipe = TINY.replace(source="folder:/home/me/patients")
    run = SimpleNamespace(recipe=recipe, results={}, class_names=("a", "b"), finished=False)
    assert "Trained on folder:patients, 2 classes" in _about(run, "a title", ())


# In the browser.


@pytest.fixture
def opened(browser, url):
    """A function: a page of a width, and what it asked for and complained of."""
    with contextlib.ExitStack() as stack:

        def opening(width=1280, **options):
            context = browser.new_context(viewport={"width": width, "height": 900}, **options)
            stack.callback(context.close)
            page = context.new_page()
            seen, complaints = [], []
            page.on("request", lambda request: seen.append(request.url))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda m: complaints.append(m.text) if m.type == "error" else None,
            )
            page.goto(url)
            page.get_by_label("File upload").wait_for(state="attached")
            return page, seen, complaints

        yield opening


def drop(page, path):
    """Upload, and wait for the answer to this file."""
    page.get_by_label("File upload").set_input_files(path)
    page.locator(".vgg-answer", has_text=path.name).first.wait_for()


def test_a_picture_in_the_browser(run, url, opened, tmp_path):
    page, seen, complaints = opened()
    assert page.title() == "VGG, configuration A: a &lt;run"
    assert page.locator("h1").inner_text() == page.title()
    path = tmp_path / "turned.jpg"
    save(path, "turned")
    drop(page, path)
    ((*expected,),) = runs.predict_files(run, [path])
    rows = page.locator(".vgg-answer tbody tr").all_inner_texts()
    assert [tuple(row.split()) for row in rows] == [(n, f"{share:.2%}") for n, share in expected]
    heat = page.get_by_alt_text(
        f"turned.jpg with bright places where it speaks for {expected[0][0]}"
    )
    heat.wait_for()
    assert heat.evaluate("i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])") == [
        40,
        60,
    ]
    # Another in its place, that is none; then one of the run's.
    drop(page, bad(tmp_path, "bomb.png")[0])
    assert "more than 25,000,000 pixels" in page.get_by_role("alert").inner_text()
    heat.wait_for(state="detached")
    page.get_by_label("Thumbnail 2 of 6").click()
    page.get_by_text("example 2, 8 x 8 pixels").wait_for()
    assert {u for u in seen if not u.startswith((f"{url}/", "data:", "blob:"))} == set()
    assert complaints == []


@pytest.mark.slow
def test_what_the_page_itself_refuses(opened, tmp_path):
    page, _, complaints = opened()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "big.png").write_bytes(bytes(LIMIT + 1))
    page.get_by_label("File upload").set_input_files(tmp_path / "notes.txt")
    page.get_by_text("Invalid file type: notes.txt").wait_for()
    page.get_by_label("File upload").set_input_files(tmp_path / "big.png")
    page.get_by_text("exceed the maximum allowed size of 1.0 Mb").wait_for()
    save(tmp_path / "next.png")
    drop(page, tmp_path / "next.png")
    assert page.locator(".vgg-answer tbody tr").count() == 5
    # Gradio's page asks how far an upload is that it has refused itself.
    assert [c for c in complaints if "404" not in c and c != "Response"] == []


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_a_phone(opened, tmp_path, scheme):
    page, _, complaints = opened(390, color_scheme=scheme)
    path = tmp_path / ("a_long_name_without_a_place_to_break_it" * 3 + ".png")
    save(path)
    drop(page, path)
    page.get_by_label("Thumbnail 6 of 6").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") == (scheme == "light")
    assert complaints == []


# The command.


def error_of(capsys, *arguments):
    assert cli.main(["demo", *map(str, arguments)]) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_input(run, tmp_path, capsys):
    assert "is not a run directory" in error_of(capsys, tmp_path)
    assert "port must be in [0, 65535]" in error_of(capsys, run.directory, "--port", 65536)
    assert "max_upload_mb must be 1" in error_of(capsys, run.directory, "--max-upload-mb", 0)
    assert "block9" in error_of(capsys, run.directory, "--port", 0, "--layer", "block9")
    assert "nowhere.invalid, port 0" in error_of(
        capsys, run.directory, "--port", 0, "--host", "nowhere.invalid"
    )


def test_a_port_in_use(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = error_of(capsys, run.directory, "--port", port)
    assert f"127.0.0.1, port {port}: " in said
    assert "--port 0 takes a free port" in said
    if os.name != "nt":  # there it is said in other words
        assert "Address already in use" in said


@pytest.mark.slow
def test_without_gradio(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'keras-vgg[demo]'" in error_of(capsys, run.directory, "--port", 0)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a process gets no such signals on Windows")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_ends_it_and_leaves_nothing(run, tmp_path, number, status):
    command = [sys.executable, "-m", "keras_vgg.cli", "demo", str(run.directory), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        # A background process of a shell, and so xdist's workers, may ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        assert upload(address, "a.png", b"content").status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (out, err, process.returncode) == ("", "", status)
    assert not [*tmp_path.glob("keras-vgg-demo-*")]
