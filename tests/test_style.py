"""Style transfer: the loss and its gradient by hand, tiles, and the optimisers."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest

from keras_vgg import vgg
from keras_vgg.cli.stylize import Stylize
from keras_vgg.perceptual import StyleTransferLoss, gram_matrix
from keras_vgg.perceptual.descent import stylize
from keras_vgg.perceptual.style import (
    Losses,
    StyleObjective,
    content_loss,
    halo_of,
    style_loss,
    windows,
)
from keras_vgg.runs.style_networks import StyleTraining
from keras_vgg.runs.stylizing import Stylisation
from tests.other_backends import passes_on

STYLE = ("block1_conv1", "block2_conv1", "block3_conv1")
CONTENT = "block3_conv2"


def picture(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (*shape, 3)).astype("float32")


@pytest.fixture(scope="module")
def base():
    keras.utils.set_random_seed(0)
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    return vgg("B", width_multiplier=1 / 16, kernel_initializer="he_normal", **options)


def in_torch(base, content, style, image, style_weight, average):
    """The loss and its gradient by PyTorch's own layers, from the paper's equations."""
    torch = pytest.importorskip("torch")
    pool = torch.nn.functional.avg_pool2d if average else torch.nn.functional.max_pool2d
    mean = torch.tensor([123.68, 116.779, 103.939])

    def maps(x):
        found, x = {}, (x - mean).flip(-1).permute(2, 0, 1)[None]
        for block in (1, 2, 3):
            for number in (1, 2):
                name = f"block{block}_conv{number}"
                kernel, bias = map(np.array, base.get_layer(name).get_weights())
                kernel = torch.tensor(kernel).permute(3, 2, 0, 1)
                x = torch.conv2d(x, kernel, torch.tensor(bias), padding=1).relu()
                found[name] = x[0].flatten(1)  # N x M
            x = pool(x, 2)
        return found

    own, wanted = maps(torch.tensor(content)), maps(torch.tensor(style))
    pixels = torch.tensor(image, requires_grad=True)
    generated, style_sum, content_sum = maps(pixels), 0.0, 0.0
    for name in {*STYLE, CONTENT}:
        scale = 2 / (own[name].mean() + wanted[name].mean())
        f, a, p = (scale * x[name] for x in (generated, wanted, own))
        if name in STYLE:
            difference = f @ f.T / f.shape[1] - a @ a.T / a.shape[1]
            style_sum = style_sum + (difference**2).sum() / (4 * f.shape[0] ** 2) / len(STYLE)
        if name == CONTENT:
            content_sum = content_sum + 0.5 * ((f - p) ** 2).mean()
    total = style_weight * style_sum + content_sum
    total.backward()
    return [x.item() for x in (total, style_sum, content_sum)], pixels.grad.numpy()


@pytest.mark.parametrize("pooling_layers", ["avg", pytest.param(None, marks=pytest.mark.slow)])
def test_the_loss_and_its_gradient_are_those_of_pytorch_by_hand(base, pooling_layers):
    content, style, image = picture(40, 50), picture(64, 36, seed=1), picture(40, 50, seed=2)
    objective = StyleObjective(
        base,
        content,
        style,
        style_layers=STYLE,
        content_layer=CONTENT,
        pooling_layers=pooling_layers,
        style_weight=70,
    )
    losses, gradient = objective(image)
    expected, slope = in_torch(base, content, style, image, 70, pooling_layers == "avg")
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses.style > 0
    assert losses.content > 0
    np.testing.assert_allclose(gradient, slope, atol=1e-4 * np.abs(slope).max())


@pytest.fixture(scope="module")
def normalized(base):
    """A network with batch norm that computes what `base` does."""
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    model = vgg("B", width_multiplier=1 / 16, batch_norm=True, **options)
    rng = np.random.default_rng(0)
    for layer in base.layers:
        if not isinstance(layer, keras.layers.Conv2D):
            continue
        kernel, bias = map(np.array, layer.get_weights())
        scale, mean = rng.uniform(0.5, 2, (2, len(bias))) * rng.choice([-1, 1], len(bias))
        model.get_layer(layer.name).set_weights([kernel / scale, 0 * bias])
        variance = np.full(len(bias), 1 - 1e-5)
        values = [scale, bias + scale * mean, mean, variance]
        model.get_layer(f"{layer.name}_bn").set_weights(values)
    return model


@pytest.mark.slow
def test_with_batch_norm_the_maps_are_those_after_the_relu(base, normalized):
    content, style, image = picture(32, 40), picture(32, 32, seed=1), picture(32, 40, seed=2)
    layers = {"style_layers": STYLE[:2], "content_layer": "block2_conv2"}
    (losses, gradient), (expected, slope) = (
        StyleObjective(model, content, style, style_weight=1000, **layers)(image)
        for model in (normalized, base)
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    np.testing.assert_allclose(gradient, slope, atol=1e-3 * np.abs(slope).max())
    losses, wanted = (
        keras.ops.convert_to_numpy(
            StyleTransferLoss(model, style, **layers)(content[None], image[None])
        )
        for model in (normalized, base)
    )
    np.testing.assert_allclose(losses, wanted, rtol=1e-3)
    with pytest.raises(ValueError, match="style_layers must be different layers"):
        StyleObjective(
            normalized, content, style, style_layers=("block1_conv1", "block1_conv1:post")
        )


def test_every_default_of_the_style_weight_is_the_same():
    functions = [inspect.signature(made).parameters for made in (StyleObjective, StyleTransferLoss)]
    settings = [
        {field.name: field for field in dataclasses.fields(made)}
        for made in (Stylisation, StyleTraining, Stylize)
    ]
    assert {made["style_weight"].default for made in (*functions, *settings)} == {5.0}


def test_a_network_for_grey_has_no_style():
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    grey = vgg("B", width_multiplier=1 / 16, input_shape=(None, None, 1), **options)
    message = r"a style needs a network for RGB, and \w+ takes images of 1 channel: choose other"
    with pytest.raises(ValueError, match=message):
        StyleObjective(grey, picture(32, 32), picture(32, 32))
    with pytest.raises(ValueError, match=message):
        StyleTransferLoss(grey, picture(32, 32))


def test_gram_and_losses_of_arrays_by_hand():
    rng = np.random.default_rng(0)
    maps, others = rng.normal(size=(2, 2, 3, 4, 5)).astype("float32")
    rows = maps.reshape(2, 12, 5)
    grams = np.einsum("nmi,nmj->nij", rows, rows) / (12 * 5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(gram_matrix(maps)), grams, atol=1e-5)
    wanted = rng.normal(size=(5, 5)).astype("float32")
    expected = ((grams - wanted) ** 2).sum((1, 2)) / 4
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(style_loss(maps, wanted)), expected, rtol=1e-4
    )
    expected = ((maps - others) ** 2).mean((1, 2, 3)) / 2
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(content_loss(maps, others)), expected, rtol=1e-4
    )


@pytest.mark.slow
def test_tiles_give_the_same_loss_and_gradient_by_hand(base):
    """Tiles of 64 pixels in an image of 165 x 70: also at the right and lower edges."""
    content, style, image = picture(165, 70), picture(40, 50, seed=1), picture(165, 70, seed=2)
    whole, tiled = (
        StyleObjective(
            base, content, style, tile=tile, style_weight=1000, content_layer="block4_conv2"
        )
        for tile in (None, 64)
    )
    losses, gradient = whole(image)
    parts, slope = tiled(image)
    np.testing.assert_allclose(parts, losses, rtol=1e-4)
    np.testing.assert_allclose(slope, gradient, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.slow
def test_a_tile_shows_the_deepest_layer_all_that_it_sees():
    """Block5_conv4 of VGG-19 sees 118 pixels beyond a tile: 2 + 4 + 16 + 32 + 64."""
    keras.utils.set_random_seed(0)
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    deep = vgg("E", width_multiplier=1 / 16, kernel_initializer="he_normal", **options)
    layers = {"style_layers": ("block5_conv4",), "content_layer": "block1_conv1"}
    content, style, image = picture(256, 32), picture(32, 48, seed=1), picture(256, 32, seed=2)
    whole, tiled = (
        StyleObjective(deep, content, style, tile=tile, style_weight=1e6, **layers)
        for tile in (None, 64)
    )
    losses, gradient = whole(image)
    parts, slope = tiled(image)
    np.testing.assert_allclose(parts, losses, rtol=1e-4)
    np.testing.assert_allclose(slope, gradient, atol=1e-4 * np.abs(gradient).max())
    names = ("block1_conv2", "block5_conv1", "block5_conv4:pre", "block5_conv3")
    assert [halo_of([name]) for name in names] == [16, 80, 128, 112]
    assert halo_of(names) == 128


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_on(backend):
    printed = passes_on(backend, "-m", "", "-k", "by_hand or lowers", __file__)
    assert "6 passed" in printed


def test_the_windows_of_tiles():
    found = windows(200, 100, 96, halo=32)
    assert [(w.core_rows, w.core_columns) for w in found[:3]] == [
        ((0, 96), (0, 96)),
        ((0, 96), (96, 100)),
        ((96, 192), (0, 96)),
    ]
    assert found[2].rows == (96 - 32, 200)
    assert found[2].columns == (0, 100)
    covered = np.zeros((200, 100))
    for window in found:
        covered[slice(*window.core_rows), slice(*window.core_columns)] += 1
    assert (covered == 1).all()
    for tile in (100, 48):
        with pytest.raises(ValueError, match=f"multiple of 16, at least 64, not {tile}"):
            windows(200, 100, tile)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", ["l-bfgs", pytest.param("adam", marks=pytest.mark.slow)])
def test_each_optimiser_lowers_the_loss(base, method):
    content, style = picture(32, 40), np.tile(picture(1, 8, seed=1), (32, 5, 1))
    layers = {"style_layers": STYLE, "content_layer": CONTENT}
    objective = StyleObjective(base, content, style, style_weight=1000, **layers)
    steps = []
    image = stylize(objective, content, steps=12, method=method, on_step=steps.append)
    assert [step.number for step in steps] == list(range(1, 13))
    np.testing.assert_array_equal(image, steps[-1].image)
    assert (image.shape, image.dtype) == (content.shape, np.float32)
    assert image.min() >= 0
    assert image.max() <= 255
    assert objective(image)[0].total < objective(content)[0].total / 2
    # A step far below a grey level would drown in the rounding of the loss.
    assert 0.05 < np.sqrt(np.mean((steps[0].image - content) ** 2)) < 20
    if method == "l-bfgs":
        np.testing.assert_allclose(steps[-1].losses.total, objective(image)[0].total, rtol=1e-4)


def test_a_loss_that_is_not_finite_ends_with_its_value():
    def objective(image):
        return Losses(float("nan"), 0.0, 0.0), np.zeros_like(image)

    with pytest.raises(ArithmeticError, match="not finite: nan"):
        stylize(objective, picture(32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"method": "sgd"}, "method must be l-bfgs or adam, not 'sgd'"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, not 0.0"),
    ],
)
def test_optimisations_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        stylize(lambda image: (Losses(0, 0, 0), image), picture(32, 32), **options)


LAYERS = {"style_layers": ("block1_conv1", "block2_conv1"), "content_layer": "block3_conv1"}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_for_the_network_alone(base, policy):
    """Gram matrices and losses are float32, whatever the policy says."""
    content, style, image = (picture(48, 64, seed=seed) for seed in range(3))

    def losses_and_gradient(network):
        objective = StyleObjective(network, content, style, **LAYERS)
        loss = StyleTransferLoss(network, style, **LAYERS)(content[None], image[None])
        return *objective(image), float(loss)

    losses, gradient, loss = losses_and_gradient(base)
    keras.config.set_dtype_policy(policy)
    try:
        options = {"weights": None, "include_top": False, "include_preprocessing": True}
        half = vgg("B", width_multiplier=1 / 16, **options)
        half.set_weights(base.get_weights())
        found = [losses_and_gradient(network) for network in (base, half)]
    finally:
        keras.config.set_dtype_policy("float32")
    for (one, slope, other), tolerance in zip(found, (1e-5, 0.05), strict=True):
        np.testing.assert_allclose([one.total, other], [losses.total, loss], rtol=tolerance)
        assert np.corrcoef(slope.ravel(), gradient.ravel())[0, 1] > 1 - tolerance


def test_a_network_without_its_preprocessing_is_refused():
    bare = vgg("B", width_multiplier=1 / 16, weights=None, include_top=False)
    for make in (
        lambda: StyleObjective(bare, picture(32, 32), picture(32, 32)),
        lambda: StyleTransferLoss(bare, picture(32, 32)),
    ):
        with pytest.raises(ValueError, match="vgg13 has no preprocessing inside, and a style"):
            make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style_weight": 0}, "style_weight must be a positive number, not 0"),
        ({"style_layers": ()}, "style_layers must be different layers"),
        ({"content_layer": "block4_pool"}, "must be a convolution of VGG, .* not 'block4_pool'"),
        ({"style_layers": ("block1_conv9",)}, "has no layer 'block1_conv9'"),
        ({"content": picture(31, 40)}, "content must be at least 32 pixels .* not 31 x 40"),
        ({"style": picture(40, 40)[..., 0]}, r"style must be \[height, width, 3\], not"),
        ({"style": picture(40, 40) - 300}, r"\[0, 255\] is expected"),
    ],
)
def test_objectives_that_make_no_sense(base, options, message):
    options = {"content": picture(40, 40), "style": picture(40, 40, seed=1)} | options
    with pytest.raises(ValueError, match=message):
        StyleObjective(base, options.pop("content"), options.pop("style"), **options)


@pytest.mark.slow
def test_one_layer_of_style_by_its_name(base):
    content, style = picture(32, 32), picture(32, 32, seed=1)
    found = [
        StyleObjective(base, content, style, style_layers=layers, content_layer=CONTENT)(content)[0]
        for layers in ("block1_conv1", ["block1_conv1"])
    ]
    assert found[0] == found[1]
