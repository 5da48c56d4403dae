"""Archives and HDF5 files that claim too much, lead elsewhere, crash or do not end."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from keras_vgg import containers, hdf5_check, run, weights
from keras_vgg.recipe import Recipe
from tests.test_weights import small

pytestmark = pytest.mark.usefixtures("hdf5_process")


def layer_file(path: Path, **dataset: object) -> Path:
    """A legacy file of one layer, whose kernel is made with h5py's arguments."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"fc1"]
        group = file.create_group("fc1")
        group.attrs["weight_names"] = [b"kernel"]
        group.create_dataset("kernel", **dataset)
    return path


def zeros_archive(path: Path, count: int) -> Path:
    """A compressed archive whose weights are zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(count):
                member.write(bytes(2**20))
        archive.writestr("config.json", "{}")
    return path


def run_of(folder: Path, model: Path) -> run.Run:
    """A finished run with this file as its model."""
    recipe = Recipe()
    (folder / "recipe.json").write_text(recipe.to_json())
    (folder / "results.json").write_text("{}")
    os.replace(model, folder / "model.keras")
    return run.Run(folder, recipe)


@pytest.mark.slow
def test_an_endless_file_is_named(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "LEAST_SECONDS", 1)
    path = data_folder / "damaged" / "endless.h5"
    with pytest.raises(ValueError, match=r"endless.h5 is damaged: HDF5 had not read it after 1 s"):
        weights.read_weights(path)
    with zipfile.ZipFile(tmp_path / "endless.keras", "w") as archive:
        archive.write(path, "model.weights.h5")
    with pytest.raises(ValueError, match=r"model.keras is damaged: HDF5 had not read it"):
        run_of(tmp_path, tmp_path / "endless.keras").model()


@pytest.mark.parametrize("layout", ["chunked", "compressed", "contiguous"])
def test_an_array_of_4_tb_is_refused(tmp_path: Path, layout: str) -> None:
    options = {
        "chunked": {"chunks": (2**16,)},
        "compressed": {"chunks": (2**16,), "compression": "gzip"},
        "contiguous": {},
    }
    path = layer_file(tmp_path / "large.h5", shape=(2**40,), dtype="f4", **options[layout])
    with pytest.raises(ValueError, match=r"large.h5 .* claim 4,398,\d{3},\d{3},\d{3} bytes"):
        weights.read_weights(path)


def test_many_arrays_count_together(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for number in range(9):  # 16 MiB each
            file.create_dataset(str(number), (2**22,), "f4", chunks=(2**16,))
    with pytest.raises(ValueError, match="claim 150,994,944 bytes"):
        containers.require_hdf5(tmp_path / "many.h5")


def test_an_archive_of_zeros_is_refused(tmp_path: Path) -> None:
    path = zeros_archive(tmp_path / "zeros.keras", 100)
    with pytest.raises(ValueError, match=r"zeros.keras .* arrays claim 104,857,602"):
        weights.read_weights(path)
    with pytest.raises(ValueError, match=r"model.keras .* arrays claim 104,857,602"):
        run_of(tmp_path, path).model()


def test_compressed_weights_are_read(tmp_path: Path) -> None:
    """The limits leave room for what is compressed for a reason."""
    model = small()
    model.save(tmp_path / "a.keras")
    with (
        zipfile.ZipFile(tmp_path / "a.keras") as source,
        zipfile.ZipFile(tmp_path / "b.keras", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    weights.load_weights(small(), tmp_path / "b.keras")
    layer_file(tmp_path / "c.h5", data=np.zeros((1000, 1000), ">f4"), compression="gzip")
    found = weights.read_weights(tmp_path / "c.h5").tensors["fc1"][0]
    assert (found.shape, found.dtype) == ((1000, 1000), np.dtype("=f4"))


@pytest.mark.slow
def test_links_and_arrays_in_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(400))
    other = layer_file(tmp_path / "other.h5", data=np.zeros(9, "f4"))
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file["fc1"] = h5py.ExternalLink(other, "/fc1")
    with h5py.File(tmp_path / "soft.h5", "w") as file:
        file["fc1"] = h5py.SoftLink("/nowhere")
    raw = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
    layer_file(tmp_path / "raw.h5", shape=(100,), dtype="f4", external=raw)
    with h5py.File(tmp_path / "repeated.h5", "w") as file:
        file["a"] = np.zeros(9, "f4")
        file["b"] = file["a"]
    with h5py.File(layer_file(tmp_path / "names.h5", data=np.zeros(9, "f4")), "a") as file:
        file["fc1"].attrs["weight_names"] = [b"kernel"] * 2
    with h5py.File(layer_file(tmp_path / "layers.h5", data=np.zeros(9, "f4")), "a") as file:
        file.attrs["layer_names"] = [b"fc1"] * 2
    layout = h5py.VirtualLayout((9,), "f4")
    layout[:] = h5py.VirtualSource(other, "fc1/kernel", (9,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    for name, reason in {
        "external.h5": "a link, fc1, that leads to another place",
        "soft.h5": "a link, fc1, that leads to another place",
        "raw.h5": "values of /fc1/kernel lie in other files",
        "virtual.h5": "values of /x lie in other files",
        "repeated.h5": "several links lead to /a",
        "names.h5": "the attribute weight_names of /fc1 has a name twice",
        "layers.h5": "the attribute layer_names of / has a name twice",
    }.items():
        with pytest.raises(ValueError, match=f"{name} .*{reason}"):
            weights.read_weights(tmp_path / name)


def test_a_crash_and_a_failure_of_the_check_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    monkeypatch.setattr(containers, "_PROGRAM", program)
    path = layer_file(tmp_path / "a.h5", data=np.zeros(9, "f4"))
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ValueError, match=r"a.h5 is damaged: HDF5 crashes when .* \(signal 11\)"):
        containers.require_hdf5(path)
    program.write_text("import no_such_module")
    with pytest.raises(OSError, match=r"a.h5 cannot be checked.*No module named 'no_such_module'"):
        containers.require_hdf5(path)


@pytest.mark.parametrize("end", ["sys.exit(4)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_too_little_memory_for_the_check_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    program = tmp_path / "program.py"
    monkeypatch.setattr(containers, "_PROGRAM", program)
    program.write_text(f"import os, signal, sys; {end}")
    path = layer_file(tmp_path / "a.h5", data=np.zeros(9, "f4"))
    with pytest.raises(MemoryError, match=r"memory is too small to check .*a.h5, which has"):
        containers.require_hdf5(path)


@pytest.mark.parametrize(("has_room", "status"), [(True, 3), (False, 4)])
def test_a_lack_of_memory_is_the_machines_or_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool, status: int, capfdbinary
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(hdf5_check, "_limit_itself", lambda *_: None)
    monkeypatch.setattr(hdf5_check, "require_sound", exhausted)
    path = layer_file(tmp_path / "a.h5", data=np.zeros(9, "f4"))
    most_bytes = 1000 if has_room else 2**62
    assert hdf5_check.main(str(path), "", most_bytes, 9) == status
    assert bool(capfdbinary.readouterr().out) == has_room


def test_an_archive_that_memory_does_not_hold_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    path = zeros_archive(tmp_path / "a.keras", 1)
    monkeypatch.setattr(containers.zipfile, "ZipFile", exhausted)
    with pytest.raises(MemoryError, match=r"memory is too small to read .*a.keras \(MemoryError\)"):
        containers.require_archive(path)


def test_a_file_is_checked_again_when_it_has_changed(tmp_path: Path) -> None:
    path = layer_file(tmp_path / "a.h5", data=np.zeros(9, "f4"))
    before = containers._check_hdf5.cache_info().misses
    containers.require_hdf5(path)
    containers.require_hdf5(path)
    assert containers._check_hdf5.cache_info().misses == before + 1
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a.h5 is damaged"):
        containers.require_hdf5(path)


def test_the_program_and_its_caller_agree() -> None:
    assert containers._FAULT == hdf5_check.FAULT
    assert containers._NO_MEMORY == hdf5_check.NO_MEMORY
    assert Path(hdf5_check.__file__) == containers._PROGRAM


def test_the_check_in_this_process(tmp_path: Path) -> None:
    """The same code, where a coverage report sees it."""
    path = layer_file(tmp_path / "a.h5", data=np.zeros(9, "f4"))
    with h5py.File(path) as file:
        hdf5_check.require_sound(file, 10_000)
        with pytest.raises(ValueError, match="its arrays claim"):
            hdf5_check.require_sound(file, 40)
    layer_file(tmp_path / "text.h5", data=["a", "b"], dtype=h5py.string_dtype())
    with (
        h5py.File(tmp_path / "text.h5") as file,
        pytest.raises(ValueError, match="/fc1/kernel holds text or lists instead of numbers"),
    ):
        hdf5_check.require_sound(file, 10_000)


def test_a_model_of_negative_variances_is_named() -> None:
    from keras_vgg.finite import require_finite_weights

    model = small(batch_norm=True)
    require_finite_weights(model)
    layer = model.get_layer("block1_conv1_bn")
    layer.moving_variance.assign(np.full(layer.moving_variance.shape, -1.0))
    with pytest.raises(ValueError, match="negative variances in block1_conv1_bn/moving_variance"):
        require_finite_weights(model)
