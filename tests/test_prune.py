"""keras_vgg.export.prune: which filters go, and what the narrower network answers."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import pytest

from keras_vgg import architecture, vgg
from keras_vgg.export import prune
from tests.dense_networks import answers

CLASSES = 4
CASES = {
    "batch_norm": {"configuration": "C", "head": "gap", "batch_norm": True},
    "fc of several places": {"configuration": "A", "head": "fc", "input_shape": (64, 64, 3)},
    "fc": {"configuration": "A", "head": "fc"},
    "conv": {"configuration": "B", "head": "conv", "input_shape": (64, 64, 3)},
    "lrn": {"configuration": "A-LRN", "head": "gap"},
}


def network(
    *,
    configuration: str,
    head: str,
    batch_norm: bool = False,
    input_shape: tuple = (32, 32, 3),
    classifier_activation: str = "softmax",
    filters: Sequence[int] = (),
) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = vgg(
        configuration,
        weights=None,
        input_shape=input_shape,
        classes=CLASSES,
        width_multiplier=1.0 if filters else 1 / 16,
        filters=filters,
        hidden_units=8,
        head=head,
        batch_norm=batch_norm,
        include_preprocessing=True,
        kernel_initializer="he_normal",
        classifier_activation=classifier_activation,
    )
    generator = np.random.default_rng(1)
    for layer in model.layers:  # biases and statistics that are not 0 and 1
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + generator.uniform(0, 0.5, w.shape) for w in layer.get_weights()])
        elif isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, generator.uniform(-0.1, 0.1, bias.shape)])
    last = model.get_layer("predictions")  # probabilities that are not 0 and 1
    last.set_weights([0.01 * values for values in last.get_weights()])
    return model


def images(model: keras.Model, count: int = 3) -> np.ndarray:
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(2).integers(0, 256, shape).astype(np.float32)


@pytest.mark.slow
def test_taylor_of_a_network_in_float16_that_is_sure_of_its_answers() -> None:
    """Its gradients are 0 in float16, and all filters would be equally important."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(configuration="A", head="gap", batch_norm=True)
    finally:
        keras.config.set_dtype_policy("float32")
    last = model.get_layer("predictions")
    pixels = images(model, 8)
    answers = np.log(model.predict(pixels, verbose=0).astype(np.float32))
    labels = answers.argmax(axis=1)
    margin = np.sort(answers, axis=1)
    factor = 13 / (margin[:, -1] - margin[:, -2]).min()
    last.set_weights([factor * values for values in last.get_weights()])
    scores = prune.importance(model, "taylor", pixels, labels)
    assert min(np.count_nonzero(values) / len(values) for values in scores.values()) > 0.5


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("case", CASES)
def test_removing_filters_that_give_zero_changes_no_answer(case: str) -> None:
    model = network(**CASES[case])
    generator = np.random.default_rng(3)
    kept = {}
    norms = prune._batch_norms(model)
    for layer in prune.convolutions(model):
        if case == "lrn" and layer.name == "block1_conv1":
            continue
        numbers = np.sort(generator.choice(layer.filters, -(-layer.filters // 2), replace=False))
        kept[layer.name] = numbers
        scaling = norms.get(layer.name, layer)
        weights = scaling.get_weights()
        dead = np.setdiff1d(np.arange(layer.filters), numbers)
        for values in weights[:2]:
            values[..., dead] = 0
        scaling.set_weights(weights)
    small = prune.remove_filters(model, kept)
    pictures = images(model)
    np.testing.assert_allclose(answers(small, pictures), answers(model, pictures), atol=1e-5)
    rows = architecture.layers(
        CASES[case]["configuration"],
        filters=[layer.filters for layer in prune.convolutions(small)],
        classes=CLASSES,
        hidden_units=8,
        **{k: v for k, v in CASES[case].items() if k != "configuration"},
        **({} if "input_shape" in CASES[case] else {"input_shape": (32, 32, 3)}),
    )
    assert small.count_params() == architecture.totals(rows).parameters < model.count_params()


def test_the_builder_makes_the_same_network_from_the_widths() -> None:
    model = network(**CASES["batch_norm"])
    kept = {layer.name: np.arange(1, layer.filters) for layer in prune.convolutions(model)}
    small = prune.remove_filters(model, kept)
    again = vgg(
        "C",
        weights=None,
        input_shape=(32, 32, 3),
        classes=CLASSES,
        filters=[layer.filters for layer in prune.convolutions(small)],
        head="gap",
        batch_norm=True,
        include_preprocessing=True,
    )
    again.set_weights(small.get_weights())
    pictures = images(model)
    np.testing.assert_array_equal(answers(again, pictures), answers(small, pictures))


def test_criteria_are_what_they_say() -> None:
    model = network(**CASES["batch_norm"])
    pictures, labels = images(model, 8), np.arange(8) % CLASSES
    first = prune.convolutions(model)[0]
    l1 = prune.importance(model, "l1", pictures, labels)[first.name]
    np.testing.assert_allclose(l1, np.abs(first.get_weights()[0]).sum((0, 1, 2)), rtol=1e-6)
    norm = model.get_layer("block1_conv1_bn")
    gamma, beta, mean, variance = norm.get_weights()
    scale = prune.importance(model, "batch_norm", pictures, labels)[first.name]
    np.testing.assert_allclose(scale, np.abs(gamma))
    # The derivative of the loss by a factor on the filter's output, by differences.
    taylor = prune.importance(model, "taylor", pictures, labels)[first.name]
    step = 1e-2
    for channel in range(len(gamma)):
        losses = []
        for factor in (1 + step, 1 - step):
            factors = np.ones_like(gamma)
            factors[channel] = factor
            norm.set_weights([gamma * factors, beta * factors, mean, variance])
            chosen = np.asarray(model(pictures))[np.arange(8), labels]
            losses.append(-np.log(chosen).sum() / 32)  # a batch has 32 images
        slope = (losses[0] - losses[1]) / (2 * step)
        assert taylor[channel] == pytest.approx(slope**2, rel=0.05, abs=1e-8)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("case", "several_labels"),
    [("fc", True), pytest.param("batch_norm", False, marks=pytest.mark.slow)],
)
def test_sensitivity_is_the_change_without_the_filters(case: str, several_labels: bool) -> None:
    activation = "sigmoid" if several_labels else "softmax"
    widths = [4] * (8 if case == "fc" else 13)
    model = network(**CASES[case], classifier_activation=activation, filters=widths)
    pictures, labels = images(model, 40), np.zeros(40, int)
    scores = prune.importance(model, "l1", pictures, labels)
    seen: list[prune.Sensitivity] = []
    results = prune.sensitivities(
        model, scores, pictures, seen.append, several_labels=several_labels
    )
    assert seen == results
    names = [layer.name for layer in prune.convolutions(model)]
    assert names == [result.layer for result in results]
    for result in (results[2], results[-1]):
        assert result.removed[0] == 0
        assert result.removed[-1] < len(result.order)
        removed = result.removed[-1]
        small = prune.remove_filters(model, {result.layer: np.sort(result.order[removed:])})
        own, others = (answers(net, pictures).astype(float) for net in (model, small))
        terms = [own * np.log(own / others)]
        if several_labels:
            terms.append((1 - own) * np.log((1 - own) / (1 - others)))
        expected = sum(terms).sum(axis=1).mean()
        assert expected > 0
        assert result.divergences[0] == 0
        assert result.divergences[-1] == pytest.approx(expected, rel=1e-3)


def test_a_layer_that_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(**CASES["fc"])
    pictures = images(model)
    scores = prune.importance(model, "l1", pictures, np.zeros(3, int))
    passes: list[str] = []

    def counted(
        net: keras.Model, layer: keras.Layer, without: Sequence[np.ndarray], inputs: np.ndarray
    ) -> list[np.ndarray]:
        passes.append(layer.name)
        return [np.full((len(inputs), CLASSES), 1 / CLASSES) for _ in without]

    monkeypatch.setattr(prune, "_answers_without", counted)
    first = prune.sensitivities(model, scores, pictures, several_labels=False)
    measured = {layer.layer: layer for layer in first[:-1]}
    passes.clear()
    seen: list[prune.Sensitivity] = []
    again = prune.sensitivities(
        model, scores, pictures, seen.append, several_labels=False, measured=measured
    )
    assert again[:-1] == first[:-1]
    assert [layer.layer for layer in seen] == [first[-1].layer]
    assert passes == [first[-1].layer]


def test_being_less_sure_of_a_wrong_answer_is_a_change() -> None:
    """The loss of such answers falls: against the labels, filters would seem to do harm."""
    own, unsure = np.array([[0.999, 0.001]]), np.array([[0.5, 0.5]])
    assert prune.divergence(own, own) == 0
    assert prune.divergence(own, unsure) == pytest.approx(np.log(2), rel=0.02)
    assert np.isfinite(prune.divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])))


