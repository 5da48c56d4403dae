"""Frozen blocks: the layers that training leaves as they are."""

from __future__ import annotations

import keras

from keras_vgg.architecture import block_of

BLOCKS = ("block1", "block2", "block3", "block4", "block5")


def freeze(model: keras.Model, until: str) -> tuple[str, ...]:
    """Freeze the blocks before `until`, so that training does not change them.

    Call this before `compile`. A frozen batch normalisation uses its statistics and does not change
    them.

    Args:
        model: A VGG.
        until: "none" or "block1": freeze nothing. "block2" to "block5": freeze the blocks before
            this one. "all": freeze all blocks and train only the classifier.

    Returns:
        The names of the frozen layers that have weights.

    Raises:
        ValueError: an unknown `until`; the model's own layers are not those of a VGG.
    """
    frozen_blocks = {"none": 0, "all": len(BLOCKS)} | {b: i for i, b in enumerate(BLOCKS)}
    if until not in frozen_blocks:
        raise ValueError(f"until must be one of {', '.join(frozen_blocks)}, not {until!r}")
    blocks = {layer: block_of(layer.name) for layer in model.layers}
    if frozen_blocks[until] and not any(blocks.values()):
        raise ValueError(f"{model.name} has no layers block1_...: freeze the VGG that it holds")
    model.trainable = True  # if this is False, Keras trains none of the layers
    for layer, block in blocks.items():
        layer.trainable = not (block and block <= frozen_blocks[until])
    return tuple(layer.name for layer in model.layers if layer.weights and not layer.trainable)
