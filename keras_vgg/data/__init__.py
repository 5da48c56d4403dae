"""Sources of labelled images, and the tf.data pipelines that feed them to a model.

Images are uint8 RGB [h, w, 3] in [0, 255] as they leave a source, of varying size, with an integer
label; `keras_vgg.augment` brings them to the model's size, and the model normalises them.
"""

from keras_vgg.data.balance import balanced_order
from keras_vgg.data.channel_statistics import ChannelStatistics, statistics
from keras_vgg.data.decode import BitDepth, load_image
from keras_vgg.data.inspection import (
    bad_images_named,
    check,
    find_bad_images,
    raise_for_bad_images,
)
from keras_vgg.data.inventory import Inventory, take_inventory
from keras_vgg.data.options import untuned
from keras_vgg.data.pipeline import (
    evaluation_dataset,
    steps_per_epoch,
    training_dataset,
)
from keras_vgg.data.records import pack, verify
from keras_vgg.data.relabel import relabelled
from keras_vgg.data.show import contact_sheet
from keras_vgg.data.sides import median_smallest_side
from keras_vgg.data.sources import load_source
from keras_vgg.data.split import Records, Shard, Source, Split

__all__ = [
    "BitDepth",
    "ChannelStatistics",
    "Inventory",
    "Records",
    "Shard",
    "Source",
    "Split",
    "bad_images_named",
    "balanced_order",
    "check",
    "contact_sheet",
    "evaluation_dataset",
    "find_bad_images",
    "load_image",
    "load_source",
    "median_smallest_side",
    "pack",
    "raise_for_bad_images",
    "relabelled",
    "statistics",
    "steps_per_epoch",
    "take_inventory",
    "training_dataset",
    "untuned",
    "verify",
]