@pytest.mark.slow
def test_a_layer_whose_filters_normalise_each_other_keeps_all() -> None:
    model = network(**CASES["lrn"])
    pictures, labels = images(model, 8), np.arange(8) % CLASSES
    scores = prune.importance(model, "l1", pictures, labels)
    first, *others = prune.sensitivities(model, scores, pictures, several_labels=False)
    assert first.removed == (0,)
    assert all(len(layer.removed) > 1 for layer in others)
    kept = prune.plan([first, *others], sum, 0.5 * sum(len(s) for s in scores.values()))
    assert len(kept["block1_conv1"]) == len(scores["block1_conv1"])
    prune.remove_filters(model, kept)


def test_the_plan_takes_the_cheapest_filters_down_to_the_limit() -> None:
    def layer(name: str, changes: Sequence[float]) -> prune.Sensitivity:
        return prune.Sensitivity(name, np.array([2, 0, 3, 1]), (0, 1, 2, 3), tuple(changes))

    layers = [layer("a", (0, 0.1, 1, 8)), layer("b", (0.1, 0, 0.15, 0.3))]

    def macs(widths: Sequence[int]) -> int:
        return 10 * sum(widths)

    kept = prune.plan(layers, macs, 50)
    assert {name: numbers.tolist() for name, numbers in kept.items()} == {
        "a": [0, 1, 3],
        "b": [1, 3],
    }
    kept = prune.plan(layers, macs, 40)
    assert {name: numbers.tolist() for name, numbers in kept.items()} == {
        "a": [0, 1, 3],
        "b": [1],
    }
    assert sum(map(len, prune.plan(layers, macs, 80).values())) == 8
    with pytest.raises(ValueError, match=r"at most 10 multiply.*the least is 20; ask for more$"):
        prune.plan(layers, macs, 10)


