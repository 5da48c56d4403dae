"""The extractor, whose home is `keras_vgg.features`."""

from keras_vgg.features import channel_axis, feature_extractor

__all__ = ["channel_axis", "feature_extractor"]
