"""mkdocs hook: pages that lie elsewhere in the repository, and pages made from the code.

A file appears on the site where `place` says; links between such files are followed there, so that
one text is right in the repository and on the site.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
INCLUDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "training/README.md": "results.md",
    "training/recipes": "recipes.md",
    "keras_vgg": "api/index.md",
    "keras_vgg/cli": "cli.md",
    "notebooks": "notebooks/index.md",
    "notebooks/README.md": "notebooks/index.md",
}
_TARGET = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|^~~~.*?^~~~$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def place(path: str) -> str:
    """A file's path in the repository -> its page (with an anchor) on the site."""
    folder, name = posixpath.split(path)
    if path in INCLUDED:
        return INCLUDED[path]
    if folder == "training/recipes" and name.endswith(".py"):
        return f"recipes.md#{name.removesuffix('.py')}"
    if folder == "notebooks" and name.endswith(".ipynb"):
        return f"notebooks/{name.removesuffix('.ipynb')}.md"
    if path.startswith("keras_vgg/"):  # a page for each module and package, not for what is in it
        return f"api/{path.split('/')[1].removesuffix('.py')}.md"
    return path.removeprefix("docs/")


def links_on_site(text: str, path: str, uri: str) -> str:
    """The Markdown of a repository's file, its relative links made right for the page `uri`."""

    def follow(found: re.Match) -> str:
        target, hash_, anchor = found[1].partition("#")
        if not target or ":" in target:
            return found[0]
        there = place(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        if hash_:
            there = f"{there.partition('#')[0]}#{anchor}"
        return f"]({posixpath.relpath(there, posixpath.dirname(uri) or '.')})"

    parts = _CODE.split(text)  # every other part is code
    parts[::2] = [_TARGET.sub(follow, part) for part in parts[::2]]
    return "".join(parts)


def notebook_page(notebook: dict) -> str:
    """A Jupyter notebook (format 4) -> Markdown: its cells, and the text that they printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                data = output.get("data", {})
                text = "".join(output.get("text", data.get("text/plain", "")))
                if "image/png" in data:
                    png = "".join(data["image/png"]).replace("\n", "")
                    parts.append(
                        f'<img alt="what the cell above draws" src="data:image/png;base64,{png}">'
                    )
                elif text.strip():
                    parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def title_of(text: str, default: str) -> str:
    """The first heading of a page; in code, # begins a comment."""
    found = re.search(r"^# (.+)$", _CODE.sub("", text), re.MULTILINE)
    return found[1] if found else default


def recipes_page() -> str:
    """Every file of training/recipes: its docstring is the experiment's record."""
    parts = [
        "# Recipes",
        "Each is one experiment; its docstring is the record: command, hardware, result. "
        "What the fields mean: [training and recipes](training.md#every-field-of-a-recipe).",
    ]
    for path in sorted((ROOT / "training" / "recipes").glob("*.py")):
        source = path.read_text().rstrip()
        title = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        parts += [f"## {path.stem} {{#{path.stem}}}", title, f"```python\n{source}\n```"]
    return "\n\n".join(parts) + "\n"


def notebooks() -> dict[str, str]:
    """Page -> Markdown, of every notebook and of their list; nothing where there are none."""
    folder = ROOT / "notebooks"
    found = {
        path: notebook_page(json.loads(path.read_text())) for path in sorted(folder.glob("*.ipynb"))
    }
    if not found:
        return {}
    pages = {}
    readme = folder / "README.md"
    listed = readme.read_text() if readme.is_file() else "# Notebooks\n"
    for path, text in found.items():
        uri = f"notebooks/{path.stem}.md"
        pages[uri] = links_on_site(text, f"notebooks/{path.name}", uri)
        if f"({path.name})" not in listed:
            listed += f"\n- [{title_of(text, path.stem)}]({path.name})"
    pages["notebooks/index.md"] = links_on_site(
        listed + "\n", "notebooks/README.md", "notebooks/index.md"
    )
    return dict(sorted(pages.items(), key=lambda item: item[0] != "notebooks/index.md"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    reference.require_this_checkout(ROOT)
    config["generated"] = {
        "recipes.md": recipes_page(),
        "cli.md": reference.commands_page(),
        **notebooks(),
        **reference.api_pages(),
    }
    nav = []
    for entry in config.nav:
        ((title, value),) = entry.items()
        if value in ("notebooks", "api"):
            value = [
                {title_of(text, page): page}
                for page, text in config["generated"].items()
                if page.startswith(f"{value}/")
            ]
        if value:
            nav.append({title: value})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, uri in INCLUDED.items():
        if path.endswith(".md") and uri not in config["generated"] and (ROOT / path).is_file():
            text = links_on_site((ROOT / path).read_text(), path, uri)
            if uri == "index.md":
                text = f"---\nhide: [navigation]\n---\n\n{text}"
            files.append(File.generated(config, uri, content=text))
    for uri, text in config["generated"].items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    if page.file.generated_by is not None:
        return markdown
    markdown = links_on_site(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    return markdown.replace("<!-- every field of a recipe -->", reference.recipe_fields())
