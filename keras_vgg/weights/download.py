"""Download published checkpoints, and repositories of the hub; verify them at every use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import urllib.error
import warnings
from pathlib import Path

import huggingface_hub
import keras
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from keras_vgg.files import keras_home
from keras_vgg.weights.published import Checkpoint


def fetch(checkpoint: Checkpoint) -> Path:
    """Return the local file of a published checkpoint; download the file if it is not in the cache.

    Keras' files are in the cache of keras.applications (KERAS_HOME), and the hub's files in that of
    huggingface_hub (HF_HOME, HF_HUB_CACHE; HF_ENDPOINT and HF_HUB_OFFLINE apply too). A cached file
    needs no request. Its hash is verified at every use, which takes a second or two for 550 MB,
    because a record of an earlier check can be out of date. A cached file with another hash is
    downloaded again, with a warning.

    Raises:
        ValueError: the download has another hash; it is not kept.
        OSError: the file cannot be downloaded or stored. The error says what to do by hand.
    """
    return _from_hub(checkpoint) if checkpoint.on_hub else _from_keras(checkpoint)


def _from_keras(checkpoint: Checkpoint) -> Path:
    name = f"models/{checkpoint.file}"
    path = keras_home(name) / name
    if path.is_file():
        fault = _fault(path, checkpoint.hash)
        if fault is None:
            return path
        warnings.warn(f"{fault}: it is downloaded again", stacklevel=3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # get_file writes under the final name from the first byte, and leaves a file with a wrong
        # hash. A temporary folder keeps both from other readers of the cache.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            with contextlib.redirect_stdout(sys.stderr):  # Keras prints its progress there
                file = keras.utils.get_file(path.name, checkpoint.location, cache_subdir=folder)
            fault = _fault(Path(file), checkpoint.hash)
            if fault is None:
                os.replace(file, path)
    except Exception as error:
        remedy = f"Put the file at {path} by hand"
        cause = error.__context__ or error
        if isinstance(cause, urllib.error.HTTPError):
            cause.close()  # the error keeps its connection open
        raise _failure(checkpoint, checkpoint.location, cause, remedy) from error
    if fault is not None:
        raise ValueError(f"{fault}; it came from {checkpoint.location} and was not kept")
    return path


def _from_hub(checkpoint: Checkpoint) -> Path:
    repository, file = checkpoint.location, checkpoint.file
    url = huggingface_hub.hf_hub_url(repository, file)
    cached = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        path = Path(cached)
        # The target of the first link is the hash that the hub stated; further links may lead to
        # names with other hashes. A cache without links (Windows) does not keep the hub's hash.
        etag = path.readlink().name if path.is_symlink() else None
        fault = _fault(path, checkpoint.hash or _sha256(etag))
        if fault is None:
            return path
        warnings.warn(f"{fault}: it is downloaded again", stacklevel=3)
        _remove(path)  # force_download does not replace a file in a cache without links
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, file))
        expected = checkpoint.hash or _sha256(huggingface_hub.get_hf_file_metadata(url).etag)
        fault = _fault(path, expected)
        if fault is not None:
            _remove(path)
    # The errors of the system, httpx and Xet have no narrower class in common.
    except Exception as error:
        remedy = "Download it by other means and pass its path as weights="
        cause = error.__cause__ or error
        raise _failure(checkpoint, url, cause, remedy) from error
    if fault is not None:
        raise ValueError(f"{fault}; it came from {url} and was not kept")
    return path


# The files of a repository that may hold its weights, the preferred first. Beside Keras'
# model.weights.h5, other files say which network it belongs to.
_WEIGHT_FILES = ("model.keras", "model.weights.h5", "model.safetensors", "pytorch_model.bin")
_KERAS_FILES = ("config.json", "task.weights.h5", "preprocessor.json")


def fetch_repository(repository: str) -> Path:
    """Return the weights of a repository on the hub: a local file, or a folder of Keras' files.

    The hub says whether the cache has the newest version; without a connection, the cached version
    is returned. Large files are verified as `fetch` verifies them.

    Args:
        repository: OWNER/NAME.

    Raises:
        ValueError: this is no name of a repository, the repository has no weights, or a download
            has another hash than the hub states.
        OSError: there is no such repository, or no connection.
    """
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ValueError(f"hf://{repository} must be hf://OWNER/NAME: {error}") from error
    if repository.count("/") != 1:
        raise ValueError(f"hf://{repository} must be hf://OWNER/NAME")
    for name in _WEIGHT_FILES:
        path = _newest(repository, name)
        if path is None:
            continue
        if name != "model.weights.h5":
            return path
        for other in _KERAS_FILES:
            _newest(repository, other)
        return path.parent
    raise ValueError(f"hf://{repository} has no weights: none of {', '.join(_WEIGHT_FILES)}")


def _caches_weights(repository: str) -> bool:
    paths = (huggingface_hub.try_to_load_from_cache(repository, name) for name in _WEIGHT_FILES)
    return any(isinstance(path, str) for path in paths)


def _newest(repository: str, file: str) -> Path | None:
    """Return the newest version of a file on the hub; None: the repository has no such file.

    Without a connection, it is that of the cache, which also remembers which files there are not.
    """
    for is_last in (False, True):
        try:
            path = Path(huggingface_hub.hf_hub_download(repository, file))
        except LocalEntryNotFoundError as error:
            cached = huggingface_hub.try_to_load_from_cache(repository, file)
            # Other programs that filled the cache asked for no file that there is not.
            if cached is huggingface_hub._CACHED_NO_EXIST or _caches_weights(repository):
                return None
            raise _unavailable(repository, error.__cause__ or error) from error
        except EntryNotFoundError:
            return None
        # The errors of the system, httpx and Xet have no narrower class in common.
        except Exception as error:
            raise _unavailable(repository, error) from error
        etag = path.readlink().name if path.is_symlink() else None
        fault = _fault(path, _sha256(etag))
        if fault is None:
            return path
        _remove(path)
        if is_last:
            raise ValueError(f"{fault}; it came from hf://{repository} and was not kept")
        warnings.warn(f"{fault}: it is downloaded again", stacklevel=4)
    return None


def _unavailable(repository: str, cause: BaseException) -> OSError:
    if isinstance(cause, RepositoryNotFoundError):
        reason = "there is no such repository, or it is private and you are not logged in"
        return OSError(f"hf://{repository} cannot be downloaded: {reason} (hf auth login)")
    reason = str(cause).partition("\n")[0] or type(cause).__name__
    return OSError(f"hf://{repository} cannot be downloaded: {reason}")


def _sha256(etag: str | None) -> str | None:
    """Return a large file's hash from its etag; a small file's etag is git's SHA-1."""
    return f"sha256:{etag}" if etag and re.fullmatch("[0-9a-f]{64}", etag) else None


def _remove(path: Path) -> None:
    """Delete a file of the hub's cache and all links that lead to the file."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _fault(path: Path, expected: str | None) -> str | None:
    """Return how a file's hash differs from the expected one, such as "md5:..."; None if equal."""
    if expected is None:
        return None
    algorithm = expected.partition(":")[0]
    with path.open("rb") as file:
        actual = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    return None if actual == expected else f"{path.name} has {actual}, not {expected}"


def _failure(checkpoint: Checkpoint, url: str, cause: BaseException, remedy: str) -> OSError:
    reason = str(cause).partition("\n")[0] or type(cause).__name__
    name = f"{checkpoint.file} ({checkpoint.name})"
    return OSError(f"{name} could not be downloaded from {url}: {reason}. {remedy}")
