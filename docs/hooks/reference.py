"""Reference pages, made from the package as it is: commands, fields of a recipe, modules."""

from __future__ import annotations

import ast
import contextlib
import html
import inspect
import io
import os
import pkgutil
import re
from pathlib import Path
from unittest import mock

import griffe

import keras_vgg
from keras_vgg import cli
from keras_vgg.recipe import Recipe

# Modules that serve the others and are nobody's business outside; the commands have a page.
INTERNAL = {"array_cache", "backend", "cli", "console", "containers", "files", "hdf5_check"}
INTERNAL.add("recipe_checks")


def require_this_checkout(root: Path) -> None:
    """What is imported must be what is shown."""
    if Path(keras_vgg.__file__).parents[1] != root:
        raise ValueError(f"the site is of {root}, but keras_vgg is that of {keras_vgg.__file__}")


def help_of(command: str) -> str:
    """What `keras-vgg COMMAND --help` prints on a terminal so wide that no line is broken."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # else its boxes are of hyphens
    with (
        mock.patch.dict(os.environ, COLUMNS="2000"),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        cli._parse(command, ["--help"])
    said.flush()
    return said.buffer.getvalue().decode()


def options_in(text: str) -> list[tuple[str, str, str]]:
    """(title of the box, option, what it does) of each option in a command's help.

    An option stands at the left of its box, its explanation two spaces or a line further.
    """
    found, title = [], ""
    for line in text.splitlines():
        if line.startswith("╭"):
            title = line.strip("╭╮─ ")
        if not line.startswith("│"):
            continue
        line = line.strip("│").rstrip()[1:]
        if line.startswith(" "):
            found[-1][2] += f" {line.strip()}"
        elif line:
            option, _, rest = line.partition("  ")
            found.append([title, option, rest.strip()])
    return [(title, option, rest.strip()) for title, option, rest in found]


def commands_page() -> str:
    """Every command: its docstring, its usage and its options, as its own help has them."""
    parts = [
        "---\nhide: [navigation]\n---",
        "# Commands",
        "What `keras-vgg COMMAND --help` says of each. `keras-vgg --version` prints the version; "
        "`--debug` after any command shows an error's traceback. Exit status: 0; 1, the loss "
        "diverged; 2, bad input, with one line on stderr; 130, Ctrl-C; 143, SIGTERM.",
    ]
    for command in cli.COMMANDS:
        anchor = command.replace(" ", "-")
        usage, _, rest = help_of(command).partition("\n\n")
        usage = " ".join(usage.removeprefix("usage: ").split())
        said = html.escape(rest.partition("╭")[0].strip(), quote=False)
        paragraphs = "".join(f"<p>{p}</p>\n" for p in said.split("\n\n"))
        parts.append(f"## {command} {{#{anchor}}}\n\n```text\n{usage}\n```\n\n{paragraphs}")
        entries = []
        for _, option, text in options_in(rest):
            if option == "-h, --help":
                continue
            names = [word for word in option.split() if word.startswith("--")]
            places = "".join(f'<span id="{anchor}{name.strip(",")}"></span>' for name in names)
            entries.append(
                f"<dt>{places}<code>{html.escape(option)}</code></dt>"
                f"<dd>{html.escape(text, quote=False)}</dd>"
            )
        parts.append('<dl class="options">\n' + "\n".join(entries) + "\n</dl>")
    return "\n\n".join(parts) + "\n"


def recipe_fields() -> str:
    """Tables of the fields of a recipe, under the headings that its source has as comments."""
    source = inspect.getsource(Recipe)
    lines = source.splitlines()
    (node,) = ast.parse(source).body
    parts, seen = [], 0
    for field, said in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr)):
            continue
        for line in lines[seen : field.lineno]:
            if heading := re.fullmatch(r"    # (.+)", line):
                parts.append(f"\n### {heading[1]}\n\n| field | what it decides |\n|---|---|")
        seen = field.end_lineno
        kind = ast.unparse(field.annotation).replace("Literal", "").strip("[]")
        kind = kind.replace("'", "").replace("|", "or").replace(" or None", " or None")
        text = " ".join(inspect.cleandoc(said.value.value).split()).replace("|", "\\|")
        default = ast.unparse(field.value).replace("'", '"')
        parts.append(
            f"| <code>{field.target.id}</code><br><small>{html.escape(kind)}</small><br>"
            f"<small>default: {default}</small> | {html.escape(text, quote=False)} |"
        )
    return "\n".join(parts) + "\n"


def rooms() -> dict[str, str]:
    """Documented module -> the first line of its docstring."""
    names = sorted(m.name for m in pkgutil.iter_modules(keras_vgg.__path__))
    found = {}
    for name in names:
        if name not in INTERNAL and not name.startswith("_"):
            path = Path(keras_vgg.__file__).parent / name
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            found[name] = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return found


def api_pages() -> dict[str, str]:
    """Page -> Markdown: an index of the public names, and a page for each documented module."""
    found = rooms()
    source = griffe.load(
        "keras_vgg",
        search_paths=[Path(keras_vgg.__file__).parents[1]],
        extensions=griffe.load_extensions(Path(__file__).with_name("builders.py")),
    )
    rows = []
    for name in sorted(keras_vgg.__all__, key=str.lower):
        if not name.startswith("__"):
            said = source[name].docstring.value.split("\n\n")[0]
            home = f"keras_vgg.{keras_vgg._HOMES[name]}.{name}"
            rows.append(f"| [`{name}`][{home}] | {' '.join(said.split())} |")
    modules = [
        f"| [`keras_vgg.{name}`]({name}.md) | {' '.join(said.split())} |"
        for name, said in found.items()
    ]
    index = "\n".join(
        [
            "# API\n\n## Public names\n\n`from keras_vgg import NAME`:\n",
            "| name | what it is |\n|---|---|",
            *rows,
            "\n## Modules\n\n| module | what it is for |\n|---|---|",
            *modules,
        ]
    )
    pages = {}
    for name in found:
        pages[f"api/{name}.md"] = f"# keras_vgg.{name}\n\n::: keras_vgg.{name}\n"
    return {"api/index.md": index + "\n", **pages}
