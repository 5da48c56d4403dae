"""Training from given weights: what is loaded, what is frozen, what is computed once."""

import shutil

import keras
import numpy as np
import pytest
from PIL import Image

import keras_vgg
from keras_vgg import cli, data
from keras_vgg import fit as fitting
from keras_vgg.array_cache import ArrayCache
from keras_vgg.fit import Run, build_model, fit, frozen, preparation
from keras_vgg.fit.inputs import channel_statistics
from keras_vgg.fit.model import initial_weights
from keras_vgg.fit.optimizer import SGD
from keras_vgg.recipe import Recipe
from keras_vgg.run import UnfinishedRun
from tests.test_fit import fit_interrupted

pytestmark = pytest.mark.usefixtures("blank_plots")

# Images that are the same every epoch, a mirror image apart.
FIXED = Recipe(
    width_multiplier=1 / 16,
    hidden_units=8,
    validation_fraction=0.1,
    test_fraction=0.8,
    batch_size=32,
    epochs=2,
    train_scale=(32, 32),
    eval_scale=32,
    horizontal_flip=True,
)

STATISTICS = data.ChannelStatistics(
    np.full(3, 100.0), np.full(3, 50.0), np.ones(3), np.eye(3), images=1
)


@pytest.fixture(scope="module")
def pretrained(tiny_run, tmp_path_factory):
    """A run to begin from, with batch norm, whose every weight is random; it is only read."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    shutil.copytree(tiny_run.directory, folder)
    run = Run(folder, tiny_run.recipe.replace(batch_norm=True))
    run.write_recipe()
    model = build_model(run.recipe, 10, STATISTICS)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0, 0.1, w.shape) for w in model.get_weights()])
    model.save(run.model_path)
    return run


def weights_of(model, *prefixes):
    return {
        w.path: keras.ops.convert_to_numpy(w)
        for layer in model.layers
        if layer.name.startswith(prefixes)
        for w in layer.weights
    }


def recipe_from(run, **changes):
    return FIXED.replace(init=str(run.directory), **changes)


@pytest.mark.parametrize("head", ["fc", pytest.param("gap", marks=pytest.mark.slow)])
def test_a_frozen_base_is_kept_and_its_features_are_computed_once(
    pretrained, tmp_path, monkeypatch, head
):
    recipe = recipe_from(pretrained, freeze_until="all", head=head, epochs=3)
    calls = []
    compute = frozen.Features._compute
    monkeypatch.setattr(
        frozen.Features,
        "_compute",
        lambda self, *arguments: (calls.append(1), compute(self, *arguments))[1],
    )
    run = fit(recipe, tmp_path / "run", verbose=0)
    assert len(calls) == 2  # training and validation
    model = run.model()
    before, after = (weights_of(m, "block") for m in (pretrained.model(), model))
    assert len(before) == 8 * 6  # batch norm's statistics among them
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    # What was recorded on features is what the whole network has on images.
    found = fitting.load_source(recipe)
    from keras_vgg import data

    images = data.evaluation_dataset(found.validation, 64, fitting.evaluation_transform(recipe))
    hits = [model(x).numpy().argmax(1) == y.numpy() for x, y in images]
    assert np.concatenate(hits).mean() == pytest.approx(run.results["validation_accuracy"])
    assert run.results["parameters"] == model.count_params()
    assert run.read_json("environment.json")["keeps_features"]


def test_the_head_of_a_float16_network_scales_its_loss():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras_vgg.vgg(
            "A", weights=None, input_shape=(32, 32, 3), classes=3, width_multiplier=1 / 16
        )
    finally:
        keras.config.set_dtype_policy("float32")
    _, head = frozen.split_model(model)
    head.compile("sgd", "categorical_crossentropy")
    assert isinstance(head.optimizer, keras.optimizers.LossScaleOptimizer)


@pytest.mark.slow
def test_features_are_the_bases_output_of_each_image_and_its_mirror_image(pretrained, tmp_path):
    recipe = recipe_from(pretrained, freeze_until="all")
    run = fit(recipe, tmp_path / "run", verbose=0)
    source = fitting.load_source(recipe)
    base, head = frozen.split_model(run.model())
    found = frozen.Features(
        base,
        source.train,
        fitting.evaluation_transform(recipe),
        mirrored=True,
        folder=run.directory / "features" / source.train.name,
    )
    assert found.seconds == 0  # read, not computed
    assert found.features.shape == (source.train.size, 2, 1, 1, 32)
    image = fitting.evaluation_transform(recipe)(source.train.images[7]).numpy()[None]
    np.testing.assert_allclose(found.features[7, 0], base(image)[0], rtol=1e-4, atol=1e-5)
    mirrored = base(image[:, :, ::-1])[0]
    np.testing.assert_allclose(found.features[7, 1], mirrored, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found.features[7, 0], found.features[7, 1])
    np.testing.assert_array_equal(found.labels, source.train.labels)
    for dataset in (found.training(8, seed=0, start_epoch=0), found.evaluation(8)):
        assert dataset.options().autotune.enabled is False  # it holds up an iterator's end
    np.testing.assert_allclose(
        head(found.features[:5, 0]),
        run.model().predict(_images(recipe, source, 5), verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )
    # Each image once an epoch, as one view or the other; the same for the same seed and epoch.
    epoch = source.train.size // 32
    first = list(found.training(32, seed=3, start_epoch=0).take(2 * epoch).as_numpy_iterator())
    second = list(found.training(32, seed=3, start_epoch=1).take(epoch).as_numpy_iterator())
    for (a, _), (b, _) in zip(first[epoch:], second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0][0], second[0][0])
    known = {
        found.features[i, view].tobytes(): (i, view)
        for i in range(source.train.size)
        for view in (0, 1)
    }
    drawn = [known[feature.tobytes()] for batch, _ in second for feature in batch]
    assert len({i for i, _ in drawn}) > 0.97 * 32 * epoch  # a few digits are alike
    assert 0.3 < np.mean([view for _, view in drawn]) < 0.7
    for (batch, labels), _ in zip(second, range(3), strict=False):
        for feature, label in zip(batch, labels, strict=True):
            assert source.train.labels[known[feature.tobytes()][0]] == label


def _images(recipe, source, count):
    transform = fitting.evaluation_transform(recipe)
    return np.stack([transform(image).numpy() for image in source.train.images[:count]])


def test_features_of_other_weights_are_not_reused(tmp_path):
    split = fitting.load_source(FIXED).validation.take(np.arange(8))
    layers = [keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()]
    base = keras.Sequential([keras.Input((32, 32, 3)), *layers])
    options = {"mirrored": False, "folder": tmp_path / "features"}
    transform = fitting.evaluation_transform(FIXED)
    first = np.array(frozen.Features(base, split, transform, **options).features)
    base.set_weights([2 * values for values in base.get_weights()])
    second = frozen.Features(base, split, transform, **options)
    assert second.seconds > 0
    np.testing.assert_allclose(second.features, 2 * first, rtol=1e-5)
    assert np.abs(first).max() > 1


@pytest.mark.slow
def test_features_of_another_preprocessing_are_not_reused(pretrained, tmp_path):
    """The same weights behind another first layer are another network."""
    source = fitting.load_source(FIXED)
    transform = fitting.evaluation_transform(FIXED)
    options = {"mirrored": False, "folder": tmp_path / "features"}
    found = []
    stated = pretrained.model().get_layer("preprocessing")
    # More than a grey level or two is another preprocessing than the file states.
    close = keras_vgg.ImagePreprocessing([mean + 1 for mean in stated.mean], stated.std)
    for preprocessing in (close, True):
        net = keras_vgg.vgg(
            "A",
            include_top=False,
            weights=pretrained.directory,
            batch_norm=True,
            width_multiplier=1 / 16,
            input_shape=(32, 32, 3),
            include_preprocessing=preprocessing,
        )
        base = keras.Model(net.inputs[0], net.get_layer("block5_pool").output)
        found.append(frozen.Features(base, source.validation, transform, **options))
    assert found[1].seconds > 0
    assert not np.allclose(found[0].features, found[1].features)
    # A file that was cut off is computed again.
    (path,) = (tmp_path / "features").glob("*.npz")
    path.write_bytes(path.read_bytes()[:500])
    again = frozen.Features(base, source.validation, transform, **options)
    np.testing.assert_array_equal(again.features, found[1].features)
    with pytest.raises(ValueError, match="batch_size must divide 2048, not 48"):
        frozen.Features(base, source.validation, transform, batch_size=48, **options)


@pytest.mark.slow
def test_an_interrupted_computation_goes_on_where_it_was(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "SHARD", 64)
    source = fitting.load_source(FIXED)
    base, _ = frozen.split_model(pretrained.model())
    transform = fitting.evaluation_transform(FIXED)
    options = {"mirrored": True, "batch_size": 32}
    whole = frozen.Features(base, source.train, transform, folder=tmp_path / "a", **options)
    add, added = ArrayCache.add, []

    def interrupted(self, **arrays):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(arrays)
        add(self, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayCache, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            frozen.Features(base, source.train, transform, folder=tmp_path / "b", **options)
    assert len(list((tmp_path / "b").glob("*.npz"))) == 2
    again = frozen.Features(base, source.train, transform, folder=tmp_path / "b", **options)
    np.testing.assert_array_equal(whole.features, again.features)
    np.testing.assert_array_equal(whole.labels, again.labels)


@pytest.mark.slow
def test_a_resumed_head_ends_as_an_uninterrupted_one(pretrained, tmp_path, monkeypatch):
    recipe = recipe_from(pretrained, freeze_until="all", epochs=3)
    whole = fit(recipe, tmp_path / "whole", verbose=0)
    fit_interrupted(recipe, tmp_path / "cut", 2, monkeypatch)
    again = fit(recipe, tmp_path / "cut", verbose=0)
    for a, b in zip(whole.model().get_weights(), again.model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_images_that_are_not_rescaled_vary_but_for_runs_that_kept_their_features(tmp_path):
    """Crops of them lie anywhere, and features are of the centre."""
    recipe = FIXED.replace(freeze_until="all", init="imagenet", train_scale=None, eval_scale=None)
    assert frozen.varies(recipe) == ["train_scale"]
    assert not frozen.keeps_features(recipe)
    run = Run(tmp_path, recipe)
    for environment, kept in (({}, True), ({"keeps_features": False}, False)):
        run.write_json("environment.json", environment)
        assert frozen.has_kept_features(run) is kept
    run.write_json("environment.json", {})
    assert not frozen.has_kept_features(Run(tmp_path, recipe.replace(brightness=0.1)))
    assert frozen.has_kept_features(Run(tmp_path, FIXED.replace(freeze_until="all", init="a")))


@pytest.mark.slow
def test_images_that_vary_go_through_the_frozen_base_every_epoch(pretrained, tmp_path, capsys):
    recipe = recipe_from(pretrained, freeze_until="all", epochs=1, brightness=0.1)
    run = fit(recipe.replace(train_scale=(32, 40)), tmp_path / "run", verbose=2)
    out = capsys.readouterr().out
    assert "runs every epoch, because train_scale, brightness give it new images" in out
    assert not (run.directory / "features").exists()
    before, after = (weights_of(m, "block") for m in (pretrained.model(), run.model()))
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


@pytest.mark.slow
def test_blocks_before_freeze_until_are_kept(pretrained, tmp_path):
    run = fit(recipe_from(pretrained, freeze_until="block4", epochs=1), tmp_path / "run", verbose=0)
    before, after = pretrained.model(), run.model()
    for name in ("block1", "block2", "block3"):
        for path, value in weights_of(before, name).items():
            np.testing.assert_array_equal(weights_of(after, name)[path], value, err_msg=path)
    for name in ("block4", "block5", "fc1"):
        a, b = weights_of(before, name), weights_of(after, name)
        # The bias of a convolution before batch norm has no gradient.
        moved = [p for p in a if "conv" not in p or "kernel" in p]
        assert all(not np.array_equal(a[path], b[path]) for path in moved)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("init_head", "kept"),
    [("hidden", ("fc1", "fc2")), ("all", ("fc1", "fc2", "predictions")), ("none", ())],
)
def test_how_much_of_the_classifier_is_loaded(pretrained, init_head, kept):
    recipe = recipe_from(pretrained, init_head=init_head)
    initial = initial_weights(recipe)
    statistics = channel_statistics(recipe, None)
    model = fitting.build_model(recipe, 10, statistics, initial=initial)
    before = weights_of(pretrained.model(), "fc", "pred")
    for path, value in weights_of(model, "fc", "pred").items():
        if path.endswith("kernel"):
            assert np.array_equal(value, before[path]) == path.startswith(kept), path
    # The preprocessing came with the weights.
    theirs, ours = (m.get_layer("preprocessing").get_config() for m in (pretrained.model(), model))
    assert (ours["mean"], ours["std"]) == (theirs["mean"], theirs["std"])


@pytest.mark.slow
def test_published_convolutions_bring_their_preprocessing(data_folder):
    recipe = Recipe(
        configuration="D",
        width_multiplier=1.0,
        batch_norm=False,
        init=str(data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        head="gap",
    )
    initial = initial_weights(recipe)
    model = fitting.build_model(recipe, 10, channel_statistics(recipe, None), initial=initial)
    expected = keras_vgg.VGG16(
        include_top=False, weights=recipe.init, input_shape=(32, 32, 3), include_preprocessing=True
    )
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    features = keras.Model(model.inputs[0], model.get_layer("block5_pool").output)
    np.testing.assert_allclose(features(x), expected(x), rtol=1e-4, atol=1e-4)


def test_learning_rates_by_depth():
    """One step of plain SGD moves a weight by learning rate x decay^depth x gradient."""
    model = keras_vgg.vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=3,
        width_multiplier=1 / 16,
        hidden_units=8,
        dropout=0.0,
    )
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    y = np.eye(3, dtype="float32")[[0, 1, 2, 0]]

    def moved(optimizer):
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        clone.compile(optimizer, "categorical_crossentropy")
        clone.train_on_batch(x, y)
        return {
            w.path: keras.ops.convert_to_numpy(w) - before
            for w, before in zip(clone.weights, model.get_weights(), strict=True)
        }

    plain, layered = moved(keras.optimizers.SGD(0.1)), moved(SGD(0.1, layer_decay=0.5))
    for path, step in plain.items():
        depth = 6 - int(path[5]) if path.startswith("block") else 0
        np.testing.assert_allclose(layered[path], step * 0.5**depth, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_until": "all"}, "need init, such as imagenet"),
        ({"init_head": "all"}, "need init, such as imagenet"),
        (
            {"freeze_until": "block6", "init": "imagenet"},
            "freeze_until must be one of none, block2",
        ),
        ({"layer_decay": 0.0}, r"layer_decay must be in \[1e-06, 1\]"),
        ({"init": "imagenet", "mean_rgb": (1, 2, 3)}, "give mean_rgb and std_rgb both, or neither"),
    ],
)
def test_fields_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        FIXED.replace(**changes)


def test_weights_that_do_not_fit(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"nothing was loaded: .*missing block1_conv2"):
        fit(recipe_from(pretrained, configuration="B"), tmp_path / "a", verbose=0)
    with pytest.raises(FileNotFoundError, match="no weight file at nowhere"):
        fit(FIXED.replace(init="nowhere.h5"), tmp_path / "a", verbose=0)
    silent = tmp_path / "silent.weights.h5"
    pretrained.model().save_weights(silent)
    with pytest.raises(ValueError, match=r"does not say which input .* give mean_rgb and std_rgb"):
        fit(FIXED.replace(init=str(silent)), tmp_path / "a", verbose=0)
    assert not (tmp_path / "a").exists()


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_advice_about_silent_weights_keeps_the_order_of_the_colours(tmp_path, monkeypatch):
    """A network of one's own, fine-tuned with the preprocess_input of keras.applications: BGR."""
    monkeypatch.chdir(tmp_path)
    base = keras_vgg.vgg(
        "A", include_top=False, weights=None, input_shape=(32, 32, 3), width_multiplier=1 / 16
    )
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    keras.Model(base.input, keras.layers.Dense(5, name="mine")(x)).save("mine.h5")
    recipe = FIXED.replace(init="mine.h5", batch_norm=False)
    with pytest.raises(ValueError, match=r"mine\.h5 does not say which input") as error:
        build_model(recipe, 10, STATISTICS, initial=initial_weights(recipe))
    message = str(error.value)
    assert message.endswith("; or, if it takes RGB or luma, give mean_rgb and std_rgb")
    command = message.partition("keras-vgg ")[2].partition(" (as")[0].split()
    assert cli.main(command) == 0
    recipe = recipe.replace(init="FILE.keras")
    model = build_model(recipe, 10, STATISTICS, initial=initial_weights(recipe))
    assert model.get_layer("preprocessing").channel_order == "bgr"


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_refused(pretrained, tmp_path, monkeypatch):
    weights = tmp_path / "weights.keras"
    pretrained.model().save(weights)
    recipe = FIXED.replace(init=str(weights))
    fit_interrupted(recipe, tmp_path / "run", 1, monkeypatch)
    other = pretrained.model()
    other.get_layer("block1_conv1").bias.assign_add(keras.ops.ones(4))
    other.save(weights)
    with pytest.raises(ValueError, match=r"have changed since .* began"):
        fit(recipe, tmp_path / "run", verbose=0)
    assert len(Run.open(tmp_path / "run").history) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("head", "batch_norm"), [("fc", True), ("gap", False)])
