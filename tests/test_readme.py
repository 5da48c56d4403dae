"""The README is true: its commands parse, its Python runs, its figures are the library's."""

import re
import shutil

import pytest

from keras_vgg import architecture, cli
from tests import pages
from tests.pages import README, ROOT


def test_commands():
    commands = pages.commands(README)
    assert len(commands) >= 7
    for command in commands:
        pages.parse(command)


def test_it_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.slow
def test_the_commands_run(tiny_run, monkeypatch, tmp_path, capsys):
    """The commands in order, after the block that writes digit.png; train is the shared run's."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.directory, "runs/digits")
    guide = (ROOT / "docs" / "getting_started.md").read_text()
    (block,) = [block for block in pages.blocks(guide, "python") if "digit.png" in block]
    pages.run(block, "getting_started.md")
    # The others need photographs and ImageNet's weights.
    others = ("train", "finetune", "compare", "search", "stylize")
    commands = [command for command in pages.commands(README) if command.split()[1] not in others]
    assert len(commands) >= 6
    for command in commands:
        assert cli.main(command.split()[1:]) == cli.OK, capsys.readouterr().err


BLOCKS = pages.blocks(README, "python")


@pytest.mark.parametrize(
    "block",
    [
        # Networks at full size take seconds, and more than a gigabyte.
        pytest.param(block, marks=[pytest.mark.slow] * bool(re.search(r"VGG1[69]\(", block)))
        for block in BLOCKS
    ],
    ids=range(1, len(BLOCKS) + 1),
)
def test_python(block, capsys, offline_folder):
    pages.run(block, "README.md")
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "configuration", architecture.CONFIGURATIONS.values(), ids=lambda c: c.name
)
def test_table_of_configurations(configuration):
    row = next(line for line in README.splitlines() if f"`{configuration.builder}`" in line)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:5] == [
        configuration.name,
        f"`{configuration.builder}`",
        str(configuration.weight_layers),
        f"{architecture.parameters(configuration.name):,}",
        f"{architecture.macs(configuration.name) / 1e9:.2f}",
    ]


def test_the_map_names_what_exists():
    rows = README.split("## Map of the repository")[1].split("\n## ")[0].splitlines()
    places = [
        place for row in rows if "|" in row for place in re.findall(r"`(.+?)`", row.split("|")[1])
    ]
    assert len(places) > 15
    assert [
        p for p in places if not ((ROOT / p).exists() or (ROOT / "keras_vgg" / p).exists())
    ] == []


# What is read where the repository is shown, without the site.
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page):
    code = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
    for link in code.sub("", page.read_text()).split("](")[1:]:
        target = link.split(")")[0].partition("#")[0]
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
