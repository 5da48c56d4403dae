"""mkdocs hook: add files from outside docs/ to the site, and pages made from the code.

`place` gives a file's page on the site. Links between files are changed to links between pages, so
the same text works in the repository and on the site.
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
    """Return the page (with an anchor) on the site for a file's path in the repository."""
    folder, name = posixpath.split(path)
    if path in INCLUDED:
        return INCLUDED[path]
    if folder == "training/recipes" and name.endswith(".py"):
        return f"recipes.md#{name.removesuffix('.py')}"
    if folder == "notebooks" and name.endswith(".ipynb"):
        return f"notebooks/{name.removesuffix('.ipynb')}.md"
    if path.startswith("keras_vgg/"):  # each module or package in keras_vgg/ has one page
        return f"api/{path.split('/')[1].removesuffix('.py')}.md"
    return path.removeprefix("docs/")


def links_on_site(text: str, path: str, uri: str) -> str:
    """Return a file's Markdown with its relative links changed for the page `uri`."""

    def follow(match: re.Match) -> str:
        target, hash_, anchor = match[1].partition("#")
        if not target or ":" in target:
            return match[0]
        page = place(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        if hash_:
            page = f"{page.partition('#')[0]}#{anchor}"
        return f"]({posixpath.relpath(page, posixpath.dirname(uri) or '.')})"

    parts = _CODE.split(text)  # the parts at odd places are code
    parts[::2] = [_TARGET.sub(follow, part) for part in parts[::2]]
    return "".join(parts)


def notebook_page(notebook: dict) -> str:
    """Return a Jupyter notebook (format 4) as Markdown: its cells, and their output."""
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
    """Return the first heading of a page; code is ignored, because # begins a comment there."""
    heading = re.search(r"^# (.+)$", _CODE.sub("", text), re.MULTILINE)
    return heading[1] if heading else default


def recipes_page() -> str:
    """Return the page of all files in training/recipes."""
    parts = [
        "# Recipes",
        "Each recipe is one experiment. Its docstring is the record: command, hardware, result. "
        "[Training and recipes](training.md#every-field-of-a-recipe) explains the fields.",
    ]
    for path in sorted((ROOT / "training" / "recipes").glob("*.py")):
        source = path.read_text().rstrip()
        title = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        parts += [f"## {path.stem} {{#{path.stem}}}", title, f"```python\n{source}\n```"]
    return "\n\n".join(parts) + "\n"


def notebooks() -> dict[str, str]:
    """Return the Markdown of each notebook's page and of their list; empty without notebooks."""
    folder = ROOT / "notebooks"
    texts = {
        path: notebook_page(json.loads(path.read_text())) for path in sorted(folder.glob("*.ipynb"))
    }
    if not texts:
        return {}
    pages = {}
    readme = folder / "README.md"
    listed = readme.read_text() if readme.is_file() else "# Notebooks\n"
    for path, text in texts.items():
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
