"""Fetching published checkpoints, against a server of our own; nothing leaves the machine."""

import dataclasses
import errno
import hashlib
import io
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import keras
import pytest
from huggingface_hub import constants

from keras_vgg.weights.download import fetch
from keras_vgg.weights.published import CHECKPOINTS
from tests.hub import in_place_of_the_hub

PAYLOAD = b"weights of a network " * 5000
MD5 = f"md5:{hashlib.md5(PAYLOAD).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(PAYLOAD).hexdigest()}"
REPOSITORY = "timm/vgg11.tv_in1k"
FILE = "vgg.h5"
COMMIT = "c" * 40


class Server(ThreadingHTTPServer):
    """Serves `payload` under every known path, as a plain host does and as the hub does."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.payload = PAYLOAD
        self.etag = hashlib.sha256(PAYLOAD).hexdigest()
        self.paths = {f"/{FILE}", f"/{REPOSITORY}/resolve/main/model.safetensors"}
        self.cuts: list[int] = []
        """After how many bytes each of the next GETs is cut."""
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path not in self.server.paths:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            return b""
        size = len(self.server.payload)
        resumed = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(resumed[1]) if resumed else 0
        self.send_response(206 if resumed else 200)
        if resumed:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        if "/resolve/" in self.path:
            self.send_header("X-Repo-Commit", COMMIT)
            # A large file: its own SHA-256 is in the linked etag.
            self.send_header("ETag", '"pointer"')
            self.send_header("X-Linked-Etag", f'"{self.server.etag}"')
            self.send_header("X-Linked-Size", str(size))
        self.end_headers()
        return self.server.payload[start:]

    def do_GET(self):
        body = self.do_HEAD()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server, and empty caches of Keras and the hub in tmp_path."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    # test_cache_variables sets the variables of the environment.
    with Server() as server, in_place_of_the_hub(server, server.url, tmp_path, monkeypatch):
        yield server


@pytest.fixture
def keras_checkpoint(server):
    published = next(c for c in CHECKPOINTS if not c.on_hub)
    return dataclasses.replace(published, location=f"{server.url}/{FILE}", file=FILE, hash=MD5)


@pytest.fixture
def hub_checkpoint(server):
    published = next(c for c in CHECKPOINTS if c.location == REPOSITORY)
    return dataclasses.replace(published, hash=SHA256)


@pytest.fixture(params=["keras", "hub"])
def checkpoint(request):
    """A checkpoint of either kind, on the server."""
    return request.getfixturevalue(f"{request.param}_checkpoint")


def kept(folder: Path) -> list[str]:
    """The files under a folder, but for the hub cache's book-keeping."""
    books = {"refs", ".locks", ".no_exist", "CACHEDIR.TAG"}
    paths = (p for p in folder.rglob("*") if not p.is_dir())
    return sorted(p.name for p in paths if not books & set(p.parts))


def gets(server: Server) -> int:
    return sum(request.startswith("GET") for request in server.requests)


def test_download_then_cache(checkpoint, server, tmp_path):
    path = fetch(checkpoint)
    assert path.read_bytes() == PAYLOAD
    assert path.is_relative_to(tmp_path)
    assert gets(server) == 1
    assert set(kept(tmp_path)) <= {checkpoint.file, server.etag}
    server.requests.clear()
    assert fetch(checkpoint) == path
    assert server.requests == []


def test_keras_file_is_where_keras_applications_keeps_it(keras_checkpoint, server, tmp_path):
    path = tmp_path / "models" / FILE
    cached = keras.utils.get_file(
        FILE, keras_checkpoint.location, cache_dir=tmp_path, cache_subdir="models"
    )
    server.requests.clear()
    assert fetch(keras_checkpoint) == path == Path(cached)
    assert server.requests == []


