"""Table 1, Table 2 and the arithmetic, against the paper's figures."""

import keras
import numpy as np
import pytest

from keras_vgg import architecture, vgg

# Table 2 prints 133, 133, 134, 138, 144 million; these are exact, with 1000 classes.
PARAMETERS = {
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
}

# fmt: off
PARAMETERS_OF_D = [
    1792, 36928, 73856, 147584, 295168, 590080, 590080, 1180160, 2359808, 2359808, 2359808,
    2359808, 2359808, 102764544, 16781312, 4097000,
]
# fmt: on


@pytest.mark.parametrize(("configuration", "expected"), PARAMETERS.items())
def test_parameters(configuration, expected):
    assert architecture.parameters(configuration) == expected


def test_parameters_layer_by_layer():
    rows = architecture.layers("D")
    assert [row.parameters for row in rows if row.parameters] == PARAMETERS_OF_D


@pytest.mark.parametrize(
    ("configuration", "depth"),
    [("A", 11), ("A-LRN", 11), ("B", 13), ("C", 16), ("D", 16), ("E", 19)],
)
def test_weight_layers(configuration, depth):
    assert architecture.get_configuration(configuration).weight_layers == depth


def test_c_ends_its_last_three_blocks_with_1x1():
    kernels = {name: kernel for name, kernel, _ in architecture.convolutions("C")}
    assert [name for name, kernel in kernels.items() if kernel == 1] == [
        "block3_conv3",
        "block4_conv3",
        "block5_conv3",
    ]


def test_macs_of_d():
    # 15.5 G multiply-accumulates at 224x224, of which the classifier has 123.6 M.
    assert architecture.macs("D") == 15_470_264_320
    assert architecture.macs("D", include_top=False) == 15_346_630_656


def test_receptive_field_of_stacked_convolutions():
    fields = {row.name: row.receptive_field for row in architecture.layers("D")}
    # Section 2.3: two 3x3 layers see 5x5.
    assert fields["block1_conv2"] == 5
    assert fields["block5_pool"] == 212
    assert fields["fc1"] is None
    conv = {row.name: row for row in architecture.layers("D", head="conv")}
    assert (conv["fc1"].receptive_field, conv["fc1"].stride) == (404, 32)


# Larger than 224 on both sides, on one, by less than a feature, and not at all; odd features too.
@pytest.mark.parametrize("sides", [(256, 341), (384, 224), (240, 255), (224, 224)])
def test_dense_head_is_that_of_a_built_network(sides):
    shape, width = (*sides, 3), 1 / 16
    model = vgg(
        "D",
        head="conv",
        input_shape=shape,
        train_size=224,
        weights=None,
        width_multiplier=width,
        hidden_units=32,
    )
    rows = architecture.layers(
        "D",
        head="conv",
        input_shape=shape,
        train_size=224,
        width_multiplier=width,
        hidden_units=32,
    )
    for row in rows:
        layer = model.get_layer(row.name)
        assert tuple(layer.output.shape[1:]) == row.output_shape, row.name
        assert layer.count_params() == row.parameters, row.name
        if row.kind == "conv":
            # Every weight but the biases is used once at each place of the output.
            places = row.output_shape[0] * row.output_shape[1]
            assert row.macs == places * (row.parameters - row.output_shape[2]), row.name
    assert model.count_params() == sum(row.parameters for row in rows)


def test_dense_head_of_two_train_sides():
    options = {"head": "conv", "input_shape": (256, 256, 3), "train_size": (64, 96)}
    rows = {row.name: row for row in architecture.layers("A", **options)}
    assert rows["fc1"].kernel == (2, 3)
    assert rows["fc1"].output_shape == (7, 6, 4096)
    assert rows["predictions"].output_shape == (7, 6, 1000)


def test_dense_head_is_as_large_whatever_it_runs_on():
    for side in (224, 256, 512):
        options = {"head": "conv", "input_shape": (side, side, 3), "train_size": 224}
        assert architecture.parameters("D", **options) == PARAMETERS["D"]
        rows = {row.name: row for row in architecture.layers("D", **options)}
        assert {rows[name].receptive_field for name in ("fc1", "fc2", "predictions")} == {404}
        assert rows["predictions"].stride == 32
    assert architecture.macs("D", head="conv", train_size=224) == architecture.macs("D")
    # Without the argument, the classifier is sized to the input.
    rows = architecture.layers("D", head="conv", input_shape=(256, 320, 3))
    assert next(row.kernel for row in rows if row.name == "fc1") == (8, 10)


def test_cost_of_dense_and_multi_crop_testing():
    # An image of 4:3 at the test scales of section 4.2, the longer side rounded to the nearest
    # pixel: 256 x 341, 384 x 512, 512 x 683; and its mirror image.
    sides = [(scale, round(scale * 4 / 3)) for scale in (256, 384, 512)]
    assert sides == [(256, 341), (384, 512), (512, 683)]
    dense = 2 * sum(
        architecture.macs("D", head="conv", input_shape=(*side, 3), train_size=224)
        for side in sides
    )
    crops = 150 * architecture.macs("D")
    assert dense == 440_168_513_536  # of which fc1, fc2 and predictions 53.9 G
    assert crops == 2_320_539_648_000


