"""GeM and R-MAC by hand, on every backend; whitening, neighbours, near-duplicates, precision."""

import io
import re
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import average_precision_score

import keras_vgg
from keras_vgg import retrieval, transfer
from tests.dense_networks import values
from tests.other_backends import passes_on
from tests.test_features import torch_features
from tests.test_perceptual import gradient_of


@pytest.fixture(scope="module")
def base():
    return keras_vgg.vgg("A", weights=None, include_top=False, width_multiplier=1 / 16)


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


def unit(values):
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(length > 0, length, 1)


def maps_of(model, name, x):
    part = keras.Model(model.inputs[0], model.get_layer(name).output)
    return np.asarray(ops.convert_to_numpy(part(x, training=False)), "float64")


def rmac_by_hand(feature_map, levels, whitening=lambda x: x):
    """Tolias et al., section 3.2, for one map [h, w, c] that is higher than wide or square."""
    height, width, _ = feature_map.shape
    total = 0.0
    for level in range(1, levels + 1):
        side = max(1, int(2 * width / (level + 1)))
        steps = {1: 0, 1.5: 1, 2: 1}[height / width]  # 40 % of overlap: m - 1 more squares
        rows = np.floor(np.linspace(0, height - side, level + steps) + 1e-9).astype(int)
        columns = np.floor(np.linspace(0, width - side, level) + 1e-9).astype(int)
        for top in rows:
            for left in columns:
                vector = feature_map[top : top + side, left : left + side].max((0, 1))
                total = total + unit(whitening(unit(vector)[None]))[0]
    return unit(total)


@pytest.mark.parametrize("power", [1, 3, 7.5])
def test_gem_by_hand(base, power):
    x = images(2, 64, 96, 3)
    maps = maps_of(base, "block4_conv2", x)
    expected = unit((maps**power).mean((1, 2)) ** (1 / power))
    result = transfer.embed(base, x, layer="block4_conv2", pooling="gem", power=power, flip=False)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64)])
