"""Make the reference pages from the package: commands, fields of a recipe, modules."""

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

# Internal modules have no page; the commands have a page of their own.
INTERNAL = {"array_cache", "backend", "builder_checks", "cli", "console", "containers", "files"}
INTERNAL |= {"hdf5_check", "features", "gradient", "graph", "recipe_checks", "recipe_faults"}


def require_this_checkout(root: Path) -> None:
    """Raise a ValueError unless the imported keras_vgg is the one in this checkout."""
    if Path(keras_vgg.__file__).parents[1] != root:
        raise ValueError(f"the site is for {root}, but {keras_vgg.__file__} is imported")


def help_of(command: str) -> str:
    """Return the output of `keras-vgg COMMAND --help` on a terminal that breaks no line."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # other encodings give ASCII boxes
    with (
        mock.patch.dict(os.environ, COLUMNS="2000"),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        cli._parse(command, ["--help"])
    output.flush()
    return output.buffer.getvalue().decode()


def options_in(text: str) -> list[tuple[str, str, str]]:
    """Return (title of the box, option, explanation) of each option in a command's help.

    An option begins at the left of its box. Its explanation follows after two spaces, or on the
    next line.
    """
    options, title = [], ""
    for line in text.splitlines():
        if line.startswith("╭"):
            title = line.strip("╭╮─ ")
        if not line.startswith("│"):
            continue
        line = line.strip("│").rstrip()[1:]
        if line.startswith(" "):
            options[-1][2] += f" {line.strip()}"
        elif line:
            option, _, rest = line.partition("  ")
            options.append([title, option, rest.strip()])
    return [(title, option, rest.strip()) for title, option, rest in options]


def commands_page() -> str:
    """Return the page of all commands: the usage, docstring and options of each help."""
    parts = [
        "---\nhide: [navigation]\n---",
        "# Commands",
        "This page shows what `keras-vgg COMMAND --help` prints. `keras-vgg --version` prints the "
        "version. `--debug` after any command shows an error's traceback. The exit status is 0 for "
        "success, 1 if the loss diverged, 2 for wrong input (with one line on stderr), 3 if "
        "`predict`, `search` or `compare` could not read some files, 130 after Ctrl-C, 141 if the "
        "reader of the output closed the pipe, and 143 after SIGTERM.",
    ]
    for command in cli.COMMANDS:
        anchor = command.replace(" ", "-")
        usage, _, rest = help_of(command).partition("\n\n")
        usage = " ".join(usage.removeprefix("usage: ").split())
        description = html.escape(rest.partition("╭")[0].strip(), quote=False)
        paragraphs = "".join(f"<p>{p}</p>\n" for p in description.split("\n\n"))
        parts.append(f"## {command} {{#{anchor}}}\n\n```text\n{usage}\n```\n\n{paragraphs}")
        entries = []
        for _, option, text in options_in(rest):
            if option == "-h, --help":
                continue
            names = [word for word in option.split() if word.startswith("--")]
            anchors = "".join(f'<span id="{anchor}{name.strip(",")}"></span>' for name in names)
            entries.append(
                f"<dt>{anchors}<code>{html.escape(option)}</code></dt>"
                f"<dd>{html.escape(text, quote=False)}</dd>"
            )
        parts.append('<dl class="options">\n' + "\n".join(entries) + "\n</dl>")
    return "\n\n".join(parts) + "\n"


def recipe_fields() -> str:
    """Return tables of a recipe's fields; comments in the source are the headings."""
    source = inspect.getsource(Recipe)
    lines = source.splitlines()
    (node,) = ast.parse(source).body
    parts, seen = [], 0
    for field, docstring in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr)):
            continue
        for line in lines[seen : field.lineno]:
            if heading := re.fullmatch(r"    # (.+)", line):
                parts.append(f"\n### {heading[1]}\n\n| field | what it decides |\n|---|---|")
        seen = field.end_lineno
        kind = ast.unparse(field.annotation).replace("Literal", "").strip("[]")
        kind = kind.replace("'", "").replace("|", "or").replace(" or None", " or None")
        text = " ".join(inspect.cleandoc(docstring.value.value).split()).replace("|", "\\|")
        default = ast.unparse(field.value).replace("'", '"')
        parts.append(
            f"| <code>{field.target.id}</code><br><small>{html.escape(kind)}</small><br>"
            f"<small>default: {default}</small> | {html.escape(text, quote=False)} |"
        )
    return "\n".join(parts) + "\n"


def rooms() -> dict[str, str]:
    """Return the first paragraph of each documented module's docstring, by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(keras_vgg.__path__))
    summaries = {}
    for name in names:
        if name not in INTERNAL and not name.startswith("_"):
            path = Path(keras_vgg.__file__).parent / name
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            summaries[name] = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[
                0
            ]
    return summaries


def api_pages() -> dict[str, str]:
    """Return the Markdown of the index of public names, and of each documented module's page."""
    summaries = rooms()
    source = griffe.load(
        "keras_vgg",
        search_paths=[Path(keras_vgg.__file__).parents[1]],
        extensions=griffe.load_extensions(Path(__file__).with_name("builders.py")),
    )
    rows = []
    for name in sorted(keras_vgg.__all__, key=str.lower):
        if not name.startswith("__"):
            summary = source[name].docstring.value.split("\n\n")[0]
            home = f"keras_vgg.{keras_vgg._HOMES[name]}.{name}"
            rows.append(f"| [`{name}`][{home}] | {' '.join(summary.split())} |")
    modules = [
        f"| [`keras_vgg.{name}`]({name}.md) | {' '.join(summary.split())} |"
        for name, summary in summaries.items()
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
    for name in summaries:
        pages[f"api/{name}.md"] = f"# keras_vgg.{name}\n\n::: keras_vgg.{name}\n"
    return {"api/index.md": index + "\n", **pages}
