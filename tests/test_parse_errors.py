"""keras_vgg.cli.parse_errors: words that are wrong, as a user types them."""

import re

import pytest

from keras_vgg.cli import _parse

RUN = ["--workdir", "runs/x"]


@pytest.mark.parametrize(
    ("name", "words", "line"),
    [
        ("train", ["--epoch", "1"], "train has no option --epoch: did you mean --epochs or "),
        (
            "train",
            ["--optimiser", "sgd"],
            "train has no option --optimiser: did you mean --optimizer",
        ),
        ("train", ["--xyzzy"], "train has no option --xyzzy: see keras-vgg train --help"),
        ("train", ["--epochs", "five"], "--epochs takes a whole number, not 'five': see"),
        ("train", ["--crop-area", "0.1"], "--crop-area takes 2 numbers or None, not '0.1': see"),
        ("train", ["--restart-epochs", "a"], "--restart-epochs takes whole numbers, not 'a': see"),
        (
            "train",
            ["--train-scale", "256,512"],
            "--train-scale takes 2 whole numbers, auto or None, not '256,512': see",
        ),
        ("train", ["--epochs"], "--epochs needs a value: see keras-vgg train --help"),
        ("train", ["--head", "gapp"], "invalid choice 'gapp' for argument '--head'. Expected one"),
        ("prune", ["runs/y", "--macs", "half"], "--macs takes a number, not 'half': see"),
        (
            "export",
            ["--format", "saved_model", "litert", "onnx"],
            "--format takes a list with commas and no spaces: --format saved_model,litert,onnx",
        ),
        ("export", ["--format", "litert", "runs/b"], "export takes no argument 'runs/b' after the"),
        ("summary", ["D", "--format", "json", "E"], "summary takes no argument 'E' after the oth"),
        ("export", ["more"], "export takes no argument 'more' after the others: see"),
        ("summary", ["D", "--top", "five"], "summary has no option --top: "),
    ],
)
def test_wrong_words_are_one_short_line(name: str, words: list[str], line: str) -> None:
    needs_run = name in ("train", "prune")
    first = ["runs/z"] if name == "export" else []
    last = RUN if needs_run and words[-1] != "--epochs" else []
    with pytest.raises(ValueError, match=f"^{re.escape(line)}") as caught:
        _parse(name, [*first, *words, *last])
    assert len(str(caught.value)) < 140
