"""The convolutions of a trained VGG, from published weights or a file, for any size of images."""

from __future__ import annotations

import keras

from keras_vgg.convert import build
from keras_vgg.files import sha256_of
from keras_vgg.image_paths import expanded
from keras_vgg.models import vgg
from keras_vgg.weights import hub_repository, read_weights
from keras_vgg.weights.download import fetch_repository
from keras_vgg.weights.published import NAMES

_DEFAULT = "D"


def base_network(weights: str, configuration: str = _DEFAULT) -> keras.Model:
    """Return a VGG without the top that takes RGB in [0, 255], with its preprocessing inside.

    Args:
        weights: "imagenet", "torchvision", or what `read_weights` takes, whose network is found.
        configuration: Of published weights: a column of the paper's Table 1. A file has its own:
            another than "D" is then an error.

    Raises:
        OSError: there is no such file, or a download failed.
        ValueError: the file is damaged, or does not state the preprocessing; no such weights of the
            configuration are published; a configuration is given with a file.
    """
    if weights in NAMES:
        return vgg(configuration, include_top=False, weights=weights, include_preprocessing=True)
    loaded = read_weights(weights, include_top=False)
    if configuration != _DEFAULT:
        raise ValueError(
            f"configuration (--configuration) {configuration} plays no part with {loaded.source}, "
            "whose network is found; leave it out"
        )
    return build(loaded, include_preprocessing=True)


def weights_identity(weights: str) -> str:
    """Return what tells weights from others: a published name, or the content of a file.

    Raises:
        OSError, ValueError: as `fetch_repository`, for hf://OWNER/NAME.
    """
    repository = hub_repository(weights)
    path = fetch_repository(repository) if repository else expanded(weights)
    for file in (path, path / "model.keras", path / "model.weights.h5"):
        if weights not in NAMES and file.is_file():
            return f"sha256:{sha256_of(file)}"
    return weights
