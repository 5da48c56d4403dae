"""The site builds without a warning, its links hold, its code runs, and nothing is left out."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

import keras_vgg
from keras_vgg import architecture, cli
from keras_vgg.recipe import Recipe
from tests import pages
from tests.pages import ROOT

CHROMIUM = "/usr/bin/chromium"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PUBLIC = [name for name in keras_vgg.__all__ if not name.startswith("__")]
# What a browser fetches without being asked; a link, it does not.
LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("link", "href")}
NOT_FETCHED = {"canonical", "prev", "next", "alternate"}  # rel of a <link>


class Page(HTMLParser):
    """Where a page leads to, what it loads, what may be led to in it, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        for name, value in values.items():
            fetched = (tag, name) in LOADED and values.get("rel") not in NOT_FETCHED
            if fetched:
                self.loads.append(value)
            if (tag, name) == ("a", "href") or fetched:
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


# --- the built site: .github/workflows/docs.yml also builds it, with --strict -----------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Warnings of mkdocs are errors (--strict), as are deprecations."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO ")]
    assert said == [] == done.stdout.splitlines()
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[str, Page]:
    """Path in the site -> page."""
    return {
        path.relative_to(site).as_posix(): Page(path.read_text()) for path in site.rglob("*.html")
    }


def followed(name: str, link: str) -> tuple[str, str]:
    """(file in the site, anchor) that a relative link of a page leads to."""
    address, anchor = urldefrag(urljoin(f"http://site/{name}", link))
    path = unquote(urlsplit(address).path).removeprefix("/")
    return (f"{path}index.html" if path.endswith("/") or not path else path), unquote(anchor)


def is_relative(link: str) -> bool:
    return not (urlsplit(link).scheme or urlsplit(link).netloc)


@pytest.mark.slow
def test_links_and_pictures_lead_somewhere(site: Path, built: dict[str, Page]):
    """Those to other hosts are looked at, not followed."""
    broken, seen = [], 0
    for name, page in built.items():
        if name == "404.html":  # shown at any address, so its links begin with /
            continue
        for link in page.links:
            seen += 1
            if is_relative(link):
                path, anchor = followed(name, link)
                good = (site / path).is_file()
                good = good and (not anchor or anchor in built[path].anchors)
            else:
                parts = urlsplit(link)
                good = parts.scheme == "data" or (
                    parts.scheme in ("http", "https") and "." in parts.netloc
                )
            if not good:
                broken.append(f"{name}: {link}")
    assert broken == []
    assert seen > 1000


@pytest.mark.slow
def test_nothing_is_loaded_from_another_host(site: Path, built: dict[str, Page]):
    foreign = [
        (name, load)
        for name, page in built.items()
        for load in page.loads
        if urlsplit(load).netloc and urlsplit(load).scheme != "data"
    ]
    assert foreign == []
    for path in site.rglob("*.css"):
        text = path.read_text()
        assert "@import" not in text, path
        assert "url(http" not in text, path
        assert "url(//" not in text, path


@pytest.mark.slow
def test_a_public_name_has_its_place(built: dict[str, Page]):
    for name in PUBLIC:
        place = f"{keras_vgg._HOMES[name]}/#keras_vgg.{keras_vgg._HOMES[name]}.{name}"
        assert place in built["api/index.html"].links  # which lead somewhere, see above


@pytest.mark.slow
@pytest.mark.parametrize("room", ["data", "evaluation", "export", "fit", "runs", "tuning"])
def test_a_modules_names_have_their_places(built: dict[str, Page], room: str):
    module = __import__(f"keras_vgg.{room}", fromlist=["__all__"])
    anchors = built[f"api/{room}/index.html"].anchors
    for name in module.__all__:
        assert f"keras_vgg.{room}.{name}" in anchors


def options_of(command: type) -> list[str]:
    """The fields of a command that are options, those of what it holds among them."""
    hints, found = get_type_hints(command), []
    annotated = get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[field.name]):
            found += options_of(hints[field.name])
        elif not re.search("Positional|Suppress", str(annotated[field.name])):
            other = re.search(r"name='(\w+)'", str(annotated[field.name]))
            found.append(other[1] if other else field.name)
    return found


