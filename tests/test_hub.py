"""Weights from the hub and runs to the hub, against a server of our own; nothing leaves here."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import keras
import numpy as np
import pytest
from huggingface_hub import constants

import keras_vgg
from keras_vgg import cli, models, weights
from keras_vgg.files import sha256_of
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs import model_card, push_run
from keras_vgg.runs.trained_base import weights_identity
from tests.hub import in_place_of_the_hub, serving

# The hub's client uploads a large file in a way that its own HTTP library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPOSITORY = "someone/my-vgg"
BASE = {"include_top": False, "width_multiplier": 1 / 16, "input_shape": (32, 32, 3)}


def commit_of(files):
    """A number that changes with any file, as a commit's does."""
    content = b"".join(name.encode() + files[name] for name in sorted(files))
    return hashlib.sha1(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """A hub with repositories in memory: what the client's download and upload need of one."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        """Large files that were uploaded, by their SHA-256."""
        self.refusal: int | None = None
        """The status with which every upload is refused."""
        self.private: list[str] = []
        self.requests: list[str] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def reply(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?(\?.*)?", self.path):
            return self.model(match[1])
        if match := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.server.repositories[match[1]].items()
            ]
            return self.reply(200, tree)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        files = self.server.repositories.get(match[1]) if match else None
        if files is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        commit = commit_of(files)
        if match[2] not in files:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[match[2]]
        digest = hashlib.sha256(content).hexdigest()
        return self.reply(200, content, ETag=f'"{digest}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    def model(self, name):
        files = self.server.repositories.get(name)
        if files is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        siblings = [{"rfilename": file} for file in files]
        details = {"id": name, "sha": commit_of(files), "siblings": siblings, "private": False}
        return self.reply(200, details)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.refusal:
            return self.reply(self.server.refusal, {"error": "no"}, X_Error_Message="not allowed")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in self.server.repositories:
                return self.reply(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
            self.server.repositories[name] = {}
            self.server.private += [name] if wanted.get("visibility") == "private" else []
            return self.reply(200, {"url": f"{self.server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".h5") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": modes})
        if self.path.endswith("/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{self.server.url}/put/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        return self.commit(body)

    def commit(self, body):
        match = re.match(r"/api/models/([^/]+/[^/]+)/commit/main", self.path)
        files = self.server.repositories[match[1]]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.server.objects[entry["value"]["oid"]]
        commit = commit_of(files)
        url = f"{self.server.url}/{match[1]}/commit/{commit}"
        return self.reply(200, {"success": True, "commitUrl": url, "commitOid": commit})

    def do_PUT(self):
        if "Content-Length" in self.headers:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        else:  # in chunks, each with its length and ended by an empty one
            content = b""
            while length := int(self.rfile.readline(), 16):
                content += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        self.server.objects[self.path.rpartition("/")[2]] = content
        self.reply(200)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, and an empty cache of the hub's client."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Hub() as server:
        for name in ("huggingface_hub.hf_api.ENDPOINT", "huggingface_hub.hf_api.api.endpoint"):
            monkeypatch.setattr(name, server.url, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        with in_place_of_the_hub(server, server.url, tmp_path / "cache", monkeypatch):
            yield server


@pytest.fixture(scope="module")
def base():
    keras.utils.set_random_seed(3)
    return models.vgg("A", weights=None, include_preprocessing=True, **BASE)


def assert_equal(model, other):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.safetensors"])
def test_weights_from_the_hub(hub, base, tmp_path, monkeypatch, name):
    (tmp_path / "files").mkdir()
    if name == "model.safetensors":
        base.save(tmp_path / "a.keras")
        keras_vgg.convert_weights(tmp_path / "a.keras", tmp_path / "files" / name)
    elif name == "model.keras":
        base.save(tmp_path / "files" / name)
    else:  # as Keras itself saves on the hub
        keras.saving.save_model(base, str(tmp_path / "files"), zipped=False)
    hub.repositories[REPOSITORY] = files_of(tmp_path / "files")
    for file in hub.repositories[REPOSITORY]:  # another program fills the cache
        huggingface_hub.hf_hub_download(REPOSITORY, file)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        cached = weights.read_weights(f"hf://{REPOSITORY}").sha256()
    loaded = models.vgg("A", weights=f"hf://{REPOSITORY}", include_preprocessing=True, **BASE)
    assert_equal(loaded, base)
    read = weights.read_weights(f"hf://{REPOSITORY}")
    assert read.source == f"hf://{REPOSITORY}"
    assert read.sha256() == cached
    assert read.preprocessing.get_config()["channel_order"] == "bgr"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.read_weights(f"hf://{REPOSITORY}").sha256() == read.sha256()


@pytest.mark.slow
def test_a_kerashub_preset_on_the_hub(hub, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.VGGBackbone([1, 1, 2, 2, 2], [4, 8, 16, 32, 32])
    backbone.save_to_preset(str(tmp_path / "preset"))
    hub.repositories[REPOSITORY] = files_of(tmp_path / "preset")
    loaded = models.vgg("A", weights=f"hf://{REPOSITORY}", **BASE)
    assert_equal(loaded, backbone)


def test_a_new_version_is_downloaded_and_the_cached_one_serves_offline(
    hub, base, tmp_path, monkeypatch
):
    base.save(tmp_path / "a.keras")
    hub.repositories[REPOSITORY] = {"model.keras": (tmp_path / "a.keras").read_bytes()}
    first = weights.read_weights(f"hf://{REPOSITORY}").sha256()
    gets = [request for request in hub.requests if request.startswith("GET")]
    assert weights.read_weights(f"hf://{REPOSITORY}").sha256() == first
    assert [request for request in hub.requests if request.startswith("GET")] == gets
    other = models.vgg("A", weights=None, **BASE)
    other.save(tmp_path / "b.keras")
    hub.repositories[REPOSITORY] = {"model.keras": (tmp_path / "b.keras").read_bytes()}
    identity = weights_identity(f"hf://{REPOSITORY}")
    second = weights.read_weights(f"hf://{REPOSITORY}").sha256()
    assert second != first
    assert identity == f"sha256:{sha256_of(tmp_path / 'b.keras')}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.read_weights(f"hf://{REPOSITORY}").sha256() == second


def test_a_damaged_cached_file_is_downloaded_again(hub, base, tmp_path):
    base.save(tmp_path / "a.keras")
    hub.repositories[REPOSITORY] = {"model.keras": (tmp_path / "a.keras").read_bytes()}
    weights.read_weights(f"hf://{REPOSITORY}")
    (cached,) = (tmp_path / "cache").rglob("snapshots/*/model.keras")
    cached.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"model.keras has sha256:.*: it is downloaded again"):
        weights.read_weights(f"hf://{REPOSITORY}")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf://nobody/nothing", OSError, r"hf://nobody/nothing cannot be downloaded: there is no"),
        ("hf://onlyname", ValueError, "hf://onlyname must be hf://OWNER/NAME"),
        ("hf://", ValueError, "hf:// must be hf://OWNER/NAME"),
        ("hf://a/b/c", ValueError, "hf://a/b/c must be hf://OWNER/NAME"),
        ("hf://some one/na me", ValueError, "must be hf://OWNER/NAME"),
        (f"hf://{REPOSITORY}", ValueError, "has no weights: none of model.keras, model.weights.h5"),
    ],
)
def test_wrong_repositories(hub, capsys, name, error, message):
    hub.repositories[REPOSITORY] = {"README.md": b"nothing else"}
    with pytest.raises(error, match=message):
        models.vgg("A", weights=name, **BASE)
    assert cli.main(["weights", name]) == 2
    stderr = capsys.readouterr().err
    assert re.search(message, stderr) or name == "hf://"  # which is no path either
    assert stderr.count("\n") == 1


def test_no_connection(hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(OSError, match=f"hf://{REPOSITORY} cannot be downloaded: .*refused"):
        weights.read_weights(f"hf://{REPOSITORY}")


def test_a_run_goes_to_the_hub_and_comes_back(hub, tiny_run, capsys):
    assert cli.main(["push", str(tiny_run.directory), REPOSITORY]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/{REPOSITORY}"
    files = hub.repositories[REPOSITORY]
    assert set(files) - {".gitattributes"} == {
        "README.md",
        "class_names.json",
        "config.json",
        "metadata.json",
        "model.weights.h5",
        "recipe.json",
        "results.json",
    }
    model = tiny_run.model()
    assert_equal(keras.saving.load_model(f"hf://{REPOSITORY}"), model)
    read = weights.read_weights(f"hf://{REPOSITORY}")
    assert read.sha256() == weights.read_weights(tiny_run.directory).sha256()
    assert json.loads(files["class_names.json"]) == list(tiny_run.class_names)
    assert Recipe.from_json(files["recipe.json"].decode()).replace() == tiny_run.recipe
    # Again, privately: the repository exists and stays as it is.
    push_run(tiny_run, f"hf://{REPOSITORY}", private=True)
    assert hub.private == []
    push_run(tiny_run, "someone/secret", private=True)
    assert hub.private == ["someone/secret"]


@pytest.mark.slow
def test_the_commands_ask_the_hub_of_hf_endpoint(tiny_run, tmp_path):
    """In processes of their own: the hub's client reads its variables when it is imported."""
    names = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    converted = tmp_path / "converted.keras"
    with Hub() as server, serving(server):
        environment["HF_ENDPOINT"] = server.url
        for arguments in (
            ("push", tiny_run.directory, REPOSITORY),
            ("weights", f"hf://{REPOSITORY}"),
            ("convert", f"hf://{REPOSITORY}", converted),
        ):
            command = [sys.executable, "-m", "keras_vgg.cli", *map(str, arguments)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "hub").is_dir()
    read = weights.read_weights(converted)
    assert read.sha256() == weights.read_weights(tiny_run.directory).sha256()


def test_a_repository_of_another_network_is_refused(hub, tiny_run):
    hub.repositories[REPOSITORY] = {"model.keras": b"another network"}
    with pytest.raises(ValueError, match=r"holds model.keras, which would be loaded in place"):
        push_run(tiny_run, REPOSITORY)
    assert hub.repositories[REPOSITORY] == {"model.keras": b"another network"}


def test_a_run_starts_from_the_hub(hub, tiny_run):
    from keras_vgg.fit.model import initial_weights

    push_run(tiny_run, REPOSITORY)
    recipe = tiny_run.recipe.replace(init=f"hf://{REPOSITORY}", initialization="he_normal")
    loaded = initial_weights(recipe)
    assert loaded is not None
    assert not {"fc1", "fc2", "predictions"} & set(loaded.tensors)
    assert loaded.preprocessing is not None


def test_the_card(tiny_run, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(tiny_run.directory, directory)
    run = Run(directory, tiny_run.recipe.replace(source="folder:/home/me/photos", init=None))
    run.add_results(test={"count": 1438, "top1": 0.9123, "top5": 0.99})
    text = model_card(run, REPOSITORY)
    card = huggingface_hub.ModelCard(text)
    assert card.data.library_name == "keras"
    assert card.data.pipeline_tag == "image-classification"
    figures = {(r.dataset_split, r.metric_value) for r in card.data.eval_results}
    assert ("test", 0.9123) in figures
    assert "/home/me" not in text
    assert "It takes RGB images in [0, 255]" in text
    grey = model_card(Run(directory, run.recipe.replace(color="grey")), REPOSITORY)
    assert "It takes grey images (one channel: the luma) in [0, 255]" in grey
    balanced = Run(directory, run.recipe.replace(select_by="balanced_accuracy"))
    balanced.add_results(validation_balanced_accuracy=0.5)
    assert "selected by the balanced accuracy (50.00%) on the" in model_card(balanced, REPOSITORY)
    for part in (
        "VGG11 (configuration A)",
        "`folder:photos`",
        "| test | center | 1,438 | 91.23% | 99.00% |",
        "import keras_vgg.layers",
        f'keras.saving.load_model("hf://{REPOSITORY}")',
        "Classes: 0, 1, 2",
        "| width_multiplier |",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["onlyname", "a/b/c", "", "some one/name", "a//b"])
def test_a_wrong_name_is_refused_before_anything_is_sent(hub, tiny_run, capsys, name):
    assert cli.main(["push", str(tiny_run.directory), name]) == 2
    error = capsys.readouterr().err
    assert f"the repository must be OWNER/NAME, not '{name}'" in error
    assert hub.requests == []


def test_what_cannot_be_pushed(hub, tiny_run, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        Run.open(tmp_path)
    assert cli.main(["push", str(tmp_path), REPOSITORY]) == 2
    directory = tmp_path / "run"
    shutil.copytree(tiny_run.directory, directory)
    (directory / "model.keras").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"model\.keras is damaged"):
        push_run(Run.open(directory), REPOSITORY)
    content = bytearray(tiny_run.model_path.read_bytes())
    content[content.index(b'"registered_name"')] ^= 1  # in config.json
    (directory / "model.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.keras is damaged: Bad CRC-32 .*config\.json"):
        push_run(Run.open(directory), REPOSITORY)
    (directory / "model.keras").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.keras is missing"):
        push_run(Run.open(directory), REPOSITORY)
    (directory / "results.json").unlink()
    with pytest.raises(ValueError, match="has not finished training"):
        push_run(Run.open(directory), REPOSITORY)
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses(hub, tiny_run, capsys, status):
    hub.refusal = status
    assert cli.main(["push", str(tiny_run.directory), REPOSITORY]) == 2
    error = capsys.readouterr().err
    assert f"could not be pushed to hf://{REPOSITORY}" in error
    assert ("hf auth login" in error) == (status != 500)
    assert error.count("\n") == 1
