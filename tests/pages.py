"""What the README, the site's pages and docstrings have in common: code blocks and commands."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from keras_vgg import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced code blocks of a page, without their fences; "" for those of no language."""
    return [code for name, code in _BLOCK.findall(text) if name == language]


def commands(text: str) -> list[str]:
    """The lines of a page's blocks that call keras-vgg, each on one line, without comments."""
    lines = "\n".join(blocks(text)).replace("\\\n", " ").splitlines()
    found = [line.split("#")[0].strip() for line in lines]
    return [" ".join(line.split()) for line in found if re.match(r"(\w+=\S+ )*keras-vgg ", line)]


def parse(command: str) -> Any:
    """What the command line makes of a command; it is not run.

    Recipes are the repository's. Another stands for one that a search has written.
    """
    words = command.replace("'", "").replace('"', "").split()
    name, arguments = cli._split_name(words[words.index("keras-vgg") + 1 :])
    if name is None:
        if words[-1] in ("--version", "--help"):
            return None
        raise ValueError(f"no such command: {command}")
    if name == "train" and arguments[0].endswith((".py", ".json")):
        if arguments[0].startswith("runs/"):
            arguments[0] = "training/recipes/digits.py"
        arguments[0] = str(ROOT / arguments[0])
    return cli._parse(name, arguments)


def docstring_blocks(folder: Path) -> dict[str, str]:
    """Name of a function, class or module -> the Python blocks in its docstring, as one."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                lines = (ast.get_docstring(node) or "").splitlines()
                # An example is indented under its heading.
                text = "\n".join(line.removeprefix("    ") for line in lines)
                if code := blocks(text, "python"):
                    name = getattr(node, "name", "")
                    found[f"{module}.{name}".rstrip(".")] = "\n".join(map(inspect.cleandoc, code))
    return found


def run(code: str, name: str) -> None:
    exec(compile(code, name, "exec"), {"__name__": "__main__"})