def test_keras_home_that_cannot_be_written(keras_checkpoint, monkeypatch, tmp_path):
    # As get_file: the temporary folder takes its place.
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "absent"))
    isdir = os.path.isdir
    monkeypatch.setattr("os.path.isdir", lambda path: path != "/tmp" and isdir(path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fetch(keras_checkpoint) == tmp_path / ".keras" / "models" / FILE


def test_hub_file_is_where_the_hub_keeps_it(hub_checkpoint, server):
    cached = huggingface_hub.hf_hub_download(REPOSITORY, hub_checkpoint.file)
    server.requests.clear()
    assert fetch(hub_checkpoint) == Path(cached)
    assert server.requests == []


def test_wrong_download(checkpoint, server, tmp_path):
    server.payload = b"a page of a proxy" * 100
    algorithm, wanted = checkpoint.hash.split(":")
    found = hashlib.new(algorithm, server.payload).hexdigest()
    message = f"{checkpoint.file} has {algorithm}:{found}, not {algorithm}:{wanted}; it came from"
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(message)):
            fetch(checkpoint)
        assert kept(tmp_path) == []
    server.payload = PAYLOAD
    assert fetch(checkpoint).read_bytes() == PAYLOAD


def test_wrong_cached_file_is_downloaded_anew(checkpoint):
    path = fetch(checkpoint)
    path.write_bytes(PAYLOAD[:-1])
    with pytest.warns(
        UserWarning, match=f"{checkpoint.file} has .* not .*: it is downloaded again"
    ):
        assert fetch(checkpoint) == path
    assert path.read_bytes() == PAYLOAD


def test_wrong_cached_keras_file_stays_until_there_is_a_better_one(keras_checkpoint, server):
    path = fetch(keras_checkpoint)
    path.write_bytes(b"someone's own")
    server.paths.clear()
    with pytest.warns(UserWarning, match="downloaded again"), pytest.raises(OSError, match="404"):
        fetch(keras_checkpoint)
    assert path.read_bytes() == b"someone's own"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_hash_that_only_the_hub_states(hub_checkpoint, server, monkeypatch, tmp_path, links):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    unstated = dataclasses.replace(hub_checkpoint, hash=None)
    server.payload = PAYLOAD[::-1]
    with pytest.raises(ValueError, match=f"model.safetensors has sha256:.* not {SHA256}"):
        fetch(unstated)
    assert kept(tmp_path) == []
    server.payload = PAYLOAD
    path = fetch(unstated)
    assert path.is_symlink() == links
    server.requests.clear()
    assert fetch(unstated) == path
    assert server.requests == []
    if links:
        path.write_bytes(b"damaged")
        with pytest.warns(UserWarning, match=f"not {SHA256}: it is downloaded again"):
            assert fetch(unstated).read_bytes() == PAYLOAD


def test_small_file_of_the_hub_has_no_sha256(hub_checkpoint, server):
    server.etag = hashlib.sha1(b"blob").hexdigest()
    unstated = dataclasses.replace(hub_checkpoint, hash=None)
    path = fetch(unstated)
    assert path.read_bytes() == PAYLOAD
    server.requests.clear()
    assert fetch(unstated) == path
    assert gets(server) == 0


def test_hub_cache_of_shared_files(hub_checkpoint, tmp_path):
    # It links on to a store of files named by another hash, also 64 digits long.
    unstated = dataclasses.replace(hub_checkpoint, hash=None)
    path = fetch(unstated)
    blob, stored = path.resolve(), tmp_path / ("f" * 64)
    blob.rename(stored)
    blob.symlink_to(stored)
    assert fetch(unstated) == path
    stored.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=f"not {SHA256}"):
        assert fetch(unstated).read_bytes() == PAYLOAD
    assert not stored.exists()


def test_cut_connection_then_another_try(keras_checkpoint, server, tmp_path):
    server.cuts = [1000]
    with pytest.raises(OSError, match=f"got only 1000 out of {len(PAYLOAD)} bytes"):
        fetch(keras_checkpoint)
    assert kept(tmp_path) == []
    assert fetch(keras_checkpoint).read_bytes() == PAYLOAD


