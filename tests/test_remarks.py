"""What a report says of a run's images and of its result."""

import dataclasses
import os

import pytest

from keras_vgg import report
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs.remarks import remarks_on

INVENTORY = {
    "class_counts": {"train": [90, 10], "validation": [80, 20]},
    "left_out": [{"reason": "TIFF (.tif)", "count": 2, "first": ["a.tif", "b.tif"]}],
    "equal": [{"earlier": "train", "later": "test", "count": 1, "first": [["x.png", "y.png"]]}],
    "absent": {"test": ["dog"]},
}


def run_of(folder, accuracy, **inventory):
    run = Run(folder / "run", Recipe())
    run.directory.mkdir(parents=True)
    run.write_recipe()
    run.write_json("data.json", {"class_names": ["cat", "dog"], "splits": {}} | inventory)
    rows = f"epoch,accuracy,loss,val_accuracy,val_loss\n1,0.9,0.1,{accuracy},0.2\n"
    (run.directory / "metrics.csv").write_text(rows)
    return run


@pytest.mark.parametrize(("accuracy", "is_useless"), [(0.82, True), (0.95, False)])
def test_remarks(tmp_path, accuracy, is_useless):
    remarks = remarks_on(run_of(tmp_path, accuracy, inventory=INVENTORY))
    assert remarks[:4] == [
        "uneven classes: cat has 90 training images, dog 10",
        "test has no image of dog",
        "1 test image also in train: y.png = x.png",
        "left out 2: 2 TIFF (.tif): a.tif, b.tif",
    ]
    assert len(remarks) == 4 + 2 * is_useless
    if is_useless:
        assert remarks[5] == "try more --epochs than 1"
        assert "is of no use: its best validation accuracy, 82.00%" in remarks[4]
        assert "always answering 'cat' (80.00% of 100 images)" in remarks[4]


@pytest.mark.parametrize(("balanced", "is_useless"), [(0.55, True), (0.75, False)])
def test_the_figure_that_selects_is_compared(tmp_path, balanced, is_useless):
    """An accuracy below the share of the commonest class is no fault where classes count alike."""
    run = run_of(tmp_path, 0.78, inventory=INVENTORY)
    run = Run(run.directory, Recipe(select_by="balanced_accuracy"))
    rows = "epoch,accuracy,loss,val_accuracy,val_loss,val_balanced_accuracy\n1,0.9,0.1,0.78,0.2,"
    (run.directory / "metrics.csv").write_text(f"{rows}{balanced}\n")
    remarks = remarks_on(run)
    assert len(remarks) == 4 + 2 * is_useless
    if is_useless:
        assert "best validation balanced accuracy, 55.00%, is no better than guessing" in remarks[4]


def test_a_finished_run_keeps_what_its_training_said(tmp_path):
    run = run_of(tmp_path, 0.82, inventory=INVENTORY)
    run.write_json("results.json", {"remarks": ["training reported 100.00%, but"]})
    remarks = remarks_on(run)
    assert remarks[3].startswith("left out 2")
    assert remarks[4:] == ["training reported 100.00%, but"]


def test_too_few_images_and_earlier_runs(tmp_path):
    counts = {"class_counts": {"validation": [2, 1]}, "left_out": [], "equal": [], "absent": {}}
    (remark,) = remarks_on(run_of(tmp_path / "a", 1.0, inventory=counts))
    assert "3 validation images are too few" in remark
    assert remarks_on(run_of(tmp_path / "b", 0.5)) == []
    counts["class_counts"] = {}  # of TFRecord files
    assert remarks_on(run_of(tmp_path / "c", 0.5, inventory=counts)) == []


def test_the_page_shows_remarks(tmp_path):
    content = report.RunContent(1, "run", "", [], [], [], remarks=["left out 2: <b>"])
    strange = dataclasses.replace(content, subtitle=os.fsdecode(b"folder:caf\xe9"))
    report.write_page(report.Page("run", [strange], "today"), tmp_path / "strange.html")
    assert r"folder:caf\xe9" in (tmp_path / "strange.html").read_text(encoding="utf-8")
    report.write_page(report.Page("run", [content], "today"), tmp_path / "page.html")
    assert "left out 2: &lt;b&gt;" in (tmp_path / "page.html").read_text()
