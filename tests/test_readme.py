"""The README is true: its commands parse, its Python runs, its figures are the library's."""

import re

import pytest

from keras_vgg import architecture
from tests import pages
from tests.pages import README, ROOT


def test_commands():
    commands = pages.commands(README)
    assert len(commands) >= 7
    for command in commands:
        pages.parse(command)


def runnable():
    """Clients of a server are run by test_serving_clients.py."""
    return [block for block in pages.blocks(README, "python") if "localhost" not in block]


@pytest.mark.parametrize(
    "block",
    [
        # Networks at full size take seconds, and more than a gigabyte.
        pytest.param(block, marks=[pytest.mark.slow] * bool(re.search(r"VGG1[69]\(", block)))
        for block in runnable()
    ],
    ids=range(1, len(runnable()) + 1),
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


# What is read where the repository is shown, without the site.
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page):
    code = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
    for link in code.sub("", page.read_text()).split("](")[1:]:
        target = link.split(")")[0].partition("#")[0]
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_shares_of_memory_and_parameters():
    rows = architecture.layers("D")
    found = architecture.totals(rows)
    block = sum(row.activations for row in rows if row.name.startswith("block1"))
    (fc1,) = (row.parameters for row in rows if row.name == "fc1")
    assert f"block 1 has {100 * block / found.activations:.0f} % of the memory" in README
    assert f"{100 * fc1 / found.parameters:.0f} % of the parameters" in README.replace("\n", " ")