def test_cut_connection_to_the_hub_is_resumed(hub_checkpoint, server):
    server.cuts = [1000]
    assert fetch(hub_checkpoint).read_bytes() == PAYLOAD
    assert gets(server) == 2


def test_hub_that_always_cuts(hub_checkpoint, server, tmp_path):
    server.cuts = [0] * 100
    with pytest.raises(OSError, match="peer closed connection") as raised:
        fetch(hub_checkpoint)
    assert "Download it by other means and pass its path as weights=" in str(raised.value)
    assert kept(tmp_path) == []
    server.cuts.clear()
    assert fetch(hub_checkpoint).read_bytes() == PAYLOAD


def says_what_to_do(error: OSError, checkpoint, url: str, tmp_path: Path) -> bool:
    by_hand = "pass its path as weights=" if checkpoint.on_hub else f"at {tmp_path}/models/{FILE}"
    start = f"{checkpoint.file} ({checkpoint.name}) could not be downloaded from {url}"
    return str(error).startswith(start) and by_hand in str(error) and error.__cause__ is not None


def test_not_found(checkpoint, server, tmp_path):
    server.paths.clear()
    with pytest.raises(OSError, match="404") as raised:
        fetch(checkpoint)
    assert says_what_to_do(raised.value, checkpoint, server.url, tmp_path)
    assert kept(tmp_path) == []
    server.paths = {request.split()[1] for request in server.requests}
    assert fetch(checkpoint).read_bytes() == PAYLOAD


def test_connection_refused(checkpoint, server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="Connection refused") as raised:
        fetch(checkpoint)
    assert says_what_to_do(raised.value, checkpoint, server.url, tmp_path)
    assert kept(tmp_path) == []


def test_hub_offline(hub_checkpoint, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="offline mode is enabled"):
        fetch(hub_checkpoint)
    assert server.requests == []
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        path = fetch(hub_checkpoint)
    assert fetch(hub_checkpoint) == path


class FullDisk(io.FileIO):
    """A file on a disk with room for 1000 bytes."""

    def write(self, data):
        super().write(memoryview(data)[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full(checkpoint, server, monkeypatch, tmp_path):
    def full(file, mode="r", *args, _open=open, **options):
        return FullDisk(file, mode) if mode == "wb" else _open(file, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        patch.setattr("io.open", full)  # pathlib's
        with pytest.raises(OSError, match="No space left on device") as raised:
            fetch(checkpoint)
    assert says_what_to_do(raised.value, checkpoint, server.url, tmp_path)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert gets(server) == 1
    assert kept(tmp_path) == []
    assert fetch(checkpoint).read_bytes() == PAYLOAD


def test_folder_that_cannot_be_made(keras_checkpoint, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(OSError, match=f"Put the file at {tmp_path}/models/{FILE} by hand"):
        fetch(keras_checkpoint)


@pytest.mark.slow
def test_cache_variables(server, tmp_path):
    # Both libraries read them when imported, so in a process of its own.
    code = f"""if True:
        import dataclasses
        from keras_vgg.weights import download, published
        keras = dataclasses.replace(
            published.find("imagenet", "D", False, True),
            location="{server.url}/{FILE}", file="{FILE}", hash="{MD5}",
        )
        hub = dataclasses.replace(published.find("torchvision", "A", False, True), hash="{SHA256}")
        print(download.fetch(keras), download.fetch(hub), sep="\\n")
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"KERAS_HOME": str(tmp_path / "k"), "HF_HOME": str(tmp_path / "h")}
    env |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_TELEMETRY": "1", "KERAS_BACKEND": "numpy"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    *_, keras_path, hub_path = done.stdout.splitlines()
    assert Path(keras_path) == tmp_path / "k" / "models" / FILE
    assert Path(hub_path).is_relative_to(tmp_path / "h" / "hub")
