"""Callbacks that send an epoch's figures to experiment trackers, as docs/training.md names them."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("KERAS_VGG_PACKAGES", ROOT / ".packages"))

# The packages of FOLDER come after the environment's, so that these stay as they are.
SCRIPT = """
import sys
sys.path.append(sys.argv[1])
from keras_vgg import Recipe, train
import mlflow

mlflow.set_tracking_uri(sys.argv[2])
tiny = {"width_multiplier": 1 / 16, "hidden_units": 8, "batch_size": 32, "epochs": 2}
tiny |= {"validation_fraction": 0.1, "test_fraction": 0.8}
with mlflow.start_run() as started:
    train(Recipe(**tiny), sys.argv[3], verbose=0, callbacks=[mlflow.keras.MlflowCallback()])
client = mlflow.MlflowClient()
for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
    for metric in client.get_metric_history(started.info.run_id, name):
        print("METRIC", name, metric.step, repr(metric.value))
"""


FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy")


def figures_of(script, arguments, folder, variables):
    """Run a script; return what it says was sent, {(name, step): value}, and metrics.csv's rows."""
    done = subprocess.run(
        [sys.executable, "-c", script, FOLDER, *arguments],
        cwd=folder,  # trackers put files there
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("METRIC")]
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    return {(name, int(step)): float(value) for _, name, step, value in lines}, rows


OFFLINE = """
import sys
sys.path.append(sys.argv[1])
from keras_vgg import Recipe, train
import wandb
from wandb.integration.keras import WandbMetricsLogger

tiny = {"width_multiplier": 1 / 16, "hidden_units": 8, "batch_size": 32, "epochs": 2}
tiny |= {"validation_fraction": 0.1, "test_fraction": 0.8}
with wandb.init() as run:
    train(Recipe(**tiny), sys.argv[2], verbose=0, callbacks=[WandbMetricsLogger()])
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        print("METRIC", name, run.summary["epoch/epoch"], repr(run.summary["epoch/" + name]))
"""


@pytest.mark.slow
def test_weights_and_biases_gets_the_last_epoch_offline(tmp_path):
    """A run's summary has the last figures that were logged."""
    if importlib.util.find_spec("wandb") is None and not (FOLDER / "wandb").is_dir():
        pytest.skip(f"wandb is not installed, nor at {FOLDER} (KERAS_VGG_PACKAGES)")
    sent, rows = figures_of(OFFLINE, [tmp_path / "run"], tmp_path, {"WANDB_MODE": "offline"})
    assert sent == {(name, 1): float(rows[-1][name]) for name in FIGURES}


@pytest.mark.slow
@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_mlflow_gets_every_epoch(tmp_path, store):
    """A folder of plain files or a database keeps the figures: no server, no network."""
    if importlib.util.find_spec("mlflow") is None and not (FOLDER / "mlflow").is_dir():
        pytest.skip(f"mlflow is not installed, nor at {FOLDER} (KERAS_VGG_PACKAGES)")
    variables = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    address = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    if store == "files":
        address = (tmp_path / "store").as_uri()
        variables["MLFLOW_ALLOW_FILE_STORE"] = "true"
    sent, rows = figures_of(SCRIPT, [address, tmp_path / "run"], tmp_path, variables)
    # The first epoch is step 0.
    assert sent == {(n, int(row["epoch"]) - 1): float(row[n]) for row in rows for n in FIGURES}
