"""The README is true: its commands parse, its Python runs, its figures are the library's."""

from pathlib import Path

import pytest

from keras_vgg import architecture, cli
from keras_vgg.weights import download

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    parts = README.split("```")[1::2]
    return [part[len(language) :] for part in parts if part.startswith(f"{language}\n")]


def test_commands():
    commands = [
        line.split("#")[0].split()
        for block in blocks("")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("keras-vgg ")
    ]
    assert len(commands) >= 7
    for _, *words in commands:
        command, arguments = cli._name_of(words)
        recipe = arguments[0] if arguments and arguments[0].endswith(".py") else None
        if recipe:
            arguments[0] = str(ROOT / recipe)
        cli._parse(command, arguments)


def runnable():
    """Clients of a server are run by test_serving_clients.py."""
    return [block for block in blocks("python") if "localhost" not in block]


@pytest.mark.parametrize("block", runnable(), ids=range(1, len(runnable()) + 1))
def test_python(block, capsys, monkeypatch, tmp_path):
    def offline(checkpoint):
        raise ConnectionError(f"no network in a test: {checkpoint.file}")

    monkeypatch.setattr(download, "fetch", offline)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
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


def test_linked_files_exist():
    for link in README.split("](")[1:]:
        target = link.split(")")[0]
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_shares_of_memory_and_parameters():
    rows = architecture.layers("D")
    found = architecture.totals(rows)
    block = sum(row.activations for row in rows if row.name.startswith("block1"))
    (fc1,) = (row.parameters for row in rows if row.name == "fc1")
    assert f"block 1 has {100 * block / found.activations:.0f} % of the memory" in README
    assert f"{100 * fc1 / found.parameters:.0f} % of the parameters" in README.replace("\n", " ")
