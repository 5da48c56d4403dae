"""Plots are whole PNGs of a sane size that show what the rows say."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from keras_vgg import plotting, report
from keras_vgg.explain.draw import draw_heats
from keras_vgg.plotting import drawable

ROWS = [
    {
        "epoch": epoch,
        "loss": 2.0 / epoch,
        "accuracy": 1 - 0.9 / epoch,
        "val_loss": 2.2 / epoch,
        "val_accuracy": 0.9 - 0.01 * (epoch - 7) ** 2,
        "learning_rate": 0.01 if epoch < 6 else 0.001,
    }
    for epoch in range(1, 11)
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that report would have saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(plotting, "save_png", lambda figure, path: figures.append(figure))
    return figures


def random_confusion(classes: int) -> np.ndarray:
    generator = np.random.default_rng(classes)
    return generator.poisson(0.3, (classes, classes)) + np.diag(generator.integers(5, 60, classes))


def test_history_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "history.png"
    path.write_text("an older picture")

    report.plot_history(ROWS, path)

    height, width, _ = imread(path).shape
    assert width == 8 * 150
    assert 600 < height < 1600
    assert list(tmp_path.iterdir()) == [path]


def test_history_draws_every_column_and_marks_the_best(drawn: list[Figure]) -> None:
    report.plot_history(ROWS, "unused")

    loss, accuracy, rate = drawn[0].axes
    validation = next(line for line in accuracy.lines if line.get_label() == "validation")
    np.testing.assert_allclose(validation.get_ydata(), [100 * row["val_accuracy"] for row in ROWS])
    assert accuracy.get_title(loc="right") == "best: 90.00% at epoch 7"
    assert loss.get_title(loc="right") == ""
    assert [line.get_label() for line in loss.lines[:2]] == ["training", "validation"]
    assert rate.get_yscale() == "log"
    for axis in (loss, accuracy, rate):
        assert any(list(line.get_xdata()) == [7, 7] for line in axis.lines)


def test_history_marks_the_epoch_that_was_kept(drawn: list[Figure]) -> None:
    rows = [{"epoch": e, "val_accuracy": 1.0, "val_loss": 1 / e} for e in (1, 2, 3)]

    report.plot_history(rows, "unused", best_epoch=3)

    assert drawn[0].axes[1].get_title(loc="right") == "best: 100.00% at epoch 3"


def test_an_epoch_that_another_figure_selected_is_called_kept(drawn: list[Figure]) -> None:
    rows = [{"epoch": e, "val_accuracy": 1 - e / 10, "val_loss": 1 / e} for e in (1, 2, 3)]

    report.plot_history(rows, "unused", best_epoch=2)

    assert drawn[0].axes[1].get_title(loc="right") == "kept: 80.00% at epoch 2"


def test_history_of_losses_alone_marks_the_least(drawn: list[Figure]) -> None:
    rows = [{"val_loss": value} for value in (3.0, 1.5, float("nan"), 2.0)]

    report.plot_history(rows, "unused")

    (axis,) = drawn[0].axes
    assert axis.get_title(loc="right") == "best: 1.5 at epoch 2"
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [1, 2, 4])


def test_one_epoch_has_one_tick(drawn: list[Figure]) -> None:
    report.plot_history(ROWS[:1], "unused")

    axis = drawn[0].axes[-1]
    first, last = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if first < tick < last] == [1]


def test_history_takes_a_rate_that_ends_at_zero(tmp_path: Path) -> None:
    rows = [{"loss": 1.0, "learning_rate": 0.1}, {"loss": 0.5, "learning_rate": 0.0}]

    report.plot_history(rows, tmp_path / "history.png")

    assert imread(tmp_path / "history.png").min() < 0.5  # something is drawn on the white


@pytest.mark.parametrize("rows", [[], [{"epoch": 1, "learning_rate": 0.1}], [{"loss": None}]])
def test_history_without_metrics_is_an_error(rows: list, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no loss and no accuracy"):
        report.plot_history(rows, tmp_path / "history.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        report.plot_history(ROWS, tmp_path / "missing" / "history.png")


def test_a_failure_leaves_the_older_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.png"
    path.write_text("an older picture")

    def disk_full(self: Figure, target: Path, **_: object) -> None:
        Path(target).write_text("half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", disk_full)
    with pytest.raises(OSError, match="disk full"):
        report.plot_history(ROWS, path)
    assert path.read_text() == "an older picture"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("classes", [2, 10, 50, pytest.param(1000, marks=pytest.mark.slow)])
def test_confusion_is_a_png_with_a_dot_for_every_cell(classes: int, tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"

    report.plot_confusion(random_confusion(classes), [f"class {i}" for i in range(classes)], path)

    height, width, _ = imread(path).shape
    assert max(600, 2 * classes) < height < 3500
    assert max(600, 2 * classes) < width < 3500
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("classes", "counts", "names"), [(3, 9, 3), (21, 0, 21), (51, 0, None)])
def test_confusion_writes_what_there_is_room_for(
    classes: int, counts: int, names: int | None, drawn: list[Figure]
) -> None:
    confusion = np.ones((classes, classes), int)

    report.plot_confusion(confusion, ["$5 [a]"] * classes, "unused")

    axis = drawn[0].axes[0]
    assert len(axis.texts) == counts
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    assert labels == ["$5 [a]"] * classes if names else "$5 [a]" not in labels


def test_names_that_the_font_cannot_write_become_numbers(drawn: list[Figure]) -> None:
    names = ["chien", "\N{CJK UNIFIED IDEOGRAPH-732B}", "été", "\N{HANGUL SYLLABLE GAE} 2"]

    report.plot_confusion(np.eye(4, dtype=int), names, "unused")

    axis = drawn[0].axes[0]
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["chien", "1", "été", "3"]


def test_an_explanation_has_no_boxes(tmp_path: Path) -> None:
    image, cat = np.zeros((40, 40, 3), np.uint8), "\N{CJK UNIFIED IDEOGRAPH-732B}"
    heats = {f"{cat}{cat}: grad-cam": np.zeros((40, 40), np.float32)}

    draw_heats(tmp_path / "a.png", image, heats, title=f"a.png: {cat} 97.0%")  # and no warning

    assert (tmp_path / "a.png").is_file()
    assert drawable(f"{cat}{cat}: été 97.0%") == "?: été 97.0%"


def test_confusion_colours_are_shares_of_the_row(drawn: list[Figure]) -> None:
    report.plot_confusion([[30, 10, 0], [0, 5, 0], [0, 0, 0]], ["a", "b", "c"], "unused")

    axis = drawn[0].axes[0]
    shares = axis.images[0].get_array()
    np.testing.assert_allclose(shares[:2], [[0.75, 0.25, 0], [0, 1, 0]])
    assert shares.mask[2].all()  # no images: no colour
    assert axis.get_title() == "35 of 45 images correct (77.8%)"
    assert sorted(text.get_text() for text in axis.texts) == ["10", "30", "5"]


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (np.ones((2, 2)), r"\(2, 2\) does not fit 3"),
        (np.ones((3, 2)), r"\(3, 2\) does not fit 3"),
        (np.zeros((3, 3)), "no images"),
    ],
)
def test_confusion_refuses(confusion: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        report.plot_confusion(confusion, ["a", "b", "c"], tmp_path / "confusion.png")


def test_sizes_are_drawn_with_the_chosen_and_the_original(drawn: list[Figure]) -> None:
    points = [(9_000_000, 0.5, "fc1 rank 5"), (12_500_000, 0.71, "fc1 rank 40")]

    report.plot_sizes(points, 1, "unused", original=(134_300_000, 0.72), allowed=0.7)

    axis = drawn[0].axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines) == [
        *("least allowed", "factorised", "original: 537.2 MB as float32"),
        "chosen: fc1 rank 40",
    ]
    np.testing.assert_allclose(lines["factorised"].get_xydata(), [[9, 50], [12.5, 71]])
    np.testing.assert_allclose(lines["chosen: fc1 rank 40"].get_xydata(), [[12.5, 71]])
    np.testing.assert_allclose(lines["least allowed"].get_ydata(), 70)
    assert [text.get_text() for text in axis.texts] == ["12.5 MB, 71.00 %"]
    low, high = axis.get_xlim()
    shown = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert {10, 20, 50, 100} <= set(np.round(shown))


@pytest.mark.slow
def test_nothing_needs_pyplot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    report.plot_history(ROWS, tmp_path / "history.png")
    report.plot_confusion(np.eye(2), ["a", "b"], tmp_path / "confusion.png")
    report.plot_sizes([(5, 0.5, "a")], 0, tmp_path / "s.png", original=(9, 0.5), allowed=0.5)

    assert len(list(tmp_path.iterdir())) == 3


def test_table_aligns_numbers_and_takes_text_as_it_is() -> None:
    table = report.table(
        [["[bold]cat", 12345, 0.987654], ["dog", 7, None]], ["class", "images", "top-1"], "Result"
    )
    stream = io.StringIO()
    Console(file=stream, width=60).print(table)

    text = stream.getvalue()
    for cell in ("Result", "[bold]cat", "12,345", "0.9877", "–"):
        assert cell in text
    assert [column.justify for column in table.columns] == ["left", "right", "right"]


def test_table_refuses_a_row_of_other_length() -> None:
    with pytest.raises(ValueError, match=r"row 1 has 1 cells, not 2"):
        report.table([["a", 1], ["b"]], ["class", "images"])
