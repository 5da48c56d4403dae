"""keras-vgg: one library call per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from keras_vgg import __version__
from keras_vgg.architecture import MINIMUM_SIZE
from keras_vgg.cli.arguments import require_recipe
from keras_vgg.cli.calibrate import Calibrate
from keras_vgg.cli.compare import Compare
from keras_vgg.cli.convert import Convert
from keras_vgg.cli.data import DataCheck, DataPack, DataShow, DataStats
from keras_vgg.cli.demo import Demo
from keras_vgg.cli.evaluate import Evaluate
from keras_vgg.cli.explain import Explain
from keras_vgg.cli.export import Export
from keras_vgg.cli.finetune import Finetune
from keras_vgg.cli.parse_errors import did_you_mean, plain_line
from keras_vgg.cli.predict import Predict
from keras_vgg.cli.prune import Prune
from keras_vgg.cli.push import Push
from keras_vgg.cli.report import Report
from keras_vgg.cli.search import Search
from keras_vgg.cli.stylize import Stylize
from keras_vgg.cli.summary import Summary
from keras_vgg.cli.train import Train
from keras_vgg.cli.tune import Tune
from keras_vgg.cli.weights import Weights
from keras_vgg.console import notes_once
from keras_vgg.image_paths import unless_literal
from keras_vgg.recipe import Recipe, load_recipe

# The optional packages, by the extra that installs them: pip install 'keras-vgg[EXTRA]'.
_EXTRAS = {
    "tune": ("keras_tuner",),
    "jax": ("jax", "jaxlib"),
    "torch": ("torch",),
    "onnx": ("onnx", "onnxruntime", "tf2onnx"),
    "demo": ("gradio",),
}

_python_shows_warning = warnings.showwarning

OK, DIVERGED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

COMMANDS = {
    "train": Train,
    "finetune": Finetune,
    "evaluate": Evaluate,
    "predict": Predict,
    "search": Search,
    "stylize": Stylize,
    "compare": Compare,
    "calibrate": Calibrate,
    "explain": Explain,
    "export": Export,
    "prune": Prune,
    "report": Report,
    "push": Push,
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
    """Run one command and return the exit status.

    The status is 0 for success, 1 if the loss diverged, 2 for bad input, 3 if predict, search or
    compare could not read some files, 130 after Ctrl-C, and 141 if the reader of the output closed
    the pipe. SIGTERM ends a training with 143.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        if argv is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                # A file's name may have bytes that are no text, as on stderr.
                sys.stdout.reconfigure(errors="backslashreplace")
            return _run(sys.argv[1:], owns_stderr=True)
        return _run(list(argv))


def _backend(command: object) -> str | None:
    """Return the backend of Keras that a command asks for.

    TensorFlow writes files, and computes the gradients of `prune`.
    """
    if isinstance(command, Train):
        return command.backend
    asked = os.environ.get("KERAS_BACKEND", "tensorflow")
    needs_tensorflow = (
        isinstance(command, Export)
        or (isinstance(command, Stylize) and command.is_litert)
        or (isinstance(command, Prune) and command.criterion == "taylor")
    )
    return "tensorflow" if needs_tensorflow and asked != "tensorflow" else None


