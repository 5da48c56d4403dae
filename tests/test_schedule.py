"""Learning rates and when training ends."""

import pytest

from keras_vgg.fit import schedule
from keras_vgg.recipe import Recipe


def rates(recipe, steps_per_epoch=10, drops=0):
    steps = range(recipe.epochs * steps_per_epoch)
    return [schedule.learning_rate(recipe, step, steps_per_epoch, drops) for step in steps]


def history(*accuracies):
    return [
        {"epoch": i, "val_accuracy": accuracy, "val_loss": 1.0}
        for i, accuracy in enumerate(accuracies, 1)
    ]


def test_warmup_rises_linearly_to_the_rate():
    recipe = Recipe(learning_rate=0.1, epochs=4, warmup_epochs=2, schedule="constant")
    found = rates(recipe)
    assert found[:20] == pytest.approx([0.1 * (i + 1) / 20 for i in range(20)])
    assert found[20:] == pytest.approx([0.1] * 20)


def test_cosine_falls_from_the_rate_to_nothing():
    found = rates(Recipe(learning_rate=0.1, epochs=4, warmup_epochs=0, schedule="cosine"))
    assert found[0] == pytest.approx(0.1)
    assert found[20] == pytest.approx(0.05)
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < 0.001


def test_steps():
    recipe = Recipe(
        learning_rate=0.1, epochs=4, warmup_epochs=0, schedule="step", step_epochs=(1, 3)
    )
    expected = [0.1] * 10 + [0.01] * 20 + [0.001] * 10
    assert rates(recipe) == pytest.approx(expected)
    halved = [0.1] * 10 + [0.05] * 20 + [0.025] * 10
    assert rates(recipe.replace(decay_factor=0.5)) == pytest.approx(halved)


def test_plateau_divides_by_ten():
    recipe = Recipe(learning_rate=0.1, schedule="plateau", warmup_epochs=0)
    assert rates(recipe, drops=2) == pytest.approx([0.001] * 200)


def test_plateau_counts_epochs_without_improvement():
    recipe = Recipe(schedule="plateau", plateau_patience=2)
    assert schedule.plateau_drops(recipe, []) == 0
    assert schedule.plateau_drops(recipe, history(0.5, 0.4, 0.6, 0.6)) == 0
    assert schedule.plateau_drops(recipe, history(0.5, 0.4, 0.5)) == 1
    assert schedule.plateau_drops(recipe, history(0.5, 0.4, 0.5, 0.4, 0.4)) == 2


def test_training_ends_when_the_rate_would_fall_once_more():
    recipe = Recipe(schedule="plateau", plateau_patience=1, plateau_drops=3)
    assert not schedule.is_over(recipe, history(0.5, 0.5, 0.5, 0.5))
    assert schedule.is_over(recipe, history(0.5, 0.5, 0.5, 0.5, 0.5))


def test_early_stopping():
    recipe = Recipe(early_stopping=2)
    assert not schedule.is_over(recipe, history(0.5, 0.6, 0.5))
    assert schedule.is_over(recipe, history(0.5, 0.6, 0.5, 0.6))
    assert not schedule.is_over(Recipe(), history(*[0.5] * 19))


def test_best_epoch_is_the_most_accurate_then_the_lowest_loss():
    rows = history(0.5, 0.6, 0.6)
    rows[2]["val_loss"] = 0.5
    assert schedule.best_row(rows)["epoch"] == 3


RESTARTED = Recipe(
    learning_rate=0.1,
    epochs=6,
    warmup_epochs=1,
    restart_epochs=(2, 4),
    restart_rates=(0.01, 0.02),
)


def test_a_restart_begins_the_schedule_again_without_warm_up():
    found = rates(RESTARTED)
    assert found[:20] == rates(RESTARTED.replace(epochs=2, restart_epochs=(), restart_rates=()))
    plain = Recipe(epochs=2, warmup_epochs=0)
    assert found[20:40] == pytest.approx(rates(plain.replace(learning_rate=0.01)))
    assert found[40:] == pytest.approx(rates(plain.replace(learning_rate=0.02)))
    assert rates(RESTARTED.replace(schedule="constant"))[10:] == pytest.approx(
        [0.1] * 10 + [0.01] * 20 + [0.02] * 20
    )
    steps = RESTARTED.replace(schedule="step", step_epochs=(1,), warmup_epochs=0)
    assert rates(steps) == pytest.approx(
        [v for rate in (0.1, 0.01, 0.02) for v in [rate] * 10 + [rate / 10] * 10]
    )


def test_what_was_before_a_restart_ends_no_training():
    plateau = RESTARTED.replace(schedule="plateau", plateau_patience=1, plateau_drops=0)
    assert schedule.plateau_drops(plateau, history(0.9, 0.5)) == 0
    assert schedule.plateau_drops(plateau, history(0.9, 0.5, 0.4)) == 0
    early = RESTARTED.replace(early_stopping=1)
    assert not schedule.is_over(early, history(0.9, 0.5))
    assert schedule.is_over(early, history(0.9, 0.5, 0.4))
    assert schedule.best_row(history(0.9, 0.5, 0.4))["epoch"] == 1