def test_a_limit_out_of_reach_is_known_before_anything_is_measured() -> None:
    def macs(widths: Sequence[int]) -> int:
        return sum(widths)

    prune.require_reachable([64, 64], macs, 16)  # each keeps 8
    for limit in (15, 2):
        with pytest.raises(ValueError, match=r"the least is 16; ask for more, or take more steps"):
            prune.require_reachable([64, 64], macs, limit)
    with pytest.raises(ValueError, match=r"the least is 16; ask for more$"):
        prune.require_reachable([64, 64], macs, 1)
    prune.require_reachable([64, 64], macs, 72, first_stays=True)
    with pytest.raises(ValueError, match=r"the least is 72; ask for more$"):
        prune.require_reachable([64, 64], macs, 64, first_stays=True)


def test_wide_layers_keep_multiples_of_eight() -> None:
    assert prune._counts(512) == list(range(64, 512, 64))
    assert prune._counts(72) == [16, 32, 48, 64]
    assert prune._counts(48) == list(range(6, 48, 6))
    assert prune._counts(4) == [1, 2, 3]
    assert prune._counts(1) == []


def test_wrong_filters_are_refused() -> None:
    model = network(**CASES["lrn"])
    for name, numbers, message in (
        ("fc1", [0], "no convolution 'fc1'"),
        ("block1_conv1", [], r"has the filters 0 to 3; name at least one to keep, ascending"),
        ("block1_conv1", [0, 4], r"not \[0, 4\]"),
        ("block1_conv1", [1, 0], r"not \[1, 0\]"),
        ("block1_conv1", [0.5], r"not \[0.5\]"),
        ("block1_conv1", [-1, 0], r"not \[-1, 0\]"),
        ("block1_conv1", [0, 1], "local response normalisation"),
    ):
        with pytest.raises(ValueError, match=message):
            prune.remove_filters(model, {name: np.array(numbers)})


def test_what_cannot_be_pruned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(**CASES["lrn"])
    pictures, labels = images(model), np.zeros(3, int)
    with monkeypatch.context() as patch:
        patch.setattr(prune, "is_tensorflow", lambda: False)
        with pytest.raises(ValueError, match=r"'taylor' needs Keras on TensorFlow.* or use 'l1'"):
            prune.importance(model, "taylor", pictures, labels)
    with pytest.raises(ValueError, match="must be one of taylor, l1, batch_norm, not 'l2'"):
        prune.importance(model, "l2", pictures, labels)
    with pytest.raises(ValueError, match=r"'batch_norm' needs batch norm.* block1_conv1 has none"):
        prune.importance(model, "batch_norm", pictures, labels)
    with pytest.raises(ValueError, match="the sensitivity needs images; there are 0"):
        prune.sensitivities(model, {}, pictures[:0], several_labels=False)
    with pytest.raises(ValueError, match="not finite"):
        prune.sensitivities(model, {}, pictures * np.nan, several_labels=False)
    with pytest.raises(ValueError, match="needs labelled images; there are 0"):
        prune.importance(model, "taylor", pictures[:0], labels[:0])
    with pytest.raises(ValueError, match="not finite"):
        prune.importance(model, "taylor", pictures * np.nan, labels)
    with pytest.raises(ValueError, match="has no convolutions block1_conv1"):
        prune.convolutions(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