def places_of(command: str) -> set[str]:
    """The anchors of a command and of its options."""
    anchor = command.replace(" ", "-")
    options = options_of(cli.COMMANDS[command])
    return {anchor, *(f"{anchor}--{name.replace('_', '-')}" for name in options)}


@pytest.mark.slow
def test_a_command_and_its_options_have_their_places(built: dict[str, Page]):
    for command in cli.COMMANDS:
        assert places_of(command) <= built["cli/index.html"].anchors


@pytest.mark.slow
def test_every_field_of_a_recipe_is_in_the_table(built: dict[str, Page]):
    text = built["training/index.html"].text
    for field in dataclasses.fields(Recipe):
        assert f"{field.name}" in text
    assert "every field of a recipe -->" not in text
    assert text.count("default: ") >= len(dataclasses.fields(Recipe))


@pytest.mark.slow
def test_the_readme_and_the_log_are_on_the_site(built: dict[str, Page]):
    assert "drop-in for keras.applications.VGG19" in built["index.html"].text
    assert "oneDNN on processors without AVX-512" in built["results/index.html"].text
    assert "0.2.0" in built["changelog/index.html"].text
    recipes = sorted(path.stem for path in (ROOT / "training" / "recipes").glob("*.py"))
    assert set(recipes) <= built["recipes/index.html"].anchors


@pytest.mark.slow
def test_every_page_can_be_reached_from_the_first(built: dict[str, Page]):
    reached, new = set(), {"index.html"}
    while new:
        reached |= new
        links = [(name, link) for name in new for link in built[name].links if is_relative(link)]
        new = {followed(*link)[0] for link in links} & set(built) - reached
    assert set(built) - reached == {"404.html"}


# --- the pages that are made from the code -----------------------------------------------------


def test_every_public_name_is_in_the_index_and_its_module_has_a_page():
    made = hook("reference").api_pages()
    for name in PUBLIC:
        home = keras_vgg._HOMES[name]
        assert f"| [`{name}`][keras_vgg.{home}.{name}] | " in made["api/index.md"]
        assert f"::: keras_vgg.{home}\n" in made[f"api/{home}.md"]


def test_every_command_and_option_has_an_anchor():
    text = hook("reference").commands_page()
    anchors = {*Page(text).anchors, *re.findall(r"^## .* \{#(.+)\}$", text, re.MULTILINE)}
    for command in cli.COMMANDS:
        assert places_of(command) <= anchors


def test_every_field_of_a_recipe_has_a_row():
    rows = hook("reference").recipe_fields()
    fields = [field.name for field in dataclasses.fields(Recipe)]
    assert re.findall(r"^\| <code>(\w+)</code>", rows, re.MULTILINE) == fields
    assert rows.count("<small>default: ") == len(fields)
    assert "<!-- every field of a recipe -->" in (ROOT / "docs" / "training.md").read_text()


def test_every_recipe_has_an_anchor():
    text = hook("pages").recipes_page()
    for path in (ROOT / "training" / "recipes").glob("*.py"):
        assert f"{{#{path.stem}}}\n" in text


# --- the guides and their code -----------------------------------------------------------------


def test_no_guide_sends_its_reader_to_the_readme():
    linked = [path.name for path in DOCS if "](../README.md" in path.read_text()]
    assert linked == []


def test_code_is_no_wider_than_a_page_of_the_site():
    wide = [
        f"{path.name}: {line}"
        for path in DOCS
        for language in ("", "python", "text")
        for line in "\n".join(pages.blocks(path.read_text(), language)).splitlines()
        if len(line) > 80
    ]
    assert wide == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_commands_parse(path: Path):
    for command in pages.commands(path.read_text()):
        pages.parse(command)


def test_shares_of_memory_and_parameters():
    text = " ".join((ROOT / "docs" / "paper.md").read_text().split())
    rows = architecture.layers("D")
    totals = architecture.totals(rows)
    block = sum(row.activations for row in rows if row.name.startswith("block1"))
    (fc1,) = (row.parameters for row in rows if row.name == "fc1")
    assert f"block 1 has {100 * block / totals.activations:.0f} % of the memory" in text
    assert f"fc1 has {100 * fc1 / totals.parameters:.0f} % of the parameters" in text


