"""The commands as a user types them: what they print, and one clear line for bad input."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_vgg import cli, console, runs
from keras_vgg.cli.export import Export
from keras_vgg.fit import Run
from keras_vgg.image_paths import existing_paths


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    return Run.open(shutil.copytree(tiny_run.directory, tmp_path_factory.mktemp("cli") / "run"))


def keras_vgg(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "keras_vgg.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def error_of(capsys, *arguments):
    """The one line on stderr of a command that must fail with status 2."""
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert status == cli.BAD_INPUT
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("keras-vgg: error: ")
    return captured.err


def test_names_that_are_no_text_are_printed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["keras-vgg", "--version"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert cli.main() == 0
    console.show("caf\udce9")
    sys.stdout.seek(0)
    assert sys.stdout.read().splitlines()[-1] == "caf\\udce9"


@pytest.mark.parametrize(
    "arguments",
    [["summary", "D"], ["summary", "D", "--format", "json"], ["summary", "-h"], ["-h"], ["-V"]],
    ids=" ".join,
)
def test_a_closed_pipe_has_its_own_status(arguments, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(arguments) == cli.PIPE_CLOSED


def test_ctrl_c_names_the_commands_that_resume(capsys, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Summary, "__call__", interrupted)
    assert cli.main(["summary"]) == cli.INTERRUPTED
    assert "calibrate, report, prune, search, data pack, or stylize" in capsys.readouterr().err


def test_a_name_that_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~copy.jpg").write_bytes(b"")
    assert existing_paths(["~copy.jpg"]) == ["~copy.jpg"]
    with pytest.raises(FileNotFoundError, match=r"~no-user/a\.jpg: no such image file"):
        existing_paths(["~no-user/a.jpg"])
    assert existing_paths(["~"]) == [os.path.expanduser("~")]


def test_train_resumes_with_fields_from_the_command_line(tmp_path, capsys):
    recipe = tmp_path / "tiny.py"
    recipe.write_text(
        "from keras_vgg.recipe import Recipe\n"
        "RECIPE = Recipe(width_multiplier=1 / 16, hidden_units=8, test_fraction=0.8, "
        "batch_norm=False, epochs=9)\n"
    )
    arguments = ["train", str(recipe), "--workdir", str(tmp_path / "run"), "--epochs", "1"]
    arguments += ["--train-scale", "None", "--horizontal-flip", "True", "--quiet"]
    assert cli.main(arguments) == cli.OK
    assert "best epoch 1 of 1: validation accuracy" in capsys.readouterr().out
    found = Run.open(tmp_path / "run").recipe
    assert (found.epochs, found.hidden_units, found.train_scale) == (1, 8, None)
    assert found.horizontal_flip
    assert cli.main(arguments) == cli.OK
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_by_the_papers_protocols(run, tmp_path, capsys):
    arguments = ["evaluate", str(run.directory), "--split", "validation"]
    more = ["--protocol", "both", "--scales", "32,36", "--average", "posteriors"]
    assert cli.main([*arguments, *more]) == cli.OK
    out = capsys.readouterr().out
    assert "both, scales 32,36, averaged: posteriors" in out
    assert "confusion_validation_both_32_36_posteriors.png" in out
    found = run.results["validation_both_32_36_posteriors"]
    top1 = f"top-1 accuracy {found['top1']:.2%} ({found['top1_interval'][0]:.2%} to"
    assert top1 in " ".join(out.split())


@pytest.mark.slow
def test_evaluate_several_runs(run, tmp_path, capsys):
    other = shutil.copytree(run.directory, tmp_path / "other")
    arguments = ["evaluate", str(run.directory), str(other), "--split", "validation"]
    assert cli.main(arguments) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    (one,), (two,), (fused,) = (
        [line.split() for line in lines if line.strip().startswith(name) and ".00%" in line]
        for name in ("run ", "other ", "all, fused")
    )
    assert one[1] == two[1] == fused[2]  # the same run twice
    # Of 40 images, 0 that only one has right: up to 8.81 % by the exact interval.
    assert two[-4:] == ["(-8.81%", "to", "+8.81%)", "1"]
    assert cli.main([*arguments, "--tables"]) == cli.OK
    out = capsys.readouterr().out
    for number in (3, 4, 5, 6):
        assert f"Table {number}: " in out
    assert f"{run.directory.name} + other" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scales", "36,x"], "--scales must be whole numbers such as 256,384,512, not '36,x'"),
        (["--scales", "16"], "scale 16 is below 32"),
        (["--tables", "--scales", "36"], "--tables has the paper's protocols and scales"),
        (["--protocol", "sparse"], "invalid choice 'sparse'"),
    ],
)
def test_bad_input_to_evaluate(run, arguments, message, capsys):
    assert cli.main(["evaluate", str(run.directory), *arguments]) == cli.BAD_INPUT
    assert message in capsys.readouterr().err


def test_weights_lists_the_published_checkpoints_without_tensorflow():
    code = (
        "import sys\nfrom keras_vgg import cli\nassert cli.main(['weights']) == 0\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for word in ("VGG13, batch norm", "71.59", "CC BY 4.0", "timm/vgg19_bn.tv_in1k", "md5:64373"):
        assert word in done.stdout


def test_weights_of_a_run_and_its_conversion(run, tmp_path, capsys):
    assert cli.main(["weights", str(run.directory)]) == cli.OK
    out = capsys.readouterr().out
    assert "VGG11 (configuration A), width 0.0625, 10 classes" in out
    assert "input: RGB, minus" in out
    target = tmp_path / "run.safetensors"
    assert cli.main(["convert", str(run.directory), str(target)]) == cli.OK
    assert "run.safetensors: VGG11" in capsys.readouterr().out
    assert "exists; pass overwrite" in error_of(capsys, "convert", run.directory, target)
    assert "must end in one of" in error_of(capsys, "convert", run.directory, "a.txt")
    assert "no weight file at nowhere.h5" in error_of(capsys, "weights", "nowhere.h5")


def test_evaluate(run, capsys):
    assert cli.main(["evaluate", str(run.directory)]) == cli.OK
    out = capsys.readouterr().out
    for word in ("top-1 accuracy", "top-5 accuracy", "loss", "1,438", "confusion_test.png"):
        assert word in out
    assert run.results["test"]["count"] == 1438
    assert run.results["epochs"] == 1
    assert (run.directory / "confusion_test.png").stat().st_size > 1000
    confusion = np.loadtxt(run.directory / "confusion_test.csv", delimiter=",")
    assert confusion.sum() == 1438
    assert np.trace(confusion) / 1438 == pytest.approx(run.results["test"]["top1"])


def test_predict(run, tmp_path, capsys):
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((8, 12), 128, np.uint8)).save(path)
    assert cli.main(["predict", str(run.directory), str(path), "--top", "3"]) == cli.OK
    out = capsys.readouterr().out
    assert "grey.png" in out
    assert out.count("%") == 3
    assert "second class" in out


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        (["--format", "litert"], {"litert": "model.tflite"}),
        ([], {"saved_model": "saved_model", "litert": "model.tflite"}),
    ],
)
@pytest.mark.fast_cases(1)
def test_export(run, flags, files, tmp_path, capsys):
    arguments = ["export", run.directory, "--output", tmp_path / "e", "--images", "5", *flags]
    assert cli.main([*map(str, arguments)]) == cli.OK
    out = capsys.readouterr().out
    assert "verified on 5 validation images" in out
    assert {"the model, float32", *files} <= {line[2:22].strip() for line in out.splitlines()}
    assert out.count("100.00%") >= len(files)  # agreement
    assert {p.name for p in (tmp_path / "e").iterdir()} == {
        *files.values(),
        "class_names.txt",
        "export.json",
    }
    assert "exists" in error_of(capsys, *arguments)
    if "saved_model" in files:
        arguments = [*map(str, arguments[:6]), "--overwrite", "--format", "litert"]
        assert cli.main(arguments) == cli.OK
        assert not (tmp_path / "e" / "saved_model").exists()


@pytest.mark.slow
def test_export_compressed(run, tmp_path, capsys):
    arguments = ["export", run.directory, "--output", tmp_path / "e", "--compress"]
    arguments += ["--tolerance", "100", "--fine-tune-steps", "1", "--format", "litert"]
    assert cli.main([*map(str, arguments)]) == cli.OK
    out = capsys.readouterr().out
    assert str(tmp_path / "e" / "compression.png") in out.splitlines()
    assert (tmp_path / "e" / "compression.png").exists()
    error = error_of(capsys, "export", run.directory, "--fine-tune-steps", "1")
    assert "fine_tune_steps=1 needs compress" in error


@pytest.mark.parametrize(
    ("flags", "formats"), [([], ("saved_model", "litert")), (["--compress"], ("litert_int8",))]
)
def test_formats_that_are_not_named(run, flags, formats, monkeypatch):
    asked = {}
    monkeypatch.setattr("keras_vgg.runs.export_run", lambda run, out, **o: asked.update(o) or [])
    monkeypatch.setattr(cli.Export, "_show", lambda *_: None)
    assert cli.main(["export", str(run.directory), *flags]) == cli.OK
    assert asked["formats"] == formats


def test_summary(capsys):
    assert cli.main(["summary", "D"]) == cli.OK
    out = capsys.readouterr().out
    for word in ("VGG16", "block5_conv3", "138,357,544", "15,470,264,320", "102,764,544", "212"):
        assert word in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    out = capsys.readouterr().out
    assert (cli.COMMANDS[name].__doc__ or "").split()[0] in out
    assert len(out) > 300


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == cli.OK
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    assert cli.main(["--version"]) == cli.OK


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly'; the commands are train"),
        (["train"], "--workdir"),
        (["train", "--workdir", "x", "--sorce", "y"], "--sorce"),
        (["train", "--workdir", "x", "--epochs", "many"], "many"),
        (["train", "--workdir", "x", "--epochs", "0"], "epochs must be in"),
        (["train", "--workdir", "x", "--head", "mlp"], "mlp"),
        (["train", "--workdir", "x", "--image-size", "28"], "image_size must be in [32"),
        (["train", "nowhere.py", "--workdir", "x"], "no recipe at nowhere.py"),
        (["train", "--workdir", "x", "--source", "folder:nowhere"], "nowhere"),
        (["train", "--workdir", "x", "--source", "no_such_set"], "no_such_set"),
        (["train", "--workdir", "/proc/x"], "cannot be written"),
        (["evaluate", "nowhere"], "nowhere is not a run directory"),
        (["evaluate"], "RUN|PATH|run"),
        (["predict", "nowhere", "a.png"], "nowhere is not a run directory"),
        (["predict"], "PATH"),
        (["export", "nowhere"], "nowhere is not a run directory"),
        (["export", "."], ". is not a run directory"),
        (["export", "hf://a/b"], "hf://a/b is not a run directory; name images to verify on with"),
        (["summary", "F"], "unknown VGG configuration 'F'"),
        (["summary", "D", "--input-size", "28"], "at least 32x32"),
        (["summary", "D", "--classes", "-5"], "classes must be a positive whole number"),
        (["summary", "D", "--width-multiplier", "0"], "width_multiplier must be positive"),
        (["train", "--workdir", "x", "recipe.py"], "the recipe comes first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = error_of(capsys, *arguments)
    assert any(part in found for part in message.split("|"))
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_an_export(run, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "export_run", lambda _, output, **__: asked.append(output))
    monkeypatch.setattr(
        runs, "export_weights", lambda *places: asked.append((places[0], places[2]))
    )
    for path, opened in ((run.directory, run), (run.model_path, run), ("hf://a/b", None)):
        Export(Path(path), source="digits")._artifacts(opened, {})
    Export(Path("f/a.h5"), source="digits")._artifacts(None, {})
    Export(Path("hf://a/b"), source="digits", output=Path("x"))._artifacts(None, {})
    assert asked == [
        None,  # export/ in the run directory
        run.directory / "model.keras.export",
        ("hf://a/b", Path("b.export")),
        ("f/a.h5", Path("f/a.h5.export")),
        ("hf://a/b", Path("x")),
    ]


def test_bad_input_to_a_run(run, tmp_path, capsys):
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    assert "notes.txt" in error_of(capsys, "predict", run.directory, text)
    assert "nowhere.png" in error_of(capsys, "predict", run.directory, "nowhere.png")
    assert "at least one image" in error_of(capsys, "predict", run.directory)
    assert "'tf1'" in error_of(capsys, "export", run.directory, "--format", "litert,tf1")
    assert "verify on with --source" in error_of(capsys, "export", run.model_path)
    assert "tolerance" in error_of(capsys, "export", run.directory, "--tolerance", "-1")
    assert "at least 1 image" in error_of(capsys, "export", run.directory, "--images", "0")
    assert not (run.directory / "export").exists()
    other = error_of(capsys, "train", "--workdir", run.directory)
    assert "another recipe" in other


@pytest.mark.slow
def test_damaged_images_are_named_and_counted(tmp_path, capsys):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng([label, i]).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.jpg")
    bad = tmp_path / "set" / "dog" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    (tmp_path / "set" / "dog").rename(tmp_path / "set" / "[dog]")  # not rich's markup
    bad = tmp_path / "set" / "[dog]" / "3.jpg"
    arguments = ["train", "--workdir", tmp_path / "run", "--source", f"folder:{tmp_path / 'set'}"]
    arguments += ["--epochs", "1", "--width-multiplier", "0.0625", "--hidden-units", "8"]
    arguments += ["--batch-size", "4", "--validation-fraction", "0.2", "--quiet"]
    assert cli.main([str(a) for a in arguments]) == cli.BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out.startswith("defaults for photographs: ")
    assert printed.err.count("\n") == 1
    assert "1 of" in printed.err
    assert str(bad) in printed.err
    assert not (tmp_path / "run").exists()
    assert cli.main([*map(str, arguments), "--on-bad-image", "skip"]) == cli.OK
    assert str(bad) in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "run")]) == cli.OK
    assert "[dog]" in capsys.readouterr().out


@pytest.mark.slow
def test_a_process_says_one_line_and_its_status(tmp_path):
    done = keras_vgg("train", "--workdir", tmp_path / "x", "--source", "folder:nowhere")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "nowhere" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_shown_if_asked():
    with pytest.raises(FileNotFoundError, match="nowhere is not a run directory"):
        cli.main(["evaluate", "nowhere", "--debug"])


@pytest.mark.slow
def test_a_process_shows_the_traceback_if_asked():
    assert "Traceback" in keras_vgg("evaluate", "nowhere", "--debug").stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from keras_vgg import cli; cli.main(['--help']); "
        "print(sorted({'tensorflow', 'keras', 'jax', 'sklearn', 'matplotlib', 'numpy'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
