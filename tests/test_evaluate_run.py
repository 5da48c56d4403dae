"""Testing runs: what is kept and used again, scales and fusion by hand, the paper's tables."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment, cli, evaluation
from keras_vgg.array_cache import ArrayCache
from keras_vgg.fit import Run, describe, fit, load_source
from keras_vgg.recipe import Recipe
from keras_vgg.runs import (
    evaluate_run,
    evaluate_runs,
    evaluation_name,
    paper_scales,
    paper_tables,
)
from keras_vgg.runs.evaluate import is_evaluated
from keras_vgg.runs.images import open_split
from tests.test_fit import TINY

pytestmark = pytest.mark.usefixtures("blank_plots")

RECIPE = TINY.replace(
    epochs=1, horizontal_flip=True, train_scale=(32, 40), eval_scale=36, learning_rate=0.01
)


@pytest.fixture(scope="module")
def trained(varied_run, tmp_path_factory):
    """The network and images of `varied_run`, as of a training by RECIPE."""
    run = Run(shutil.copytree(varied_run.directory, tmp_path_factory.mktemp("runs") / "a"), RECIPE)
    run.write_recipe()
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy without posteriors."""
    bare = shutil.ignore_patterns("posteriors")
    return Run.open(shutil.copytree(trained.directory, tmp_path / "a", ignore=bare))


def images_of(run, split="validation"):
    found = open_split(run, split)
    return found.images, found.labels