def test_a_deeper_net_takes_four_convolutions_and_the_classifier_from_a(tmp_path, head, batch_norm):
    """Section 3.1; the other layers are drawn as those of A were."""
    recipe = FIXED.replace(
        head=head, batch_norm=batch_norm, initialization="normal", learning_rate=1e-6, epochs=1
    )
    first = fit(recipe, tmp_path / "a", verbose=0)
    deeper = recipe.replace(configuration="D", initialization=str(first.directory))
    initial = initial_weights(deeper)
    built = build_model(deeper, 10, STATISTICS, initial=initial)
    copied = {"block1_conv1", "block2_conv1", "block3_conv1", "block3_conv2"}
    copied |= {f"{name}_bn" for name in copied} if batch_norm else set()
    copied |= {"fc1", "fc2", "predictions"} if head == "fc" else {"predictions"}
    assert initial.tensors.keys() == copied
    a = first.model()
    for layer in built.layers:
        if layer.name in copied:
            theirs = a.get_layer(layer.name).get_weights()
            for mine, other in zip(layer.get_weights(), theirs, strict=True):
                np.testing.assert_array_equal(mine, other)
        elif "conv" in layer.name and not layer.name.endswith(("_bn", "_relu")):
            assert np.abs(layer.get_weights()[1]).max() == 0  # biases
    drawn = built.get_layer("block5_conv3").get_weights()[0]
    assert drawn.std() == pytest.approx(0.1, rel=0.05)
    assert built.get_layer("preprocessing").mean == a.get_layer("preprocessing").mean
    run = fit(deeper, tmp_path / "d", verbose=0)
    assert run.read_json("init.json")["sha256"] == initial.sha256()


