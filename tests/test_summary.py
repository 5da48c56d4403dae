"""A network in numbers: against the built network, the paper, and another program's count."""

import itertools
import json

import matplotlib.image
import pytest

from keras_vgg import architecture, cli, summary, vgg
from tests.test_cli import error_of

NAMES = list(architecture.CONFIGURATIONS)


def lines_of(table):
    return {row[0]: row[1:] for row in table[1]}


# The other heads: tests/test_models.py has them on B and D, too.
@pytest.mark.fast_cases(6)
@pytest.mark.parametrize(
    ("configuration", "head", "batch_norm"),
    [
        *itertools.product(NAMES, ["fc"], [False, True]),
        *itertools.product(["A-LRN", "C", "E"], ["conv"], [True]),
        *itertools.product(["A-LRN", "C", "E"], ["gap"], [False]),
    ],
)
def test_layers_are_those_of_the_built_network(configuration, head, batch_norm):
    options = {
        "input_shape": (64, 96, 3),
        "classes": 7,
        "width_multiplier": 1 / 16,
        "head": head,
        "hidden_units": 8,
        "batch_norm": batch_norm,
    }
    model = vgg(configuration, weights=None, **options)
    rows = architecture.layers(configuration, **options)
    for row in rows:
        layer = model.get_layer(row.name)
        assert layer.count_params() == row.parameters, row.name
        # The score map's average over places comes after the table's last row.
        assert tuple(layer.output.shape[1:]) == row.output_shape, row.name
        if row.kind == "conv":
            assert layer.kernel_size == row.kernel, row.name
    found = architecture.totals(rows)
    assert found.parameters == model.count_params()
    assert found.trainable_parameters == sum(w.numpy().size for w in model.trainable_weights)


def test_memory_is_what_torchinfo_counts():
    # torchinfo prints 108.45 MB forward/backward for VGG-16 at 224: outputs of layers that have
    # weights, twice, four bytes each.
    rows = [row for row in architecture.layers("D") if row.parameters]
    assert round(2 * 4 * architecture.totals(rows).activations / 1e6, 2) == 108.45


def test_table_of_d():
    rows = architecture.layers("D")
    headers, _ = table = summary.layer_table(rows, batch=10)
    assert len(headers) == 8
    lines = lines_of(table)
    # 224 x 224 x 64 values of 4 bytes, ten images.
    assert lines["block1_conv1"] == (
        *("3x3", "224x224x64", "1,792", "86,704,128", "128.45", "3", "1"),
    )
    assert lines["block5_pool"][-2:] == ("212", "32")
    assert lines["flatten"][4] == ""
    assert lines["fc1"] == ("", "4096", "102,764,544", "102,760,448", "0.16", "all", "")
    total = lines_of(summary.total_table(rows, batch=10))
    assert total["parameters"] == ("138,357,544",)
    assert total["multiply-accumulates, 10 images"] == ("154,702,643,200",)
    assert total["parameters as float32, MB"] == ("553.43",)
    assert total["parameters as bfloat16, MB"] == ("276.72",)
    assert total["parameters as int8, MB"] == ("138.36",)
    forward, both = (
        float(total[f"{name}, 10 images, MB"][0].replace(",", ""))
        for name in ("forward", "forward and backward")
    )
    assert forward == pytest.approx(4e-5 * architecture.totals(rows).activations, abs=0.01)
    assert both == pytest.approx(2 * forward, abs=0.02)


def test_comparison_is_the_papers_table():
    table = summary.comparison(NAMES)
    assert table[0] == ("", *NAMES)
    lines = lines_of(table)
    # Table 2 prints 133, 133, 133, 134, 138 and 144 million.
    millions = [round(int(cell.replace(",", "")) / 1e6) for cell in lines["parameters"]]
    assert millions == [133, 133, 133, 134, 138, 144]
    assert lines["weight layers"] == ("11", "11", "13", "16", "16", "19")
    a, a_lrn, b, c, d, e = lines["block 1"]
    assert (a, a_lrn, b) == ("conv3-64", "conv3-64\nLRN", "conv3-64\nconv3-64")
    assert b == c == d == e
    assert lines["block 4"][3] == "conv3-512\nconv3-512\nconv1-512"
    assert lines["block 5"][5] == "\n".join(["conv3-512"] * 4)
    assert lines["classifier"] == ("FC-4096\nFC-4096\nFC-1000",) * 6


def test_kernels():
    lines = lines_of(summary.kernel_table(channels=2))
    assert lines["7x7"] == ("7x7, 1 ReLU", "196 = 49C²", "3 of 3x3, 3 ReLU", "108 = 27C²", "81%")
    assert [row[-1] for row in lines.values()] == ["0%", "39%", "81%", "169%"]


def printed(capsys, *arguments):
    assert cli.main(["summary", *arguments]) == cli.OK
    return capsys.readouterr().out


def test_command_prints_a_table_whole(capsys):
    out = printed(capsys, "--compare", *NAMES, "--batch", "10")
    for name in NAMES:
        assert f"{architecture.parameters(name):,}" in out
    assert "…" not in out


def test_command_prints_markdown(capsys):
    out = printed(capsys, "C", "--format", "markdown", "--input", "64")
    head, rule, first, *_ = [line for line in out.splitlines() if line.startswith("|")]
    assert head.count("|") == rule.count("|") == first.count("|") == 9
    assert "conv3-64<br>conv3-64" in printed(capsys, "--compare", "B", "D", "--format", "markdown")


def test_command_prints_json(capsys):
    found = json.loads(printed(capsys, "D", "--format", "json", "--batch", "2"))
    assert found["totals"]["parameters"] == 138_357_544
    assert found["totals"]["parameter_bytes"]["int8"] == 138_357_544
    assert found["layers"][0]["output_bytes"] == 2 * 4 * 224 * 224 * 64
    both = json.loads(printed(capsys, "--compare", "A", "B", "--format", "json"))
    assert both["B"]["totals"]["parameters"] == 133_047_848
    for one, small in json.loads(printed(capsys, "--kernels", "--format", "json")):
        assert one["receptive_field"] == small["receptive_field"]
        assert (one["depth"], small["kernel"]) == (1, 3)
        assert one["weights"] >= small["weights"]


@pytest.mark.slow
def test_command_draws(capsys, tmp_path):
    path = tmp_path / "layers.png"
    assert str(path) in printed(capsys, "E", "--plot", str(path), "--batch-norm")
    assert matplotlib.image.imread(path).shape[1] == 9 * 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of: a configuration, --compare"),
        (["D", "--kernels"], "one of: a configuration, --compare"),
        (["D", "--batch", "0"], "--batch must be 1 or more, not 0"),
        (["--compare", "D"], "two or more different configurations, not 'D'"),
        (["--compare", "D", "--format", "json"], "two or more different configurations, not 'D'"),
        (["--compare", "D", "VGG16"], "two or more different configurations, not 'D VGG16'"),
        (["--compare", "D", "F"], "unknown VGG configuration 'F'"),
        (["--compare", "D", "E", "--plot", "x.png"], "--plot draws one configuration"),
        (["D", "--plot", "nowhere/x.png"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, "summary", *arguments)
    assert list(tmp_path.iterdir()) == []