def by_hand(run, scale, protocol):
    """Posteriors of the validation images, one image at a time, from the model alone."""
    model = run.model()
    dense = evaluation.dense_network(model)
    found = []
    for image in images_of(run)[0]:
        image = np.asarray(augment.rescale(image, scale))
        if protocol == "multi-crop":
            corners = [(scale - 32) * i // 4 for i in range(5)]
            views = [image[t : t + 32, left : left + 32] for t in corners for left in corners]
            views += [view[:, ::-1] for view in views]
            found.append(model.predict(np.stack(views), verbose=0).mean(0))
        else:
            scores = dense.predict_on_batch(np.stack([image, image[:, ::-1]]))
            assert scores.shape[1:3] == (1, 1)
            e = np.exp(scores[:, 0, 0] - scores.max())
            found.append((e / e.sum(-1, keepdims=True)).mean(0))
    return np.stack(found)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("protocol", ["dense", pytest.param("multi-crop", marks=pytest.mark.slow)])
def test_a_protocol_at_a_scale_by_hand(trained, protocol):
    run = trained
    found = evaluate_runs([run], "validation", protocol=protocol, scales=(40,))[0]
    np.testing.assert_array_equal(found.labels, images_of(run)[1])
    np.testing.assert_allclose(found.probabilities, by_hand(run, 40, protocol), atol=1e-5)


@pytest.mark.slow
def test_scales_and_both_are_averages(trained):
    def tested(protocol, *scales):
        return evaluate_runs([trained], "validation", False, protocol, scales)[0].probabilities

    dense = np.mean([tested("dense", scale) for scale in (32, 40)], 0)
    crops = np.mean([tested("multi-crop", scale) for scale in (32, 40)], 0)
    np.testing.assert_allclose(tested("dense", 32, 40), dense, atol=1e-6)
    np.testing.assert_allclose(tested("both", 32, 40), (dense + crops) / 2, atol=1e-6)
    assert np.abs(dense - crops).max() > 1e-6
    center = tested("center")
    np.testing.assert_array_equal(center, tested("center", 36))  # the recipe's eval_scale


@pytest.mark.slow
def test_the_mirror_image_is_seen_if_training_saw_it(trained, tmp_path):
    run = Run.open(shutil.copytree(trained.directory, tmp_path / "run"))
    found = evaluate_runs([run], "validation", protocol="dense")[0].probabilities
    plain = Run(run.directory, run.recipe.replace(horizontal_flip=False))
    without = evaluate_runs([plain], "validation", protocol="dense")[0].probabilities
    assert np.abs(found - without).max() > 1e-6


def test_posteriors_are_kept(run, monkeypatch):
    first = evaluate_run(run, "validation", protocol="both", scales=(32,))
    dense = evaluate_run(run, "validation", protocol="dense", scales=(32, 36))
    kept = (run.directory / "posteriors" / "validation").iterdir()
    assert {path.name.rpartition("-")[0] for path in kept} == {
        "dense-scores-32",
        "dense-scores-36",
        "multi-crop-posteriors-32",
    }
    monkeypatch.setattr(evaluation, "posteriors", None)  # nothing is computed again
    monkeypatch.setattr(Run, "model", None)
    parts = [
        evaluate_run(run, "validation", protocol="dense", scales=(scale,)).probabilities
        for scale in (32, 36)
    ]
    assert np.abs(parts[0] - parts[1]).max() > 1e-4
    np.testing.assert_allclose(dense.probabilities, np.mean(parts, axis=0), atol=1e-6)
    again = evaluate_run(run, "validation", protocol="both", scales=(32,))
    np.testing.assert_allclose(again.probabilities, first.probabilities, atol=1e-7)
    again = evaluate_run(run, "validation", protocol="dense", scales=(36, 32))
    np.testing.assert_allclose(again.probabilities, dense.probabilities, atol=1e-7)
    one = evaluate_run(run, "validation", protocol="dense", scales=(32,))
    assert one.count == first.count


def test_too_little_memory_is_one_line(run, monkeypatch, capfd):
    def too_large(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore")

    monkeypatch.setattr(evaluation, "posteriors", too_large)
    assert cli.main(["evaluate", str(run.directory), "--split", "validation"]) == cli.BAD_INPUT
    assert capfd.readouterr().err == (
        "keras-vgg: error: the memory is too small: end what else holds the device's memory, or "
        "evaluate at smaller --scales (OOM when allocating)\n"
    )


def test_an_interrupted_evaluation_goes_on(run, monkeypatch):
    blocks = evaluation.posteriors
    monkeypatch.setattr(
        evaluation, "posteriors", lambda *a, **k: blocks(*a, **k | {"seconds": 0.0})
    )
    whole = evaluate_runs([run], "validation", protocol="dense", scales=(40,))[0]
    shutil.rmtree(run.directory / "posteriors")
    add, added = ArrayCache.add, []

    def interrupt(self, **arrays):
        if len(added) == 10:
            raise KeyboardInterrupt
        added.append(len(arrays["labels"]))
        add(self, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayCache, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate_runs([run], "validation", protocol="dense", scales=(40,))
    assert added == [1] * 10
    seen = []
    monkeypatch.setattr(ArrayCache, "add", lambda self, **a: (seen.append(1), add(self, **a))[1])
    again = evaluate_runs([run], "validation", protocol="dense", scales=(40,))[0]
    assert len(seen) == whole.count - 10
    np.testing.assert_array_equal(again.probabilities, whole.probabilities)
    np.testing.assert_array_equal(again.labels, whole.labels)


def test_posteriors_of_other_weights_are_not_used(run):
    before = evaluate_runs([run], "validation")[0]
    model = run.model()
    model.get_layer("predictions").bias.assign_add(keras.ops.arange(10, dtype="float32"))
    model.save(run.model_path)
    after = evaluate_runs([run], "validation")[0]
    assert np.abs(after.probabilities - before.probabilities).max() > 0.1
    # Both are kept, each under its own key.
    kept = list((run.directory / "posteriors" / "validation").glob("center-*"))
    assert len(kept) == 2


@pytest.mark.slow
def test_results_are_told_apart(run):
    for options in ({}, {"protocol": "dense", "scales": (40, 32), "average": "posteriors"}):
        evaluate_run(run, "validation", **options)
    results = json.loads((run.directory / "results.json").read_text())
    assert {"validation", "validation_dense_32_40_posteriors"} <= results.keys()
    low, high = results["validation"]["top1_interval"]
    assert low <= results["validation"]["top1"] <= high
    assert (run.directory / "confusion_validation_dense_32_40_posteriors.png").is_file()
    assert evaluation_name("test", "multi-crop") == "test_multi_crop"
    assert evaluation_name("test", "dense", (), "scores") == "test_dense"  # as by default
    assert evaluation_name("test", "both", (), "scores") == "test_both_scores"


def test_the_papers_scales():
    imagenet = Recipe(image_size=224, train_scale=(256, 256))
    assert paper_scales(imagenet) == ([256], [224, 256, 288])
    assert paper_scales(imagenet.replace(train_scale=(384, 384))) == ([384], [352, 384, 416])
    assert paper_scales(imagenet.replace(train_scale=(256, 512))) == ([384], [256, 384, 512])
    assert paper_scales(RECIPE.replace(train_scale=(36, 36))) == ([36], [32, 36, 41])
    assert paper_scales(RECIPE.replace(train_scale=(32, 32))) == ([32], [32, 37])
    assert paper_scales(RECIPE.replace(train_scale=None, eval_scale=None)) == ([None], [None])


@pytest.mark.slow
def test_the_papers_tables(trained, tmp_path):
    runs = [trained, fit(RECIPE.replace(configuration="B"), tmp_path / "b", verbose=0)]
    tables = paper_tables(runs, "validation")
    assert [title[:7] for title, _, _ in tables] == ["Table 3", "Table 4", "Table 5", "Table 6"]
    for _, headers, rows in tables:
        assert all(len(row) == len(headers) for row in rows)
    three, four, five, six = (rows for _, _, rows in tables)

    def error(protocol, scales):
        found = evaluate_runs(runs, "validation", False, protocol, scales)
        return [*found, evaluation.fuse(found)]

    for rows, scales, listed in ((three, (36,), "36"), (four, (32, 36, 40), "32, 36, 40")):
        for row, name, found in zip(rows, "ab", error("dense", scales), strict=False):
            low, high = found.interval()
            assert row == (
                name,
                "[32, 40]",
                listed,
                f"{100 - 100 * found.top1:.2f}",
                f"{100 - 100 * high:.2f} to {100 - 100 * low:.2f}",
                f"{100 - 100 * found.top5:.2f}",
            )
    for protocol in ("dense", "multi-crop", "both"):
        a, b, fused = (f"{100 - 100 * e.top1:.2f}" for e in error(protocol, (32, 36, 40)))
        found = {(name, how): row[0] for name, how, *row in [*five, *six]}
        assert [found[name, protocol] for name in ("a", "b", "a + b")] == [a, b, fused]


@pytest.mark.slow
def test_one_run_has_no_table_of_fusion(trained):
    assert len(paper_tables([trained], "validation")) == 3


def test_what_cannot_be_tested(trained, tmp_path, monkeypatch):
    for options, message in (
        ({"protocol": "sparse"}, "protocol must be one of center, dense, multi-crop, both"),
        ({"average": "logits"}, "average must be one of scores, posteriors"),
        ({"scales": (36, 31)}, "scale 31 is below 32"),
        ({"scales": (36, 36)}, "scales must differ"),
        ({"split": "holdout"}, "split must be one of test, validation, train, all, not 'holdout'"),
        ({"split": "all"}, "source digits has no all split; it has train, validation, test"),
        ({"unknown_classes": "drop"}, "unknown_classes must be error or skip, not 'drop'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_runs([trained], **options)
    with pytest.raises(ValueError, match="no run to evaluate"):
        evaluate_runs([])
    # Another seed holds out other images: this is what its training would write of them.
    recipe = RECIPE.replace(seed=1)
    other = Run(Path(shutil.copytree(trained.directory, tmp_path / "other")), recipe)
    other.write_json("data.json", describe(load_source(recipe)))
    with pytest.raises(ValueError, match="cannot be compared: their validation images"):
        evaluate_runs([trained, other], "validation")
    monkeypatch.setattr(evaluation, "posteriors", None)  # nothing is computed before
    unfinished = Run.open(shutil.copytree(trained.directory, tmp_path / "unfinished"))
    (unfinished.directory / "results.json").unlink()
    unfinished.model_path.unlink()
    with pytest.raises(ValueError, match="has not finished training"):
        evaluate_runs([trained, unfinished], "train")


@pytest.mark.slow
def test_posteriors_of_an_earlier_network_are_no_evaluation(run):
    evaluate_run(run, "test")
    path = run.directory / "results.json"
    results = json.loads(path.read_text())
    del results["test"]
    path.write_text(json.dumps(results))
    assert is_evaluated(run, "test")
    model = run.model()
    model.layers[-1].bias.assign_add(keras.ops.ones_like(model.layers[-1].bias))
    model.save(run.model_path)
    assert not is_evaluated(run, "test")
