"""A run directory with one damaged file: each command works, or says which file is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keras_vgg import runs
from keras_vgg.fit import Run, fit

pytestmark = pytest.mark.slow

REPLACEMENTS = (b"", b"[]", b"null", b"3", b"{}", b"[" * 100_000, b'{"a": ' * 50_000, b"\xff\xfe")
ROUNDS = 4  # random damages of each file, besides the replacements


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in random.integers(0, len(changed), random.integers(1, 6)):
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(0, len(content)))]


def without_a_part(content: bytes, random: np.random.Generator) -> bytes:
    start, end = sorted(random.integers(0, len(content), 2))
    return content[:start] + content[end:]


def with_a_long_field(content: bytes, random: np.random.Generator) -> bytes:
    """200 kB more in one place, digits or letters."""
    place = int(random.integers(0, len(content)))
    return content[:place] + bytes(random.choice([b"9", b"x"])) * 200_000 + content[place:]


DAMAGES = (flipped, cut, without_a_part, with_a_long_field)


def damaged_contents(content: bytes, seed: list[int]) -> list[bytes]:
    random = np.random.default_rng(seed)
    chosen = [DAMAGES[i % len(DAMAGES)](content, random) for i in range(ROUNDS)]
    return [*REPLACEMENTS, *chosen]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def resumed(run: Run) -> Run:
    return fit(run.recipe, run.directory, verbose=0)


def predicted(run: Run) -> list[list[tuple[str, float]]]:
    image = run.directory.parent / "digit.png"
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(image)
    return runs.predict_files(run, [image])


COMMANDS: dict[str, Callable[[Run], Any]] = {
    "evaluate": lambda run: runs.evaluate_run(run, "validation"),
    "predict": predicted,
    "report": lambda run: runs.report_runs([run], images=0),
    "train": resumed,
}
# What a command that works may write anew.
WRITTEN = {"results.json", "report.html"}


def require_readable(error: Exception, named: str) -> None:
    """The message is one short line with this name."""
    message = str(error)
    assert message.count("\n") == 0, message[:300]
    assert len(message) < 600, message[:300]
    assert named in message


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "name",
    ["recipe.json", "data.json", "results.json", "environment.json", "metrics.csv", "model.keras"],
)
def test_a_damaged_file_is_named_or_does_no_harm(
    name: str, command: str, tiny_run: Run, tmp_path: Path
) -> None:
    seed = [sum(map(ord, name)), list(COMMANDS).index(command)]
    original = (tiny_run.directory / name).read_bytes()
    directory = tmp_path / "run"
    for content in damaged_contents(original, seed):
        shutil.copytree(tiny_run.directory, directory)
        (directory / name).write_bytes(content)
        before = contents(directory)
        named, written = str(directory / name), set()
        try:
            run = Run.open(directory)
            # It may be a good recipe, but of another run: then a word says which is the wrong one.
            named = "" if name == "recipe.json" else named
            COMMANDS[command](run)
            written = WRITTEN
        except (ValueError, OSError) as error:
            require_readable(error, named)
        after = contents(directory)
        changed = {path.name for path in before if after.get(path) != before[path]}
        assert changed <= written
        shutil.rmtree(directory)
