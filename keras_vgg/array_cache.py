"""The arrays of a long computation, saved in parts, so an interrupted computation can resume."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg.files import read_arrays, write_atomically


class ArrayCache:
    """Arrays with the same first axis, items 0 to `done`, in one .npz file for each `add`.

    Args:
        folder: The folder of the files. A missing folder is made; a folder that holds another
            computation is emptied.
        key: Everything that decides the numbers, in types of JSON.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._folder = folder
        path = folder / "key.json"
        # Compare the JSON, in which tuples are lists.
        text = json.dumps(key, indent=2, sort_keys=True) + "\n"
        if path.is_file() and path.read_text() != text:
            shutil.rmtree(folder)
        if not path.is_file():
            # Another process may begin the same computation now.
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob("*.npz"):
                stale.unlink(missing_ok=True)
            write_atomically(path, lambda target: target.write_text(text))
        self._paths: list[Path] = []
        self.done = 0
        while (path := self._next()) is not None:
            self._paths.append(path)
            self.done = int(path.stem.split("-")[1])

    def _next(self) -> Path | None:
        """Return the file that begins at item `done`; None: there is no readable one."""
        for path in self._folder.glob(f"{self.done:09d}-*.npz"):
            with path.open("rb") as opened:  # an error here is no damage
                try:
                    with np.load(opened, allow_pickle=False) as file:
                        names = file.files
                except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile):
                    names = None
            if names:
                return path
            if names is None:  # cut off
                path.unlink()
        return None

    def add(self, **arrays: np.ndarray) -> None:
        """Save the arrays of the next items, all or none."""
        count = len(next(iter(arrays.values())))
        path = self._folder / f"{self.done:09d}-{self.done + count:09d}.npz"

        def save(target: Path) -> None:
            with target.open("wb") as file:
                # The stub takes any name for `allow_pickle`.
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

        write_atomically(path, save)
        self._paths.append(path)
        self.done += count

    def load(self) -> dict[str, np.ndarray]:
        """Return the saved arrays, joined along the first axis.

        Raises:
            ValueError: nothing is saved.
            OSError: a file is damaged.
        """
        if not self._paths:
            raise ValueError(f"{self._folder} holds nothing yet")
        parts: dict[str, list[np.ndarray]] = {}
        for path in self._paths:
            try:
                arrays = read_arrays(path)
            except ValueError as error:
                raise OSError(
                    f"{path} is damaged, delete it to compute it again: {error.__cause__}"
                ) from error
            for name, array in arrays.items():
                parts.setdefault(name, []).append(array)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