def hook(name: str) -> ModuleType:
    """A module of docs/hooks, as mkdocs imports it."""
    sys.path.insert(0, str(ROOT / "docs" / "hooks"))
    try:
        return importlib.import_module(name)
    finally:
        del sys.path[0]
        sys.modules.pop(name, None)


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    rooms = hook("rooms")
    assert rooms.PICTURE.read_text() == rooms.picture(), "run python docs/hooks/rooms.py"


def test_no_line_of_the_picture_goes_up():
    rooms = hook("rooms")
    rows = rooms.floors()
    floor = {room: number for number, row in enumerate(rows) for room in row}
    graph = rooms.imports(set(floor))
    assert "architecture" in graph["recipe"]
    assert [(a, b) for a in graph for b in graph[a] if floor[a] >= floor[b]] == []
    lines = rooms.reduced(graph)
    assert "recipe" in graph["fit"] - lines["fit"]  # by way of hardware


def test_the_architecture_has_a_row_for_every_room():
    rows = (ROOT / "docs" / "architecture.md").read_text().split("| room |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows.splitlines()[1:]))
    assert sorted(named) == sorted(room for floor in hook("rooms").floors() for room in floor)


def test_links_between_files_of_the_repository_are_followed_on_the_site():
    links_on_site = hook("pages").links_on_site
    text = "[a](training/README.md#x) ![b](docs/b.png) [c](https://c.org) `[d](e.md)` [f](#f)"
    assert links_on_site(text, "README.md", "index.md") == (
        "[a](results.md#x) ![b](b.png) [c](https://c.org) `[d](e.md)` [f](#f)"
    )
    text = "[a](../training/recipes/digits.py)\n```\n[b](../README.md)\n```\n[c](../README.md)"
    assert links_on_site(text, "notebooks/one.ipynb", "notebooks/one.md") == (
        "[a](../recipes.md#digits)\n```\n[b](../README.md)\n```\n[c](../index.md)"
    )


def test_a_notebook_becomes_a_page():
    cells = [
        {"cell_type": "markdown", "source": ["# One\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}],
        },
        {
            "cell_type": "code",
            "source": ["plot()"],
            "outputs": [{"output_type": "display_data", "data": {"image/png": "QUJD\n"}}],
        },
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    page = hook("pages").notebook_page({"cells": cells})
    assert page.startswith("# One\nText.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n")
    assert page.count("```python") == 2
    assert hook("pages").title_of("```python\n# no\n```\n# yes\n", "") == "yes"
    assert 'src="data:image/png;base64,QUJD"' in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_in_a_browser(browser: Any, address: str, built: dict[str, Page], width: int, scheme: str):
    """On a phone and a desk: nothing is fetched elsewhere, nothing fails, no page is too wide."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    requested, errors = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    names = ["index.html", "cli/index.html", "api/models/index.html", "training/index.html"]
    for name in names:
        page.goto(address + name.removesuffix("index.html"), wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        seen = page.evaluate("document.body.dataset.mdColorScheme")
        assert seen == {"light": "default", "dark": "slate"}[scheme]
    page.goto(f"{address}?q=label_smoothing", wait_until="networkidle")
    page.wait_for_selector(".md-search-result__item", state="attached")
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []
    assert errors == []
    context.close()


# A training, or what needs one; a network at full size takes seconds and more than a gigabyte.
LONG = re.compile(
    r"onnx|VGG1[69]\(|\b(train|fit|finetune|cross_validate|evaluate_run|export|reconstruct|stylize)\("
)
PYTHON = [
    pytest.param(
        block,
        id=f"{path.stem}-{i}",
        marks=[pytest.mark.slow] * bool(LONG.search(block)),
    )
    for path in DOCS
    for i, block in enumerate(pages.blocks(path.read_text(), "python"), 1)
    if "localhost" not in block  # test_serving_clients.py runs a server's clients
]
EXAMPLES = [
    pytest.param(block, id=name)
    for name, block in pages.docstring_blocks(ROOT / "keras_vgg").items()
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_of_a_page(block: str, capsys: pytest.CaptureFixture, offline_folder: Path):
    pages.run(block, "docs")
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", EXAMPLES)
def test_example_in_a_docstring(block: str, offline_folder: Path):
    pages.run(block, "docstring")
