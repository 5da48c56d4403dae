"""The serving guide's clients of TensorFlow Serving, run on a real SavedModel by its protocols.

The server here is a stand-in for what lies between the wire and the signature: the published row
format of the REST interface, and PredictionService. What goes through it is the clients' own.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_vgg import augment, data
from keras_vgg.export.formats import FILES
from keras_vgg.export.saved_model import write_saved_model
from keras_vgg.models import vgg
from tests.pages import ROOT, blocks

GUIDE = (ROOT / "docs" / "serving.md").read_text()
NAMES = ("zero", "one", "two")
TRANSFORM = partial(augment.eval_image, size=32, scale=32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(4)
    return vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=len(NAMES),
        width_multiplier=1 / 16,
        hidden_units=8,
        include_preprocessing=True,
    )


@pytest.fixture(scope="module")
def served(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> tf.Module:
    path = tmp_path_factory.mktemp("clients") / "saved_model"
    write_saved_model(model, path, NAMES, transform=TRANSFORM)
    return tf.saved_model.load(str(path))


@pytest.fixture
def expected(model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The model's probabilities of digit.png, which lies where the client is run."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    image = np.asarray(TRANSFORM(data.load_image("digit.png")))
    return model.predict(image[None], verbose=0)[0]


def client(word: str) -> str:
    (found,) = [
        block for block in blocks(GUIDE, "python") if "localhost" in block and word in block
    ]
    return found


def run(code: str, port: int, capsys: pytest.CaptureFixture) -> str:
    exec(compile(re.sub(r"localhost:\d+", f"localhost:{port}", code), "serving.md", "exec"), {})
    return capsys.readouterr().out


def check(out: str, expected: np.ndarray) -> None:
    names, numbers = out.split("]", 1)
    order = expected.argsort()[::-1]
    assert re.findall("|".join(NAMES), names) == [NAMES[i] for i in order]
    found = [float(number) for number in re.findall(r"\d[\d.e-]*", numbers)]
    np.testing.assert_allclose(found, expected[order], atol=1e-5)


@pytest.fixture
def rest(served: tf.Module) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            model, _, method = self.path.removeprefix("/v1/models/").partition(":")
            assert (model, method) == ("digits", "predict")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            signature = served.signatures[body.get("signature_name", "serving_default")]
            (name,) = signature.structured_input_signature[1]
            # Of one named input the instances are its values themselves; bytes come as b64.
            given = [base64.b64decode(value["b64"]) for value in body["instances"]]
            found = signature(**{name: tf.constant(given)})
            rows = [
                {name: _json(value[i].numpy()) for name, value in found.items()}
                for i in range(len(given))
            ]
            answer = json.dumps({"predictions": rows}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def _json(value: np.ndarray) -> list:
    return [item.decode() if isinstance(item, bytes) else item for item in value.tolist()]


def test_rest(rest: int, expected: np.ndarray, capsys: pytest.CaptureFixture) -> None:
    check(run(client("urllib"), rest, capsys), expected)


@pytest.fixture
def service(served: tf.Module) -> Iterator[int]:
    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            assert request.model_spec.name == "digits"
            signature = served.signatures[request.model_spec.signature_name]
            inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
            answer = predict_pb2.PredictResponse()
            for name, value in signature(**inputs).items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return answer

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
        port = server.add_insecure_port("localhost:0")
        server.start()
        yield port
        server.stop(None).wait()


def test_grpc(service: int, expected: np.ndarray, capsys: pytest.CaptureFixture) -> None:
    check(run(client("grpc"), service, capsys), expected)


def test_the_guide_names_the_signatures_and_the_folder_that_an_export_has(
    served: tf.Module,
) -> None:
    table = GUIDE.split("## What the server understands")[1]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert set(served.signatures) == set(listed)
    (command,) = [block for block in blocks(GUIDE) if "docker run" in block]
    (folder,) = re.findall(r"\$PWD/runs/digits/(\S+):/models/digits/1", command)
    assert Path(folder).parts[-1] == FILES["saved_model"]