def test_rmac_by_hand(base, height, width):
    x = images(2, height, width, 3)
    maps = maps_of(base, "block3_conv2", x)
    expected = [rmac_by_hand(one, 3) for one in maps]
    result = transfer.embed(base, x, layer="block3_conv2", pooling="rmac", flip=False)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    whitening = retrieval.learn_whitening(
        transfer.region_descriptors(base, x, layer="block3_conv2", flip=False), 6
    )
    expected = [rmac_by_hand(one, 3, whitening) for one in maps]
    result = transfer.embed(
        base, x, layer="block3_conv2", pooling="rmac", whitening=whitening, flip=False
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_max_and_mirror_images_by_hand(base):
    x = images(2, 32, 32, 3)
    views = [maps_of(base, "block2_pool", view).max((1, 2)) for view in (x, x[:, :, ::-1])]
    result = transfer.embed(base, x, layer="block2_pool", pooling="max")
    np.testing.assert_allclose(result, unit(np.mean(views, 0)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, "block5_conv3"])
def test_descriptors_of_a_photograph_are_those_of_pytorchs_layers(data_folder, layer):
    """With the ImageNet convolutions and the mirror image; the default layer is block5_pool."""
    pytest.importorskip("torch")
    weights = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    model = keras_vgg.VGG16(include_top=False, weights=weights, include_preprocessing=True)
    photo = load_sample_images().images[0][200:392, 200:328].astype("float32")
    views = values(model.get_layer("preprocessing")(np.stack([photo, photo[:, ::-1]])))
    features = torch_features(model, views, average=False)
    maps = features[f"{layer}:post" if layer else "block5_pool"].astype("float64")
    expected = {
        "gem": (maps**3).mean((1, 2)) ** (1 / 3),
        "rmac": np.stack([rmac_by_hand(one, 3) for one in maps]),
    }
    for pooling, rows in expected.items():
        (result,) = transfer.embed(model, photo[np.newaxis], layer=layer, pooling=pooling)
        wanted = unit(rows.mean(0))
        assert np.abs(result - wanted).max() < 1e-4 * wanted.max(), pooling


def test_images_in_0_1_are_warned_of():
    model = keras_vgg.vgg(
        "A", weights=None, include_top=False, width_multiplier=1 / 16, include_preprocessing=True
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        transfer.embed(model, images(3, 32, 32, 3) / 255, sizes=(32, 64), batch_size=2)
    (one,) = caught  # and no other for mirror images, the second batch and the second size
    assert re.search(r"values from .*, but \[0, 255\] is expected", str(one.message))


def test_gem_of_large_features_is_finite_by_hand():
    maps = np.array([[[[1e20, 0.0, -3.0]]], [[[2e20, 0.0, 1.0]]]], "float32")
    result = ops.convert_to_numpy(transfer.generalized_mean(maps, 3))
    np.testing.assert_allclose(result, [[1e20, 0, 0], [2e20, 0, 1]], rtol=1e-5)


def test_gem_of_a_channel_without_an_answer_has_a_gradient_by_hand():
    maps = np.zeros((1, 2, 2, 2), "float32")
    maps[..., 1] = [[1, 2], [3, 4]]
    slope = gradient_of(lambda _, x: transfer.generalized_mean(x, 3), maps, maps)
    cubes = maps[0, ..., 1] ** 3
    wanted = maps[0, ..., 1] ** 2 / 4 * cubes.mean() ** (-2 / 3)
    np.testing.assert_allclose(slope[0, ..., 1], wanted, rtol=1e-5)
    np.testing.assert_array_equal(slope[..., 0], 0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_on(backend):
    assert "8 passed" in passes_on(backend, "-k", "by_hand", __file__)


def test_regions_of_the_paper():
    """Square: 1 + 4 + 9 squares of all, two thirds, half the side. Two to one: 3 + 8 + 15."""
    counts = np.unique([side for _, _, side in transfer.regions(12, 12)], return_counts=True)
    assert [x.tolist() for x in counts] == [[6, 8, 12], [9, 4, 1]]
    assert [len(transfer.regions(*sides)) for sides in ((24, 12), (12, 24))] == [26, 26]
    for height, width in ((1, 1), (2, 3), (7, 5), (3, 40), (14, 20)):
        covered = np.zeros((height, width))
        for top, left, side in transfer.regions(height, width, 4):
            assert 0 <= top <= height - side
            assert 0 <= left <= width - side
            covered[top : top + side, left : left + side] = 1
        assert covered.all()
    with pytest.raises(ValueError, match="0 levels has no regions"):
        transfer.regions(3, 3, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "pooling must be one of avg, max, gem, rmac, not 'mean'"),
        ({"pooling": "gem", "power": 0.5}, "power must be a number of at least 1, not 0.5"),
        ({"pooling": "gem", "power": float("nan")}, "power must be a number of at least 1"),
        ({"pooling": "rmac", "levels": 0}, "levels must be a whole number of at least 1, not 0"),
    ],
)
def test_poolings_that_make_no_sense(base, options, message):
    with pytest.raises(ValueError, match=message):
        transfer.embed(base, images(1, 32, 32, 3), **options)


def test_a_dense_layer_has_no_map_to_pool():
    network = keras_vgg.vgg(
        "A", weights=None, input_shape=(32, 32, 3), width_multiplier=1 / 16, hidden_units=8
    )
    with pytest.raises(ValueError, match=r"fc1 gives .* no feature map: pool it by 'avg'"):
        transfer.embed(network, images(1, 32, 32, 3), layer="fc1", pooling="gem")


def test_whitened_descriptors_are_uncorrelated(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    descriptors = unit(rng.normal(size=(200, 3)) @ rng.normal(size=(3, 5)))
    whitening = retrieval.learn_whitening(descriptors, 2)
    centred = (descriptors - whitening.mean) @ whitening.projection.T
    np.testing.assert_allclose(np.cov(centred.T), np.eye(2), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whitening(descriptors), axis=1), 1, rtol=1e-6)
    # The descriptors vary in three directions; the rest is rounding.
    assert len(retrieval.learn_whitening(descriptors).projection) == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    whitening.save("~/w.npz")
    again = retrieval.load_whitening(tmp_path / "w.npz")
    np.testing.assert_array_equal(again(descriptors), whitening(descriptors))


@pytest.mark.slow
def test_whitenings_that_cannot_be_had(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 4))
    with pytest.raises(ValueError, match="at least 2 descriptors, not on 1"):
        retrieval.learn_whitening(x[:1])
    with pytest.raises(ValueError, match="all equal"):
        retrieval.learn_whitening(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"dimensions must be from 1 to 4, .* not 5"):
        retrieval.learn_whitening(x, 5)
    with pytest.raises(ValueError, match="not finite"):
        retrieval.learn_whitening(x * np.nan)
    whitening = retrieval.learn_whitening(x)
    with pytest.raises(ValueError, match="for descriptors of 4 numbers, not of 3"):
        whitening(x[:, :3])
    with pytest.raises(ValueError, match=r"must end in .npz, not 'w.pkl'"):
        whitening.save(tmp_path / "w.pkl")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match="holds no whitening: it has mean"):
        retrieval.load_whitening(tmp_path / "other.npz")
    np.savez_compressed(tmp_path / "bomb.npz", mean=np.zeros(2**24))
    with pytest.raises(ValueError, match="not safe to read"):
        retrieval.load_whitening(tmp_path / "bomb.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:90])
    with pytest.raises(ValueError, match="is damaged"):
        retrieval.load_whitening(tmp_path / "cut.npz")


def test_nearest_is_a_full_sort():
    rng = np.random.default_rng(0)
    descriptors, queries = unit(rng.normal(size=(50, 4))), unit(rng.normal(size=(3, 4)))
    descriptors[7] = descriptors[3]  # equal similarities keep their order
    numbers, similarities = retrieval.nearest(descriptors, queries, 50)
    expected = np.argsort(-(queries @ descriptors.T), axis=1, kind="stable")
    np.testing.assert_array_equal(numbers, expected)
    few = retrieval.nearest(descriptors, queries, 4)
    np.testing.assert_array_equal(few[0], expected[:, :4])
    np.testing.assert_allclose(few[1], similarities[:, :4])
    assert retrieval.nearest(descriptors, queries, 99)[0].shape == (3, 50)
    with pytest.raises(ValueError, match=r"same d, not \[50, 4\] and \[3, 2\]"):
        retrieval.nearest(descriptors, queries[:, :2])
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        retrieval.nearest(descriptors, queries, 0)
    with pytest.raises(ValueError, match="there are no descriptors"):
        retrieval.nearest(descriptors[:0], queries)
    with pytest.raises(ValueError, match="not finite"):
        retrieval.nearest(descriptors, np.full_like(queries, np.nan))


def test_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    descriptors, queries = unit(rng.normal(size=(60, 4))), unit(rng.normal(size=(5, 4)))
    labels = rng.integers(3, size=60)
    result = retrieval.average_precisions(descriptors, labels, queries, np.array([0, 1, 2, 0, 9]))
    for i, label in enumerate([0, 1, 2, 0]):
        expected = average_precision_score(labels == label, descriptors @ queries[i])
        np.testing.assert_allclose(result[i], expected)
    assert np.isnan(result[4])
    with pytest.raises(ValueError, match="need a label each"):
        retrieval.average_precisions(descriptors, labels[:5], queries, np.zeros(5))


WHITE, BLACK, BLUE, RED, YELLOW = np.array(
    [[255, 255, 255], [0, 0, 0], [0, 35, 149], [237, 41, 57], [255, 233, 54]]
)


def test_copies_are_near_duplicates_and_other_photographs_are_not():
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    file = io.BytesIO()
    china.resize((160, 107)).save(file, "JPEG", quality=15)
    brighter = np.clip(1.2 * np.asarray(Image.open(file).convert("RGB")), 0, 255)
    copies = [brighter.astype("uint8"), np.asarray(china.convert("L").convert("RGB"))]
    hashes = np.stack([retrieval.perceptual_hash(image) for image in [*copies, np.asarray(flower)]])
    distances = retrieval.hash_distances(hashes, retrieval.perceptual_hash(np.asarray(china)))
    assert (distances[:2] <= retrieval.NEAR).all()
    assert distances[2] > 2 * retrieval.NEAR


def test_an_image_without_structure_is_no_near_duplicate():
    white = np.full((40, 30, 3), 255, "uint8")
    hashes = np.stack([retrieval.perceptual_hash(white), np.full(32, 255, "uint8")])
    assert retrieval.hash_distances(hashes, hashes[0]).tolist() == [retrieval.NO_STRUCTURE] * 2
    assert retrieval.hash_distances(hashes, hashes[1]).tolist() == [retrieval.NO_STRUCTURE, 0]
    with pytest.raises(ValueError, match=r"must be \[height, width, 3\], not \[40, 30\]"):
        retrieval.perceptual_hash(white[..., 0])
    with pytest.raises(ValueError, match="is expected"):
        retrieval.perceptual_hash(np.full((40, 30, 3), 1000.0))


def test_pictures_of_stripes_are_no_near_duplicates_of_each_other():
    # France, Belgium, and a gradient: their other frequencies are all 0.
    flags = [np.repeat(colours, 100, 0) for colours in ([BLUE, WHITE, RED], [BLACK, YELLOW, RED])]
    rows = [*flags, np.linspace(0, 255, 300)[:, None] * np.ones(3)]
    for row in rows:
        across = np.tile(np.asarray(row, "float32"), (200, 1, 1))
        for picture in (across, across.swapaxes(0, 1)):
            assert not retrieval.perceptual_hash(picture).any()
    # A picture that is symmetric in one direction keeps half of its frequencies.
    half = np.repeat(np.repeat([[RED, WHITE, BLUE], [WHITE, BLACK, RED]], 32, 0), 16, 1)
    assert retrieval.perceptual_hash(np.concatenate([half, half[:, ::-1]], 1)).any()


def test_the_benchmark_of_nearest_descriptors(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import nearest

    words = ["nearest.py", "--photographs", "300", "--queries", "1", "7", "--dimensions", "16"]
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "1"])
    nearest.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if "NumPy" in line]
    assert [row.split(" | ")[:2] for row in rows] == [["| 300", "1"], ["| 300", "7"]]
    assert all("| 100.0% |" in row for row in rows)
