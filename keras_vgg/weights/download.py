"""Published checkpoints: downloaded once, verified at every use."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.error
import warnings
from pathlib import Path

import huggingface_hub
import keras

from keras_vgg.weights.published import Checkpoint


def fetch(checkpoint: Checkpoint) -> Path:
    """The local file of a published checkpoint, downloaded when it is not in the cache.

    Keras' files lie where keras.applications keeps them (KERAS_HOME), the hub's where
    huggingface_hub does (HF_HOME, HF_HUB_CACHE; HF_ENDPOINT and HF_HUB_OFFLINE hold). A cached file
    is used without a request. Its hash is verified each time, a second or two for 550 MB: a note
    that it once was right can go stale. A cached file of another hash is downloaded anew, with a
    warning.

    Raises:
        ValueError: the download has another hash; it is not kept.
        OSError: the file cannot be downloaded or stored; says what to do by hand.
    """
    return _from_hub(checkpoint) if checkpoint.on_hub else _from_keras(checkpoint)


def _from_keras(checkpoint: Checkpoint) -> Path:
    path = _keras_home() / "models" / checkpoint.file
    if path.is_file():
        fault = _fault(path, checkpoint.hash)
        if fault is None:
            return path
        warnings.warn(f"{fault}: it is downloaded anew", stacklevel=3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # get_file writes under the final name from the first byte, and leaves a file of a wrong
        # hash there; a folder of its own keeps both from whoever else reads the cache.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            file = keras.utils.get_file(path.name, checkpoint.location, cache_subdir=folder)
            fault = _fault(Path(file), checkpoint.hash)
            if fault is None:
                os.replace(file, path)
    except Exception as error:
        remedy = f"Put the file at {path} by hand"
        cause = error.__context__ or error
        if isinstance(cause, urllib.error.HTTPError):
            cause.close()  # it holds the connection
        raise _failure(checkpoint, checkpoint.location, cause, remedy) from error
    if fault is not None:
        raise ValueError(f"{fault}; it came from {checkpoint.location} and was not kept")
    return path


def _keras_home() -> Path:
    """As get_file finds it."""
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    if os.access(home, os.W_OK):
        return home
    return Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir(), ".keras")


def _from_hub(checkpoint: Checkpoint) -> Path:
    file = {"repo_id": checkpoint.location, "filename": checkpoint.file}
    url = huggingface_hub.hf_hub_url(**file)
    cached = huggingface_hub.try_to_load_from_cache(**file)
    if isinstance(cached, str):
        path = Path(cached)
        # The link's own target: further links may lead to names that are other hashes. A cache
        # without links (Windows) does not keep what the hub stated.
        etag = path.readlink().name if path.is_symlink() else None
        fault = _fault(path, checkpoint.hash or _sha256(etag))
        if fault is None:
            return path
        warnings.warn(f"{fault}: it is downloaded anew", stacklevel=3)
        _remove(path)  # force_download would not replace it in a cache without links
    try:
        path = Path(huggingface_hub.hf_hub_download(**file))
        wanted = checkpoint.hash or _sha256(huggingface_hub.get_hf_file_metadata(url).etag)
        fault = _fault(path, wanted)
        if fault is not None:
            _remove(path)
    # OSError, httpx's errors and Xet's: no narrower class has them all.
    except Exception as error:
        remedy = "Download it by other means and pass its path as weights="
        cause = error.__cause__ or error
        raise _failure(checkpoint, url, cause, remedy) from error
    if fault is not None:
        raise ValueError(f"{fault}; it came from {url} and was not kept")
    return path


def _sha256(etag: str | None) -> str | None:
    """What the hub states of a large file; a small one's etag is git's SHA-1, of a header too."""
    return f"sha256:{etag}" if etag and re.fullmatch("[0-9a-f]{64}", etag) else None


def _remove(path: Path) -> None:
    """Delete a file of the hub's cache and all the links that lead to it."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _fault(path: Path, wanted: str | None) -> str | None:
    """What is wrong with a file's hash, if anything; `wanted` is such as "md5:..."."""
    if wanted is None:
        return None
    algorithm = wanted.partition(":")[0]
    with path.open("rb") as file:
        found = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    return None if found == wanted else f"{path.name} has {found}, not {wanted}"


def _failure(checkpoint: Checkpoint, url: str, cause: BaseException, remedy: str) -> OSError:
    reason = str(cause).partition("\n")[0] or type(cause).__name__
    file = f"{checkpoint.file} ({checkpoint.name})"
    return OSError(f"{file} could not be downloaded from {url}: {reason}. {remedy}")
