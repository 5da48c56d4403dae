"""Exports for a target: which candidate is kept, what is said of the others, what is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vgg import cli, export, runs
from keras_vgg.export.exporting import own_answers
from keras_vgg.export.formats import FILES
from keras_vgg.files import sha256_of
from keras_vgg.fit import Run
from keras_vgg.models import vgg
from keras_vgg.runs import compressing
from keras_vgg.runs import export as exporting
from keras_vgg.runs.export_candidates import SLOWEST, candidates_of, installed_formats
from keras_vgg.runs.export_targets import (
    UNCHANGED,
    Attempt,
    Target,
    TargetError,
    cost_of,
    export_for_target,
    groups_of,
    target_of,
)

MODEL_TOP1 = 0.9


def artifact(
    format: str, path: Path, mb: float, ms: float, top1: float | None, agreement: float = 0.98
) -> export.Artifact:
    return export.Artifact(
        format=format,
        path=path,
        bytes=round(1e6 * mb),
        sha256="0",
        images=200,
        top1=top1,
        top5=None,
        agreement=agreement,
        max_difference=0.0,
        latency_ms={1: (2 * ms, 3 * ms), 2: (ms, 2 * ms)},
        peak_bytes=None,
    )


class Candidates:
    """Files that weigh and cost what `figures` say; the formats that were written are `written`."""

    def __init__(self, figures: dict[str, tuple | Exception]) -> None:
        self.figures, self.written = figures, []

    def write(self, network: str, folder: Path, *, formats, tolerance, overwrite, verbose):
        (format,) = formats
        name = Attempt(format, network).name
        self.written.append(name)
        figures = self.figures[name]
        if isinstance(figures, Exception):
            raise figures
        folder.mkdir()
        (folder / FILES[format]).write_text(name)
        made = artifact(format, folder / FILES[format], *figures)
        (folder / "export.json").write_text(
            json.dumps({"model": {"top1": MODEL_TOP1}, "tolerance": tolerance, "artifacts": []})
        )
        return [made]

    def groups(self) -> list:
        networks: dict[str, list[str]] = {}
        for name in self.figures:
            format, _, network = name.partition(", ")
            networks.setdefault(network or UNCHANGED, []).append(format)
        return [
            group
            for network, formats in networks.items()
            for group in groups_of(
                formats,
                network,
                partial(self.write, network),
                network.removesuffix(" and compressed") if " and " in network else None,
            )
        ]


FIGURES = {
    "litert": (4.0, 8.0, 0.9, 1.0),
    "onnx": (4.0, 6.0, 0.9, 1.0),
    "litert_float16": (2.0, 8.0, 0.9, 1.0),
    "litert_dynamic": (1.0, 4.0, 0.895, 0.99),
    "litert_int8": (1.0, 2.0, 0.885),
    "litert_int8, compressed": (0.5, 1.0, 0.895),
    "litert, compressed": (1.5, 3.0, 0.9),
}


@pytest.mark.parametrize(
    ("latency", "size", "tolerance", "chosen", "tried"),
    [
        (10, None, 0.5, "onnx", 2),  # both lose nothing; the faster one
        (7, None, 0.5, "onnx", 2),
        (None, 3, 0.5, "litert_float16", 5),
        (5, None, 0.5, "litert_dynamic", 5),
        (5, 1, 2, "litert_dynamic", 5),  # int8 is faster, and loses more
        (3, None, 2, "litert_int8", 5),
        (3, None, 0.5, "litert, compressed", 7),  # int8 loses too much
        (1.5, None, 0.5, "litert_int8, compressed", 7),
        (6, 4, 0.5, "onnx", 2),  # a limit may be met exactly
    ],
)
def test_the_most_accurate_file_of_the_first_group_that_meets_the_target_is_kept(
    latency, size, tolerance, chosen, tried, tmp_path
) -> None:
    candidates = Candidates(FIGURES)
    (kept,) = export_for_target(
        candidates.groups(), Target(latency, size), tmp_path / "export", tolerance=tolerance
    )

    assert len(candidates.written) == tried
    format = chosen.partition(",")[0]
    assert kept.path == tmp_path / "export" / FILES[format]
    assert kept.path.read_text() == chosen
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert {path.name for path in kept.path.parent.iterdir()} == {"export.json", FILES[format]}
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["tolerance"] == tolerance
    search = record["target"]
    assert (search["latency_ms"], search["size_mb"], search["threads"]) == (latency, size, 2)
    assert search["chosen"] == chosen
    assert search["cost"].startswith(f"{chosen} has ")
    names = [Attempt(row["format"], row["network"]).name for row in search["tried"]]
    assert names == candidates.written
    assert {*search["not_tried"]} == {*FIGURES} - {*candidates.written}


def test_a_pruned_network_is_compressed_if_it_keeps_the_accuracy(tmp_path: Path) -> None:
    figures = {
        "litert": (4.0, 8.0, 0.9),
        "litert, pruned to 50%": (2.0, 4.0, 0.9),
        "litert, pruned to 25%": (1.0, 2.0, 0.7),
        "litert, compressed": (3.0, 8.0, 0.9),
        "litert, pruned to 50% and compressed": (0.8, 4.0, 0.898),
        "litert, pruned to 25% and compressed": (0.5, 2.0, 0.9),
    }
    candidates = Candidates(figures)
    (kept,) = export_for_target(
        candidates.groups(), Target(size_mb=0.9), tmp_path / "a", tolerance=0.5
    )
    assert kept.path.read_text() == "litert, pruned to 50% and compressed"

    candidates = Candidates(figures)
    with pytest.raises(TargetError) as caught:
        export_for_target(candidates.groups(), Target(size_mb=0.6), tmp_path / "b", tolerance=0.5)
    assert candidates.written == list(figures)[:-1]
    reason = "the network pruned to 25% alone loses more than 0.5 percentage points"
    assert [row["refused"] for row in caught.value.tried] == [*[None] * 5, reason]


def test_each_attempt_says_what_speaks_against_it(tmp_path: Path) -> None:
    candidates = Candidates({**FIGURES, "onnx": export.ExportError("onnx: cannot be converted")})
    target = Target(3, 1.2)
    groups = candidates.groups()[:2]
    with pytest.raises(TargetError) as caught:
        export_for_target(groups, target, tmp_path / "export", tolerance=0.5)

    verdicts = {row["format"]: row["verdict"] for row in caught.value.tried}
    assert verdicts == {
        "litert": "too slow, too large",
        "onnx": "refused",
        "litert_float16": "too slow, too large",
        "litert_dynamic": "too slow",
        "litert_int8": "loses too much",
    }
    assert caught.value.tried[1]["refused"] == "onnx: cannot be converted"
    assert str(caught.value) == (
        "no export meets the target of 3 ms and 1.2 MB; the nearest that loses at most 0.5"
        " percentage points is litert_dynamic, with 1 MB and 4 ms; litert_int8 meets 3 ms and"
        " 1.2 MB and loses 1.50: raise the tolerance for it. Nothing was written"
    )
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_keeps_the_accuracy_is_an_error_of_its_own(tmp_path: Path) -> None:
    candidates = Candidates({"litert_int8": (1.0, 2.0, 0.8)})
    with pytest.raises(TargetError, match=r"no export loses at most 0.5.*10.00: raise"):
        export_for_target(candidates.groups(), Target(5), tmp_path / "export", tolerance=0.5)
    refused = Candidates({"onnx": export.ExportError("onnx: cannot be converted")})
    with pytest.raises(TargetError, match="no file could be made: onnx: cannot be converted"):
        export_for_target(refused.groups(), Target(5), tmp_path / "export", tolerance=0.5)


def test_an_earlier_export_stays_if_no_file_meets_the_target(tmp_path: Path) -> None:
    candidates = Candidates(FIGURES)
    export_for_target(candidates.groups(), Target(5), tmp_path / "export", tolerance=0.5)
    missed = partial(export_for_target, candidates.groups(), Target(0.1), tmp_path / "export")
    with pytest.raises(FileExistsError, match="export exists"):
        missed(tolerance=0.5)
    with pytest.raises(TargetError):
        missed(tolerance=0.5, overwrite=True)
    assert (tmp_path / "export" / FILES["litert_dynamic"]).is_file()
    export_for_target(
        candidates.groups(), Target(7), tmp_path / "export", tolerance=0.5, overwrite=True
    )
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"export.json", "model.onnx"}


def test_a_network_that_cannot_be_made_is_refused_unless_it_is_the_first(tmp_path: Path) -> None:
    error = ValueError("no factorisation keeps the accuracy")
    figures = {"litert": (4.0, 8.0, 0.9), "litert, compressed": error, "onnx, compressed": error}
    candidates = Candidates(figures)
    with pytest.raises(
        TargetError, match=r"the nearest .* is litert, with 4 MB and 8 ms"
    ) as caught:
        export_for_target(candidates.groups(), Target(5), tmp_path / "a", tolerance=0.5)
    assert [row["refused"] for row in caught.value.tried] == [None, str(error), str(error)]
    assert candidates.written == ["litert", "litert, compressed"]  # one try is enough
    first = Candidates({"litert, compressed": error})
    with pytest.raises(ValueError, match=r"^no factorisation keeps the accuracy$"):
        export_for_target(first.groups(), Target(5), tmp_path / "a", tolerance=0.5)


def test_a_missed_target_says_what_was_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    error = ValueError("no factorisation keeps the accuracy")
    candidates = Candidates(
        {"litert": (4.0, 8.0, 0.9), "litert, compressed": error, "onnx, compressed": error}
    )
    with pytest.raises(TargetError) as caught:
        export_for_target(
            candidates.groups(),
            Target(5),
            tmp_path / "export",
            tolerance=0.5,
            left_out=["openvino needs the package openvino"],
        )

    def missed(*_: object, **__: object) -> None:
        raise caught.value

    monkeypatch.setattr(cli.export.Export, "_artifacts", missed)
    assert cli.main(["export", str(tmp_path), "--target-latency", "5"]) == cli.BAD_INPUT
    lines = " ".join(capsys.readouterr().out.split())
    assert f"litert, compressed; onnx, compressed were refused: {error}" in lines
    assert "Not tried: openvino needs the package openvino" in lines


@pytest.mark.parametrize("tolerance", [-1, float("nan")])
def test_a_tolerance_that_is_no_number_of_points_is_refused(tolerance, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tolerance must be 0 or more"):
        export_for_target([], Target(5), tmp_path / "export", tolerance=tolerance)


def test_the_sentence_about_the_cost() -> None:
    path = Path("model.tflite")
    lost = Attempt("litert", UNCHANGED, artifact("litert", path, 1.25, 3.5, 0.895), 0.9)
    assert cost_of(lost) == (
        "litert has 1.25 MB and 3.5 ms an image; it loses 0.50 percentage points of top-1 accuracy"
        " (89.50%, the network 90.00%) and agrees with the network on 98.00% of 200 images."
    )
    gained = Attempt("litert", "compressed", artifact("litert", path, 1.25, 3.5, 0.91), 0.9)
    assert cost_of(gained).startswith("litert, compressed has 1.25 MB")
    assert "it loses no top-1 accuracy (91.00%, the network 90.00%)" in cost_of(gained)
    unlabelled = Attempt("litert", UNCHANGED, artifact("litert", path, 1.25, 3.5, None))
    assert cost_of(unlabelled).endswith("of 200 images; these images have no labels.")
    assert unlabelled.lost == 2  # the images on which it differs


def test_a_gain_by_chance_is_not_preferred_to_agreement(tmp_path: Path) -> None:
    figures = {"litert_int8": (1.0, 2.0, 0.92, 0.95), "litert_float16": (1.0, 2.0, 0.9, 1.0)}
    candidates = Candidates(figures)
    (kept,) = export_for_target(candidates.groups(), Target(5), tmp_path / "e", tolerance=0.5)
    assert kept.format == "litert_float16"


@pytest.fixture
def run(varied_run: Run, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(varied_run.directory, tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-latency", "0"], "target_latency must be a positive number of milliseconds"),
        (["--target-latency", "nan"], "positive number of milliseconds, not nan"),
        (["--target-latency", "fast"], "fast"),
        (["--target-size", "-2"], "target_size must be a positive number of megabytes, not -2"),
        (["--target-size", "inf"], "positive number of megabytes, not inf"),
        (["--target-size", "5", "--format", "tflite"], "unknown export format 'tflite'"),
        (["--target-size", "5", "--fine-tune-steps", "-1"], "fine_tune_steps must be 0 or more"),
        (["--fine-tune-steps", "5"], "fine_tune_steps=5 needs compress"),
    ],
)
def test_wrong_targets_are_one_line(run: Run, arguments, message, capsys) -> None:
    try:
        status = cli.main(["export", str(run.directory), *arguments])
    except SystemExit as error:  # a value that is no number
        status = error.code
    assert status == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (run.directory / "export").exists()


@pytest.mark.slow
def test_a_target_tries_what_is_installed_and_compression_last(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict = {}
    monkeypatch.setattr(
        exporting, "export_for_target", lambda *groups, **_: asked.update(groups=groups[0]) or []
    )
    installed, missing = installed_formats()
    assert set(export.DEFAULT_FORMATS) <= set(installed)
    assert len(installed) + len(missing) == len(export.FORMATS) - 1

    runs.export_run(run, target_latency=5, images=4)
    assert [group.network for group in asked["groups"]] == [UNCHANGED, UNCHANGED, "compressed"]
    exact, lower, compressed = (group.formats for group in asked["groups"])
    assert exact == tuple(f for f in installed if f in ("saved_model", "litert", "onnx"))
    assert {*exact, *lower} == {*compressed} == {*installed}

    runs.export_run(run, target_size=5, formats=["litert_int8"], compress=True, images=4)
    assert [(g.network, g.formats) for g in asked["groups"]] == [("compressed", ("litert_int8",))]


def tiny_network(**options: object) -> keras.Model:
    return vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=10,
        include_preprocessing=True,
        **{"width_multiplier": 1 / 16, "head": "fc", "hidden_units": 8, **options},
    )


@pytest.mark.parametrize(
    ("limits", "options", "last", "reason"),
    [
        ((None, 5.0), {}, (SLOWEST,), None),
        ((None, 0.01), {}, (), "litert_int16 is left out: its weights, of one byte each, have "),
        ((None, 0.01), {"frozen": True}, (), "litert_int16 is left out: its weights, of one byte"),
        ((5.0, 5.0), {}, (), "litert_int16 is left out: LiteRT has no fast code for it"),
        ((None, 5.0), {"compress": True}, (), "only the unchanged network is tried in it"),
        ((None, 5.0), {"formats": ["litert"]}, (), None),
        ((None, 5.0), {"labelled": False}, (SLOWEST,), "compressed networks are left out: ranks"),
        ((None, 5.0), {"several_labels": True}, (SLOWEST,), "needs one label an image"),
        ((None, None), {}, (), None),
    ],
)
def test_what_is_left_out_has_a_reason(limits, options, last, reason) -> None:
    asked = {
        "formats": None,
        "compress": False,
        "fine_tune_steps": 0,
        "labelled": True,
        "several_labels": False,
    }
    target, model = target_of(*limits), tiny_network()
    model.trainable = "frozen" not in options
    given = {name: options[name] for name in options.keys() & asked.keys()}
    candidates = candidates_of(model, target=target, **(asked | given))
    assert candidates.last == last
    assert SLOWEST not in candidates.formats
    reasons = [line for line in candidates.left_out if line not in installed_formats()[1]]
    assert [reason] * bool(reason) == [reason for line in reasons if reason in line]
    assert len(reasons) == bool(reason)
    compresses = target is not None and not {"labelled", "several_labels"} & set(options)
    assert candidates.compressed == compresses


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError])  # absent, and changed
def test_nothing_to_compress_is_said_and_needs_no_training_images(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    asked: dict = {}
    monkeypatch.setattr(exporting, "export_for_target", lambda *_, **o: asked.update(o) or [])
    open_split = exporting.open_split

    def without_training_images(run: Run, name: str, *place: str) -> object:
        if name == "train":
            raise error("the training images are absent")
        return open_split(run, name, *place)

    monkeypatch.setattr(exporting, "open_split", without_training_images)
    model = tiny_network(head="gap")
    formats = ["litert", "saved_model"]
    options = {"target_latency": 5, "images": 2, "model": model, "formats": formats}

    runs.export_run(run, **options)

    reason = "the network has no dense layers fc1 and fc2"
    assert asked["left_out"] == (f"compressed networks are left out: {reason}",)
    with pytest.raises(ValueError, match=f"fine_tune_steps=200 trains .*: {reason}; leave"):
        runs.export_run(run, fine_tune_steps=200, **options)
    runs.export_run(run, **(options | {"model": tiny_network()}))
    (line,) = asked["left_out"]
    assert line.startswith("integer formats and compressed networks need training images: the tra")
    for changes in ({"formats": ["litert_int8"]}, {"compress": True}, {"fine_tune_steps": 2}):
        with pytest.raises(error, match="training images are absent"):
            runs.export_run(run, **(options | {"model": tiny_network()} | changes))


def test_a_pruned_network_states_its_own_thresholds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(run: Run, threshold: float) -> None:
        pair = {"calibrated": 0.1, "uncalibrated": threshold}
        content = {"temperature": 2.0, "thresholds": {"0.95": pair}}
        run.write_json("calibration.json", {**content, "model_sha256": sha256_of(run.model_path)})

    calibrate(run, 0.5)
    steps = [Run.open(shutil.copytree(run.directory, tmp_path / name)) for name in "ab"]
    calibrate(steps[0], 0.7)
    (steps[1].directory / "calibration.json").unlink()
    networks = {"pruned to 50%": steps[0], "pruned to 25%": steps[1]}
    monkeypatch.setattr(exporting, "stand_ins", lambda *_: networks)
    asked: dict = {}
    monkeypatch.setattr(
        exporting, "export_for_target", lambda *groups, **_: asked.update(groups=groups[0]) or []
    )

    runs.export_run(run, target_size=5, formats=["litert"], images=2, pruned=tmp_path)

    stated = {group.network: group.write.keywords["unknown_below"] for group in asked["groups"]}
    assert stated == {
        UNCHANGED: {0.95: 0.5},
        "pruned to 50%": {0.95: 0.7},
        "pruned to 25%": None,
        "compressed": {0.95: 0.5},
        "pruned to 50% and compressed": {0.95: 0.7},
        "pruned to 25% and compressed": None,
    }
    network = asked["groups"][1].write.keywords["stand_in"](tmp_path)
    assert network.count_params() == steps[0].model().count_params()
    last = asked["groups"][-1]
    assert last.based_on == "pruned to 25%"
    assert len(last.write.keywords["images"]) == 1  # the other one chooses the ranks
    factorised: list[object] = []
    monkeypatch.setattr(Run, "model", lambda step: step.directory)
    monkeypatch.setattr(
        compressing.compression, "compress", lambda model, *_, **__: factorised.append(model)
    )
    with pytest.raises(AttributeError):  # nothing was compressed
        last.write.keywords["stand_in"](tmp_path)
    assert factorised == [steps[1].directory]


def test_a_pruned_network_of_several_labels_states_its_own_thresholds(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = run.read_json("data.json")
    run.write_json("data.json", {**described, "several_labels": True})
    kept = {"model_sha256": sha256_of(run.model_path)}
    run.write_json("thresholds.json", {**kept, "thresholds": {"validation": [0.25] * 10}})
    assert exporting._stand_in_options(run)["thresholds"] == [0.25] * 10
    (run.directory / "thresholds.json").unlink()
    assert exporting._stand_in_options(run)["thresholds"] is None


@pytest.mark.slow
def test_a_run_is_exported_for_a_size(
    run: Run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counted(*arguments) -> np.ndarray:
        computed.append(own_answers(*arguments))
        return computed[-1]

    for module in (exporting, export.exporting):
        monkeypatch.setattr(module, "own_answers", counted)
    arguments = ["export", str(run.directory), "--images", "30", "--format"]
    arguments += ["litert,litert_dynamic", "--tolerance", "20", "--target-size"]
    parameters = run.model().count_params()

    assert cli.main([*arguments, f"{2 * parameters / 1e6}"]) == cli.OK

    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert next(line[-1] for line in lines if line[:1] == ["litert_dynamic"]) == "passed"
    assert any(line[:1] == ["litert"] and line[-2:] == ["too", "large"] for line in lines)
    assert "Chosen: litert_dynamic has " in out
    assert "Not tried, because others met the target first: litert, compressed; " in out
    folder = run.directory / "export"
    names = {path.name for path in folder.iterdir()}
    assert names == {"class_names.txt", "export.json", "model_dynamic.tflite"}
    record = json.loads((folder / "export.json").read_text())
    assert [row["format"] for row in record["artifacts"]] == ["litert_dynamic"]
    assert record["tolerance"] == 20
    assert [len(answers) for answers in computed] == [30]  # both files share them
    answer, _, _ = export.model_files.open_model_file(folder / "model_dynamic.tflite")
    assert np.isfinite(answer(np.zeros((1, 32, 32, 3), np.float32))).all()


@pytest.mark.slow
def test_a_target_that_nothing_meets_shows_every_candidate(run: Run, capsys) -> None:
    arguments = ["export", str(run.directory), "--images", "30", "--target-size", "0.001"]
    assert cli.main([*arguments, "--tolerance", "100"]) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert "no export meets the target of 0.001 MB; the nearest" in captured.err
    assert "Traceback" not in captured.err
    table = captured.out
    assert all(f"\n  {format} " in table for format in installed_formats()[0])
    assert ", compressed" in table
    assert not (run.directory / "export").exists()


@pytest.mark.slow
def test_networks_are_compressed_if_nothing_else_is_small_enough(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Run.open(shutil.copytree(run.directory, tmp_path / "step-1"))
    tiny_network(hidden_units=64).save(run.model_path)
    narrow = tiny_network(hidden_units=64, width_multiplier=1 / 32)
    narrow.save(step.model_path)
    monkeypatch.setattr(exporting, "stand_ins", lambda *_: {"pruned to 25%": step})
    # The file of all weights is larger than they are, by some kilobytes.
    options = {"target_size": 4 * narrow.count_params() / 1e6, "formats": ["litert"]}

    (artifact,) = runs.export_run(run, pruned=tmp_path, tolerance=100, images=40, **options)

    assert artifact.images == 20
    folder = run.directory / "export"
    search = json.loads((folder / "export.json").read_text())["target"]
    assert search["chosen"] == "litert, pruned to 25% and compressed"
    assert [row["network"] for row in search["tried"]] == [
        UNCHANGED,
        "pruned to 25%",
        "compressed",
        "pruned to 25% and compressed",
    ]
    original = json.loads((folder / "compression.json").read_text())["original"]
    assert original["parameters"] == narrow.count_params()
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.tflite", "compression.json", "compression.png", "export.json"}
