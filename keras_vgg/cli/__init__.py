"""keras-vgg: one library call per subcommand. Imports nothing heavy before a command runs."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import tyro

from keras_vgg import __version__
from keras_vgg.cli.convert import Convert
from keras_vgg.cli.data import DataCheck, DataPack, DataShow, DataStats
from keras_vgg.cli.demo import Demo
from keras_vgg.cli.evaluate import Evaluate
from keras_vgg.cli.explain import Explain
from keras_vgg.cli.export import Export
from keras_vgg.cli.predict import Predict
from keras_vgg.cli.report import Report
from keras_vgg.cli.summary import Summary
from keras_vgg.cli.train import Train
from keras_vgg.cli.tune import Tune
from keras_vgg.cli.weights import Weights
from keras_vgg.recipe import Recipe, load_recipe

OK, DIVERGED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "explain": Explain,
    "export": Export,
    "report": Report,
    "demo": Demo,
    "tune": Tune,
    "summary": Summary,
    "weights": Weights,
    "convert": Convert,
    "data check": DataCheck,
    "data stats": DataStats,
    "data pack": DataPack,
    "data show": DataShow,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0; 1: the loss diverged; 2: bad input; 130: Ctrl-C; 141: what it printed was not read to the
    end. SIGTERM ends a training with 143.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if arguments in (["--version"], ["-V"]):
        print(f"keras-vgg {__version__}")
        return OK
    try:
        name, rest = _name_of(arguments)
        if name is not None:
            command = _parse(name, rest)
            tables_only = isinstance(command, Summary) or command == Weights()
            if not tables_only:
                from keras_vgg import hardware

                backend = command.backend if isinstance(command, Train) else None
                hardware.prepare_environment(backend)
            command()
            return OK
        return _help(arguments)
    except KeyboardInterrupt:
        print(
            "keras-vgg: interrupted; repeat a train, tune or evaluate to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of what is printed, head or less, has seen enough: Python must not say so, too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return PIPE_CLOSED
    except (ValueError, OSError, NotImplementedError, ArithmeticError, MemoryError) as error:
        if debug:
            raise
        print(f"keras-vgg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return DIVERGED if isinstance(error, ArithmeticError) else BAD_INPUT


def _name_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(command, the rest) of a command line; a command is one word, or data and another."""
    for words in (1, 2):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, list(arguments[words:])
    return None, list(arguments)


def _help(arguments: Sequence[str]) -> int:
    group = [name for name in COMMANDS if arguments and name.startswith(f"{arguments[0]} ")]
    rest = arguments[1:] if group else arguments
    if rest and rest[0] not in ("-h", "--help"):
        known = ", ".join(group or COMMANDS)
        wrong = " ".join(arguments[:2] if group else arguments[:1])
        raise ValueError(f"unknown command {wrong!r}; the commands are {known}")
    print("usage: keras-vgg COMMAND [-h] ...\n\nTrain, test and export the VGG networks.\n")
    for name in group or COMMANDS:
        print(f"  {name:10} {(COMMANDS[name].__doc__ or '').splitlines()[0]}")
    print("\n  --version  print the version\n  --debug    show the traceback of an error")
    print("\nkeras-vgg COMMAND --help explains a command.")
    return OK


def _parse(name: str, arguments: list[str]):
    options = {}
    if name == "train":
        given = bool(arguments) and not arguments[0].startswith("-")
        late = [a for a in arguments[1:] if a.endswith(".py")]
        if late and not given:
            raise ValueError(f"the recipe comes first: keras-vgg train {late[0]} --workdir ...")
        recipe = load_recipe(arguments.pop(0)) if given else Recipe()
        options["default"] = Train(workdir=tyro.MISSING, recipe=recipe)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(COMMANDS[name], prog=f"keras-vgg {name}", args=arguments, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # tyro draws a box; the house's errors are one line.
        lines = [line.strip("╭╮╰╯│─ \n") for line in said.getvalue().splitlines()]
        text = " ".join(line for line in lines[1:] if line.strip("-"))
        raise ValueError(text.split(" For full helptext")[0]) from None