@pytest.mark.parametrize(
    ("train_size", "message"),
    [
        (31, "train_size must be at least 32, not 31"),
        ((224, 31), r"train_size must be at least 32, not \(224, 31\)"),
        (225, "train_size must be at most the input, 224x256, not 225"),
        ((256, 224), r"at most the input, 224x256, not \(256, 224\)"),
    ],
)
def test_bad_train_size(train_size, message):
    with pytest.raises(ValueError, match=message):
        architecture.layers("D", head="conv", input_shape=(224, 256, 3), train_size=train_size)


def test_memory_is_in_block_1_and_parameters_in_fc1():
    rows = architecture.layers("D")
    block1 = sum(row.activations for row in rows if row.name.startswith("block1_conv"))
    convs = sum(row.activations for row in rows if row.kind == "conv")
    assert block1 / convs > 0.4
    fc1 = next(row for row in rows if row.name == "fc1")
    assert fc1.parameters / architecture.parameters("D") > 0.7


@pytest.mark.parametrize("name", ["d", "D", "vgg16", "VGG16"])
def test_names_in_any_case(name):
    assert architecture.get_configuration(name).name == "D"


def test_unknown_configuration():
    with pytest.raises(ValueError, match=r"unknown VGG configuration 'F'; choose A \(VGG11\)"):
        architecture.get_configuration("F")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": -5}, "classes must be a positive whole number, not -5"),
        ({"head": "mlp"}, "head must be one of fc, conv, gap"),
        ({"width_multiplier": float("nan")}, "width_multiplier must be positive"),
        ({"input_shape": (32, 32, 0)}, "at least 1 channel"),
        ({"filters": (4,) * 7}, "filters needs 8 numbers for configuration A.* it has 7"),
        ({"filters": (4,) * 7 + (0,)}, "filters must be positive whole numbers"),
        ({"filters": (4.0,) * 8}, "filters must be positive whole numbers"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        architecture.layers("A", **options)


def test_input_under_32():
    with pytest.raises(ValueError, match="at least 32x32, not 31x224"):
        architecture.layers("A", input_shape=(31, 224, 3))


@pytest.mark.parametrize(
    ("filters", "width", "expected"), [(64, 1 / 16, 4), (64, 0.1, 6), (1, 0.1, 1)]
)
def test_scaled_width(filters, width, expected):
    assert architecture.scaled_width(filters, width) == expected


@pytest.mark.parametrize(
    ("width", "filters", "batch_norm", "expected"),
    [
        (1, (), False, "VGG11 (configuration A)"),
        (0.0625, (), True, "VGG11 (configuration A), width 0.0625, batch norm"),
        # The widths of a pruned network; a recipe's multiplier is then not used.
        (0.25, range(1, 9), False, "VGG11 (configuration A), filters 1 2 3 4 5 6 7 8"),
    ],
)
def test_describe(width, filters, batch_norm, expected):
    assert architecture.describe("A", width, filters, batch_norm) == expected


def test_totals_leave_out_what_copies_nothing():
    rows = architecture.layers("D")
    found = architecture.totals(rows)
    assert found.parameters == found.trainable_parameters == PARAMETERS["D"]
    assert found.macs == 15_470_264_320
    flatten = next(row.activations for row in rows if row.kind == "flatten")
    assert found.activations == sum(row.activations for row in rows) - flatten
    normed = architecture.totals(architecture.layers("D", batch_norm=True))
    filters = sum(filters for _, _, filters in architecture.convolutions("D"))
    assert normed.parameters - PARAMETERS["D"] == 4 * filters
    assert normed.trainable_parameters - PARAMETERS["D"] == 2 * filters


def test_a_stack_of_3x3_sees_what_a_larger_kernel_sees():
    # Section 2.3: three 3x3 layers have 27C² weights, one 7x7 layer 49C², 81 % more.
    small, large = architecture.stack(3, 3, 512), architecture.stack(7, 1, 512)
    assert small.receptive_field == large.receptive_field == 7
    assert (small.weights, large.weights) == (27 * 512**2, 49 * 512**2)
    assert round(100 * (large.weights / small.weights - 1)) == 81
    with pytest.raises(ValueError, match="must be 1 or more, not 3, 0, 512"):
        architecture.stack(3, 0, 512)


@pytest.mark.parametrize(("kernel", "depth"), [(3, 2), (3, 3), (5, 2), (11, 1)])
def test_a_stack_is_that_of_a_built_network(kernel, depth):
    found = architecture.stack(kernel, depth, channels=2)
    side = found.receptive_field + 6
    layers = [
        keras.layers.Conv2D(2, kernel, padding="same", use_bias=False, kernel_initializer="ones")
        for _ in range(depth)
    ]
    model = keras.Sequential([keras.Input((side, side, 2)), *layers])
    assert model.count_params() == found.weights
    spot = np.zeros((1, side, side, 2), np.float32)
    spot[0, side // 2, side // 2] = 1
    # As far as one input reaches is as far as one output sees.
    reached = np.nonzero(model.predict_on_batch(spot)[0, ..., 0])[0]
    assert np.ptp(reached) + 1 == found.receptive_field
