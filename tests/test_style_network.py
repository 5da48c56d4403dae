"""The fast style network: its layers, its loss, its training, its use and its LiteRT file."""

import shutil

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_vgg import cli, vgg
from keras_vgg.perceptual import StyleObjective, StyleTransferLoss, style_network
from keras_vgg.runs import style_networks
from tests.other_backends import passes_on

STYLE = ("block1_conv1", "block2_conv1", "block3_conv1")
CONTENT = "block3_conv2"
LAYERS = {"style_layers": STYLE, "content_layer": CONTENT}


def picture(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (*shape, 3)).astype("float32")


def answer(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


@pytest.fixture(scope="module")
def base():
    keras.utils.set_random_seed(0)
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    return vgg("B", width_multiplier=1 / 16, kernel_initializer="he_normal", **options)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """A style, a weight file, and a folder of four photographs and a text."""
    folder = tmp_path_factory.mktemp("networks")
    temple, flower = load_sample_images().images
    Image.fromarray(flower).save(folder / "flower.jpg")
    (folder / "photographs" / "below").mkdir(parents=True)
    for number in range(4):
        part = temple[: 200 + 20 * number, 100 * number : 100 * number + 240]
        Image.fromarray(part).save(folder / "photographs" / "below" / f"{number}.jpg")
    (folder / "photographs" / "notes.txt").write_text("no image")
    base.save(folder / "base.keras")
    return folder


@pytest.fixture(scope="module")
def network(folder):
    """The file of a small network with random weights."""
    keras.utils.set_random_seed(0)
    style_network(4, 1).save(folder / "network.keras")
    return folder / "network.keras"


def in_torch(model, images):
    """The network by PyTorch's own layers."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def convolution(x, name, stride=1, activation=True):
        kernel = torch.tensor(model.get_layer(name).get_weights()[0]).permute(3, 2, 0, 1)
        x = functional.pad(x, [kernel.shape[-1] // 2] * 4, mode="reflect")
        x = functional.conv2d(x, kernel, stride=stride)
        scale, shift = map(torch.tensor, model.get_layer(f"{name}_norm").get_weights())
        x = functional.instance_norm(x, weight=scale, bias=shift, eps=1e-5)
        return x.relu() if activation else x

    x = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2)):
        x = convolution(x, name, stride)
    for block in ("residual1", "residual2"):
        y = convolution(x, f"{block}_conv1")
        x = x + convolution(y, f"{block}_conv2", activation=False)
    for name in ("conv4", "conv5"):
        x = convolution(functional.interpolate(x, scale_factor=2, mode="nearest"), name)
    kernel, bias = map(torch.tensor, model.get_layer("conv6").get_weights())
    x = functional.pad(x, [4] * 4, mode="reflect")
    x = functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias)
    x = x[:, :, : images.shape[1], : images.shape[2]]
    return (127.5 * (x.tanh() + 1)).permute(0, 2, 3, 1).numpy()


def test_the_network_is_that_of_pytorch_by_hand():
    """At even sides, and at sides that 4 does not divide."""
    keras.utils.set_random_seed(0)
    model = style_network(4, 2)
    model.set_weights([w + 0.1 * np.random.default_rng(0).normal(size=w.shape)
                       for w in model.get_weights()])  # fmt: skip
    for sides in ((16, 24), (21, 18)):
        images = np.stack([picture(*sides), picture(*sides, seed=1)])
        answers = answer(model, images)
        assert answers.shape == images.shape
        assert np.ptp(answers) > 100
        np.testing.assert_allclose(answers, in_torch(model, images), atol=2e-2)


def test_the_loss_is_that_of_the_pictures_pixels_by_hand(base):
    """Where the content is the style, both divide the maps by the same means."""
    style, others = picture(40, 48), [picture(40, 48, seed=seed) for seed in (1, 2)]
    loss = StyleTransferLoss(base, style, style_weight=7, reduction="none", **LAYERS)
    objective = StyleObjective(base, style, style, style_weight=7, **LAYERS)
    losses = keras.ops.convert_to_numpy(loss(np.stack([style, style]), np.stack(others)))
    np.testing.assert_allclose(losses, [objective(x)[0].total for x in others], rtol=1e-4)
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_two_steps_of_fit_change_the_network_alone(base):
    model = style_network(4, 1)
    loss = StyleTransferLoss(base, picture(40, 48), **LAYERS)
    # XLA takes long on TensorFlow; on JAX all of Keras' trainings are compiled.
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=keras.backend.backend() == "jax")
    photographs = np.stack([picture(32, 40, seed=seed) for seed in range(4)])
    # Copies: on PyTorch, the array of a weight may change with the weight.
    before, others = ([w.copy() for w in m.get_weights()] for m in (model, base))
    history = model.fit(photographs, photographs, batch_size=2, verbose=0).history
    assert int(model.optimizer.iterations) == 2
    assert np.isfinite(history["loss"]).all()
    for old, weight in zip(before, model.weights, strict=True):
        assert not np.array_equal(old, keras.ops.convert_to_numpy(weight)), weight.path
    for old, new in zip(others, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_on(backend):
    assert "3 passed" in passes_on(backend, "-m", "", "-k", "by_hand or two_steps", __file__)


@pytest.mark.slow
def test_the_papers_size():
    convolutions = 2 * (9 * 9 * 3 * 32) + 2 * (9 * (32 * 64 + 64 * 128)) + 10 * 9 * 128**2
    normalisations = 2 * (2 * (32 + 64) + 11 * 128)
    assert style_network().count_params() == convolutions + normalisations + 3


@pytest.mark.slow
def test_a_network_is_trained_on_a_folder_and_applied(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(style_networks, "style_network", lambda *_: style_network(4, 1))
    out, result = tmp_path / "net.keras", tmp_path / "a.png"
    command = ["stylize", str(folder / "photographs"), str(folder / "flower.jpg")]
    command += ["--weights", str(folder / "base.keras"), "--out", str(out), "--size", "32"]
    command += ["--steps", "6", "--every", "3", "--style-layers", ",".join(STYLE)]
    command += ["--content-layer", CONTENT, "--style-size", "48"]
    assert cli.main(command) == 0
    text = capfd.readouterr()
    assert "not read: 1 no image (.txt)" in text.err
    first, last = (float(line.split()[-1]) for line in text.err.splitlines()[-2:])
    assert last < first
    assert f"{out}: mean loss {last:.4g} at the end, {first:.4g} at the beginning" in text.out
    assert out.stat().st_size < 200_000  # without the loss' network and the optimizer
    assert cli.main(command) == 2
    assert "net.keras exists: name another file, or pass overwrite" in capfd.readouterr().err
    photograph = folder / "photographs" / "below" / "1.jpg"
    apply = ["stylize", str(photograph), "--network", str(out), "--out", str(result)]
    assert cli.main(apply) == 0
    assert f"{result}: 220 x 240 pixels" in capfd.readouterr().out
    with Image.open(result) as image, Image.open(photograph) as content:
        assert image.size == content.size
        assert np.ptp(np.asarray(image)) > 10
    assert cli.main([*apply, "--size", "64"]) == 2
    assert "a.png exists" in capfd.readouterr().err


@pytest.mark.slow
def test_few_photographs_and_a_damaged_one(folder, tmp_path, monkeypatch, capfd):
    """One of 12 files does not decode, so that a batch has 11 photographs."""

    def small(*_):
        return keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(3, 1)])

    def batches(split, settings):
        sizes.extend((split.size, settings.batch_size))
        images = picture(2, 32, 32)
        yield images, images

    sizes = []
    monkeypatch.setattr(style_networks, "_batches", batches)
    monkeypatch.setattr(style_networks, "style_network", small)
    monkeypatch.setattr(style_networks, "base_network", lambda *_: None)
    monkeypatch.setattr(style_networks, "StyleTransferLoss", lambda *_, **__: "mse")
    for number in range(11):
        Image.fromarray(picture(32, 40, seed=number).astype("uint8")).save(
            tmp_path / f"{number}.png"
        )
    (tmp_path / "cut.jpg").write_bytes((folder / "flower.jpg").read_bytes()[:400])
    settings = style_networks.StyleTraining(size=32, style_size=48, batch_size=16)
    lines = []
    losses = style_networks.train_style_network(
        tmp_path,
        folder / "flower.jpg",
        tmp_path / "net.keras",
        settings,
        steps=1,
        on_line=lines.append,
    )
    assert len(losses) == 1
    assert sizes == [11, 11]
    assert lines[0] == "batches of 11, for there are no more photographs"
    err = capfd.readouterr().err
    assert "skipped: 1 of 12 images of split 'photographs' cannot be decoded" in err
    assert "cut.jpg" in err


@pytest.mark.slow
def test_the_litert_file_draws_the_same_picture(folder, network, tmp_path, capfd):
    out = tmp_path / "net.tflite"
    command = ["stylize", str(folder / "flower.jpg"), "--network", str(network), "--size", "101"]
    assert cli.main([*command, "--out", str(out)]) == 0
    assert f"{out}: 0.0" in (text := capfd.readouterr().out)
    assert float(text.split("network by ")[1].split()[0]) < 0.01
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(str(out)).get_signature_runner("serving_default")
    assert serve.get_input_details()["images"]["shape"].tolist()[1:] == [67, 101, 3]
    assert list(serve.get_output_details()) == ["stylized"]


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{style} --network {net} --tile 64 --out a.png", "--tile plays no part with --network"),
        ("{style} {style} --network {net} --out a.png", "STYLE plays no part with --network"),
        ("{style} --out a.png", "name the picture of the style after CONTENT, or a --network"),
        ("{style} {style} --out a.tflite", "a .tflite file needs the --network"),
        ("{style} --network {net} --out a.tflite --size content", "needs --size in pixels"),
        ("{style} --network {net} --out a.jpg", "must be a .png file, not 'a.jpg'"),
        ("{style} --network none.keras --out a.png", "there is no style network at none.keras"),
        ("{style} --network {style} --out a.png", "is a .keras file, not 'flower.jpg'"),
        ("{style} --network {base} --out a.png", "is no style network: it maps (None, None, "),
        ("{style} --network {net} --out a.png --size 40", "flower.jpg is 27 x 40 pixels"),
        ("{style} {style} --out a.keras", "there is no folder of photographs at"),
        ("{all} {style} --out a.keras --start noise", "--start plays no part with the training"),
        ("{all} {style} --out a.keras --size content", "needs --size in pixels"),
        ("{all} {style} --out a.keras --size 16", "size must be at least 32, not 16"),
        ("{all} {style} --out a.keras --steps 0", "steps must be at least 1, not 0"),
        ("{all} {style} --out a.keras --steps 75", "steps must be a multiple of every, 50, not 75"),
        ("{cut} {style} --out a.keras", "1 of 2 images of split 'photographs' cannot be decoded"),
        ("{tiny} --network {net} --out a.png", "tiny.png is 10 x 40 pixels; a style network needs"),
        ("{all} {style} --out a.keras --style-weight 0", "style_weight must be a positive number"),
        ("{all} {style} --out a.keras --content-layer fc1", "not 'fc1'"),
        ("{all} {style} --out a.keras --weights no.h5", "no weight file at no.h5"),
    ],
)
def test_what_makes_no_sense(folder, network, tmp_path, capfd, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut").mkdir()
    shutil.copy(folder / "flower.jpg", tmp_path / "cut")
    (tmp_path / "cut" / "cut.jpg").write_bytes((folder / "flower.jpg").read_bytes()[:400])
    Image.new("RGB", (40, 10)).save(tmp_path / "tiny.png")
    places = {"style": folder / "flower.jpg", "net": network, "base": folder / "base.keras"}
    places |= {"all": folder / "photographs", "cut": "cut", "tiny": "tiny.png"}
    words = words.format(**places).split()
    if "--network" not in words and "--weights" not in words:
        words += ["--weights", str(places["base"])]
    assert cli.main(["stylize", *words]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("keras-vgg: error")]
    assert message in line
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a whole number of at least 1, not 0"),
        ({"residual_blocks": 1.5}, "residual_blocks must be a whole number of at least 1, not 1.5"),
    ],
)
def test_networks_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        style_network(**options)


@pytest.mark.parametrize(
    ("style", "options", "message"),
    [
        (picture(40, 40) / 255, {}, "the style"),
        (picture(20, 40), {}, "at least 32 pixels high and wide, not 20 x 40"),
        (picture(40, 40), {"style_layers": []}, "style_layers must be different layers"),
        (picture(40, 40), {"content_layer": "block3_pool"}, "not 'block3_pool'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_losses_that_make_no_sense(base, style, options, message):
    with pytest.raises((ValueError, UserWarning), match=message):
        StyleTransferLoss(base, style, **options)
