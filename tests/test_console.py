"""Tables of the commands in terminals of several widths: no number is cut."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.cells import cell_len

from keras_vgg import cli, console, evaluation, runs, tuning
from keras_vgg.cli.evaluate import Evaluate
from keras_vgg.cli.export import Export
from keras_vgg.console import is_terminal, new_table, note, note_once, show
from keras_vgg.export.verify import Artifact
from keras_vgg.run import Run
from keras_vgg.tuning.live_table import trial_table

WIDTHS = (40, 60, 80, 200)
NUMBER = re.compile(r"[+-]?\d[\d,.]*\d(?:e[+-]\d+)?%?|\d%?")


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let stdout be a terminal of this width."""
    monkeypatch.setattr(console, "sys", stdout_is_terminal(True))
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def stdout_is_terminal(answer: bool) -> SimpleNamespace:
    return SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: answer))


def lines(text: str) -> list[str]:
    """The lines of a terminal, without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()


def numbers_in(texts: Iterator[str] | list[str]) -> set[str]:
    return {number for text in texts for number in NUMBER.findall(text)}


def require_whole(capsys, width: int, cells: list[str], title: str = "") -> None:
    """Require that each number of the cells is printed on one line, within the terminal."""
    printed = [line for line in lines(capsys.readouterr().out) if line != title]
    assert not [line for line in printed if "…" in line]
    assert max(cell_len(line) for line in printed) <= width
    assert numbers_in(cells) <= numbers_in(printed)


def cells_of(arguments: list[str], capsys, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a command prints into a pipe."""
    with monkeypatch.context() as patch:
        patch.setattr(console, "sys", stdout_is_terminal(False))
        assert cli.main(arguments) == cli.OK
    return capsys.readouterr().out.splitlines()


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize(
    "arguments",
    [
        ["summary", "D"],
        ["summary", "E", "--batch", "128"],
        ["summary", "--compare", "A", "A-LRN", "B", "C", "D", "E"],
        ["summary", "--kernels"],
        ["weights"],
    ],
    ids=" ".join,
)
def test_commands_without_a_run(arguments, width, capsys, monkeypatch) -> None:
    piped = cells_of(arguments, capsys, monkeypatch)
    assert cli.main(arguments) == cli.OK
    printed = lines(capsys.readouterr().out)
    # Titles and the lines below a table are as long as they are.
    table = [line for line in printed if line not in piped]
    assert not [line for line in printed if "…" in line]
    assert max(map(cell_len, table), default=0) <= width
    assert numbers_in(piped) <= numbers_in(printed)


@pytest.mark.parametrize(
    "name",
    ["a", "a name of many words and more", "x" * 70, "犬" * 30],
    ids=["short", "words", "long", "wide"],
)
def test_any_table(name, width, capsys) -> None:
    headers = ("images", "95 % interval", "memory, MB", "minus the first", "p", "formats")
    cells = ["1,234,567", "97.22% to 99.11%", "12,345.67", "+1.25% (-0.11% to +2.34%)", "1.2e-05"]
    table = new_table("a title", "class", *headers)
    for _ in range(2):
        table.add_row(name, *cells, "JPEG 1,000,001; PNG 200,002; WebP 300,003; GIF 4,004")
    show(table)
    printed = lines(capsys.readouterr().out)
    assert printed[0] == "a title"
    assert max(map(cell_len, printed)) <= width
    joined = "".join("".join(printed).split())
    for cell in [*cells, "JPEG 1,000,001;", "4,004"]:
        assert numbers_in([cell]) <= numbers_in(printed)
    assert "…" not in joined
    if len(name) > 1 and width < 200:
        # Nothing of the name is lost.
        first = re.escape(name.split()[0][:3])
        assert re.search(first, joined)


def artifact(path: Path) -> Artifact:
    return Artifact(
        format="litert_dynamic",
        path=path / "model.tflite",
        bytes=138_357_544,
        sha256="",
        images=50_000,
        top1=0.97219,
        top5=0.99871,
        agreement=0.99999,
        max_difference=1.25e-5,
        latency_ms={1: (1234.56, 2345.67), 2: (123.45, 234.56)},
        peak_bytes=1_234_567_890,
    )


def test_export(width, capsys, tmp_path) -> None:
    model = {"bytes": 553_430_176, "top1": 0.97219, "top5": 0.99871}
    (tmp_path / "export.json").write_text(json.dumps({"model": model}))
    Export(run=tmp_path)._show([artifact(tmp_path)])
    cells = ["553.43 97.22% 99.87%", "138.36 100.00% 1.3e-05 1234.56 2345.67 123.45 234.56 1235"]
    out = capsys.readouterr().out
    printed = [line for line in lines(out) if "verified on" not in line and "/" not in line]
    assert max(map(cell_len, printed)) <= width
    assert numbers_in(cells) <= numbers_in(printed)


def test_tune(width, capsys) -> None:
    trials = [
        tuning.Attempt(
            Path(f"trial_{number:04d}"),
            {"learning_rate": 0.0123, "train_scale": "32-40", "hidden_units": 4096},
            parameters=138_357_544,
            epochs=74,
            curve=(0.9321,),
            seconds=12_345.0,
        )
        for number in (7, 123)
    ]
    show(trial_table(trials))
    cells = ["123 138,357,544 1/74 12345 0.0123 32-40 4096"]
    require_whole(capsys, width, cells)


def test_evaluate(width, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(Run, "open", lambda path: Run(Path(path), None))
    row = ("imagenet_d_seed_0", "[256, 512]", "256, 384, 512", "24.81", "24.41 to 25.21", "7.53")
    tables = [("Table 4", ("net", "S", "Q", "top-1 error", "95 % interval", "top-5 error"), [row])]
    monkeypatch.setattr(runs, "paper_tables", lambda *_, **__: tables)
    (tmp_path / "data.json").write_text('{"class_names": ["a", "b"], "splits": {}}')
    command = Evaluate(runs=(tmp_path,), tables=True)
    command()
    require_whole(capsys, width, list(row), "Table 4; test, per cent")


def test_evaluate_several(width, capsys, monkeypatch, tmp_path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 500)
    evaluations = [
        evaluation.Evaluation(
            labels, random.dirichlet(np.ones(10), 500), tuple(f"class {i}" for i in range(10))
        )
        for _ in range(2)
    ]
    names = ["a_run_with_a_long_name_seed_0", "b"]
    command = Evaluate(runs=(tmp_path, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(console, "sys", stdout_is_terminal(False))
        command._compare(names, evaluations)
    title, *cells = lines(capsys.readouterr().out)
    command._compare(names, evaluations)
    require_whole(capsys, width, cells, title)


def test_a_name_between_colons_is_no_picture(capsys) -> None:
    table = new_table("folder:dog: 6 images", "name")
    table.add_row(":smile:")
    show(table)
    show("a:heart:b.png")
    out = capsys.readouterr().out
    assert "folder:dog: 6 images" in out
    assert ":smile:" in out
    assert "a:heart:b.png" in out


def test_streams_that_are_closed(capsys, monkeypatch) -> None:
    table = new_table("title", "name")
    table.add_row("cell")
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)
        show(table)
        show("line")
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stderr", None)
        note("a note")
        note_once("another")
        assert not is_terminal(sys.stderr)
    assert capsys.readouterr().out == ""