def test_initialization_that_does_not_fit(pretrained, tmp_path):
    directory = str(pretrained.directory)
    unfinished = shutil.copytree(directory, tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    for changes, error, message in (
        ({"initialization": "he"}, ValueError, "must be normal, normal:SD, glorot, a Keras"),
        ({"initialization": "normal:"}, ValueError, "a positive standard deviation"),
        ({"initialization": "normal:-1"}, ValueError, "a positive standard deviation"),
        ({"initialization": str(tmp_path)}, ValueError, "or a run directory, not"),
        ({"initialization": directory, "init": directory}, ValueError, "choose one"),
        (
            {"initialization": directory, "width_multiplier": 1 / 8},
            ValueError,
            "nothing was loaded: block1_conv1",
        ),
        (
            {"initialization": directory, "head": "gap"},
            ValueError,
            "has head='fc', this recipe 'gap'",
        ),
        ({"initialization": str(unfinished)}, ValueError, "has not finished training"),
    ):
        with pytest.raises(error, match=message):
            fit(FIXED.replace(configuration="B", **changes), tmp_path / "run", verbose=0)
        assert not (tmp_path / "run").exists()


def test_a_random_start_is_what_its_name_says():
    spread = {}
    for name in ("normal", "normal:0.01", "glorot", "glorot_uniform", "he_normal"):
        keras.utils.set_random_seed(0)
        built = build_model(FIXED.replace(initialization=name, batch_norm=False), 10, STATISTICS)
        kernel, bias = built.get_layer("block4_conv2").get_weights()
        assert not bias.any()
        spread[name] = kernel.std()
    fan = 9 * 32
    assert spread["normal"] == pytest.approx(0.1, rel=0.05)
    assert spread["normal:0.01"] == pytest.approx(0.01, rel=0.05)
    assert spread["glorot"] == spread["glorot_uniform"]
    assert spread["glorot"] == pytest.approx((2 / (2 * fan)) ** 0.5, rel=0.05)
    assert spread["he_normal"] == pytest.approx((2 / fan) ** 0.5, rel=0.05)


def test_the_whole_classifier_is_of_the_same_classes(pretrained, tmp_path):
    for number in range(24):
        path = tmp_path / "photos" / "abcdefghij"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(path)
    recipe = recipe_from(pretrained, init_head="all", source=f"folder:{tmp_path / 'photos'}")
    with pytest.raises(
        ValueError, match=r"whose classes are 0, 1, .*, and folder:.* has a, b: take"
    ):
        fit(recipe.replace(test_fraction=0.2), tmp_path / "run", verbose=0)


def test_weights_of_a_run_that_is_being_trained_come_with_a_notice(
    pretrained, tmp_path, monkeypatch
):
    shutil.copytree(pretrained.directory, tmp_path / "from")
    (tmp_path / "from" / "results.json").unlink()
    recipe = FIXED.replace(init=str(tmp_path / "from"))
    source = fitting.load_source(recipe)
    with pytest.warns(UnfinishedRun, match="has not finished training"):
        preparation._check_init(recipe, source)
    (tmp_path / "from" / "model.keras").unlink()
    with pytest.raises(ValueError, match="has no network yet"):
        preparation._check_init(recipe, source)


def test_a_base_takes_no_more_images_than_a_step():
    for batch_size, parts, expected in (
        (64, 1, 64),
        (128, 1, 64),
        (48, 1, 32),
        (8, 1, 8),
        (8, 4, 2),
    ):
        recipe = FIXED.replace(batch_size=batch_size, gradient_accumulation=parts)
        assert frozen.batch_size_of(recipe) == expected
