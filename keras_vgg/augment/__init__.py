"""Image to image: what happens to a picture between its source and the model (section 3.1).

Images are RGB, [h, w, 3], in [0, 255]; normalisation belongs to the model. Every random function
takes its `seed`, an int32 or int64 tensor of shape [2], and nothing else decides what it draws, so
that a training stream can be repeated or resumed exactly. All functions run eagerly and in tf.data,
but for `color_batch`, which is for a training step on any backend of Keras.

Functions marked by `takes_pictures` also take a `Picture`, of which they read no more than they
need: `keras_vgg.data` hands them one for a JPEG file.
"""

from keras_vgg.augment.affine import corners
from keras_vgg.augment.color import adjust_color, color_batch, color_jitter, rgb_shift, to_grey
from keras_vgg.augment.crops import CROP_RATIO, area_window
from keras_vgg.augment.geometry import (
    Resize,
    View,
    Window,
    center_crop,
    pad_to,
    random_crop,
    random_flip,
    random_window,
    resample,
    rescale,
    source_window,
)
from keras_vgg.augment.image import (
    channels_for,
    eval_image,
    grid_crops,
    in_grey,
    whole_image,
)
from keras_vgg.augment.mixing import batch_augmentation
from keras_vgg.augment.picture import (
    Picture,
    decoded,
    may_take_pictures,
    picture_of,
    takes_pictures,
)
from keras_vgg.augment.policies import Policy, rand_augment, trivial_augment
from keras_vgg.augment.training import cut_out, train_image, train_image_uncolored, train_window

__all__ = [
    "CROP_RATIO",
    "Picture",
    "Policy",
    "Resize",
    "View",
    "Window",
    "adjust_color",
    "area_window",
    "batch_augmentation",
    "center_crop",
    "channels_for",
    "color_batch",
    "color_jitter",
    "corners",
    "cut_out",
    "decoded",
    "eval_image",
    "grid_crops",
    "in_grey",
    "may_take_pictures",
    "pad_to",
    "picture_of",
    "rand_augment",
    "random_crop",
    "random_flip",
    "random_window",
    "resample",
    "rescale",
    "rgb_shift",
    "source_window",
    "takes_pictures",
    "to_grey",
    "train_image",
    "train_image_uncolored",
    "train_window",
    "trivial_augment",
    "whole_image",
]