def _run(arguments: list[str], *, owns_stderr: bool = False) -> int:
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = _status_of(arguments, owns_stderr)
        _flush()  # A closed pipe must raise here, not when Python exits.
        return status
    except KeyboardInterrupt:
        print(
            "keras-vgg: interrupted; repeat the command to resume it, if it is train, finetune, "
            "tune, evaluate, calibrate, report, prune, search, data pack, or stylize PHOTO STYLE",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        # A reader such as head has closed the pipe. Python would report that as it exits, when it
        # flushes stdout.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        return PIPE_CLOSED
    except ImportError as error:
        own_fault = (error.name or "").partition(".")[0] == "keras_vgg"
        if debug or own_fault:
            raise
        print(f"keras-vgg: error: {_missing_package(error)}", file=sys.stderr)
        return BAD_INPUT
    except (ValueError, OSError, NotImplementedError, ArithmeticError, MemoryError) as error:
        if debug:
            raise
        print(f"keras-vgg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return DIVERGED if isinstance(error, ArithmeticError) else BAD_INPUT


def _flush() -> None:
    if sys.stdout is not None:  # as with >&-
        sys.stdout.flush()


def _status_of(arguments: list[str], owns_stderr: bool) -> int:
    """Run one command, or print the version or the help, and return the exit status."""
    if arguments in (["--version"], ["-V"]):
        print(f"keras-vgg {__version__}")
        return OK
    name, options = _split_name(arguments)
    if name is None:
        return _help(arguments)
    command = _with_home(_parse(name, options))
    if hasattr(command, "check"):
        command.check()  # before TensorFlow is imported, which takes seconds
    if isinstance(command, Summary) or command == Weights():  # tables only
        return command() or OK
    from keras_vgg import hardware

    hardware.prepare_environment(_backend(command))
    dropped = hardware.without_messages_about_images
    with notes_once(), dropped() if owns_stderr else contextlib.nullcontext():
        return command() or OK


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **options: Any
) -> None:
    """Show a warning of this package on one line, and any other as Python does."""
    if category.__module__.partition(".")[0] == "keras_vgg":
        print(f"keras-vgg: {message}", file=sys.stderr)
    else:
        _python_shows_warning(message, category, *place, **options)


def _missing_package(error: ImportError) -> str:
    """Return which package cannot be imported, and how to install it, on one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return text if "pip install" in text else f"a package cannot be imported: {text}"
    package = error.name.partition(".")[0]
    backend = os.environ.get("KERAS_BACKEND")
    reason = f", which KERAS_BACKEND={backend} needs," if package == backend else ""
    extras = [extra for extra, packages in _EXTRAS.items() if package in packages]
    if package == backend and not extras:
        advice = "set KERAS_BACKEND=tensorflow"
    else:
        advice = f"pip install 'keras-vgg[{extras[0]}]'" if extras else "pip install keras-vgg"
    return f"the package {package}{reason} is not installed: {advice}"


def _split_name(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return a command's name, of one word or two, and its options; None: no such command."""
    for words in (1, 2):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, list(arguments[words:])
    return None, list(arguments)


def _help(arguments: Sequence[str]) -> int:
    """Print the commands, or those of a group such as data. ValueError: an unknown command."""
    group = [name for name in COMMANDS if arguments and name.startswith(f"{arguments[0]} ")]
    words = arguments[1:] if group else arguments
    if words and words[0] not in ("-h", "--help", "help"):
        unknown = " ".join(arguments[:2] if group else arguments[:1])
        known = list(group or COMMANDS)
        meant = did_you_mean(unknown.split()[-1], {name.split()[-1]: name for name in known})
        advice = meant or f"the commands are {', '.join(known)}"
        raise ValueError(f"unknown command {unknown!r}; {advice}")
    print("usage: keras-vgg COMMAND [-h] ...\n\nTrain, test and export the VGG networks.\n")
    for name in group or COMMANDS:
        print(f"  {name:10} {(COMMANDS[name].__doc__ or '').splitlines()[0]}")
    print("\n  --version  print the version\n  --debug    show the traceback of an error")
    print("\nkeras-vgg COMMAND --help explains a command.")
    return OK


def _parse(name: str, arguments: list[str]):
    """Return a command with its options. ValueError: tyro's message as one line."""
    tyro_options = {}
    if name == "train":
        # The recipe's field, whose name says that there may be several.
        arguments = [re.sub("^--teacher(?==|$)", "--teachers", word) for word in arguments]
        recipe_first = bool(arguments) and not arguments[0].startswith("-")
        late = [argument for argument in arguments[1:] if argument.endswith(".py")]
        if late and not recipe_first:
            raise ValueError(f"the recipe comes first: keras-vgg train {late[0]} --workdir ...")
        if recipe_first:
            require_recipe(arguments[0])
        recipe = load_recipe(arguments.pop(0)) if recipe_first else Recipe()
        tyro_options["default"] = Train(workdir=tyro.MISSING, recipe=recipe)
        if not recipe_first:
            command = _parse_with_tyro(name, arguments, tyro_options)
            return dataclasses.replace(command, defaults=_fields_without_option(arguments))
    return _parse_with_tyro(name, arguments, tyro_options)


def _with_home(command: Any) -> Any:
    """Return a command with ~ replaced in its paths; a shell leaves the ~ of --out=~/x as it is."""
    fields = {field.name: getattr(command, field.name) for field in dataclasses.fields(command)}
    paths = {k: unless_literal(v) for k, v in fields.items() if isinstance(v, Path)}
    return dataclasses.replace(command, **paths)


def _fields_without_option(arguments: list[str]) -> tuple[str, ...]:
    """Return the fields of the recipe that a source may decide, as no option of train does.

    With another default, such a field has another value after parsing.
    """
    others = {"image_size": 2 * MINIMUM_SIZE, "horizontal_flip": True}
    recipes = [
        _parse_with_tyro(
            "train", arguments, {"default": Train(workdir=tyro.MISSING, recipe=recipe)}
        ).recipe
        for recipe in (Recipe(), Recipe(**others))
    ]
    first, second = (dataclasses.asdict(recipe) for recipe in recipes)
    return tuple(name for name in others if first[name] != second[name])


def _parse_with_tyro(name: str, arguments: list[str], tyro_options: dict[str, Any]):
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                COMMANDS[name], prog=f"keras-vgg {name}", args=arguments, **tyro_options
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            _flush()  # as in `_run`
            raise
        raise ValueError(plain_line(name, arguments, _text_in_box(stderr.getvalue()))) from None


def _text_in_box(box: str) -> str:
    """Return the message of tyro's error as one line.

    tyro prints an error in a box and exits. No public function gives the message alone: the hook
    for parse errors is in the private tyro._errors, and console_outputs=False drops the message.
    """
    _title, *lines = (line.strip("╭╮╰╯│─ ") for line in box.splitlines())
    text = " ".join(line for line in lines if line.strip("-"))  # rules of a terminal in ASCII
    return text.split(" For full helptext")[0].replace(" Argument helptext:", ";")
