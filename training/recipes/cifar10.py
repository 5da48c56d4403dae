"""CIFAR-10 with VGG-16 and batch norm at full width, 32x32, pad-4 crop and flip.

command:  keras-vgg train training/recipes/cifar10.py --download True --workdir runs/cifar10
hardware: needs a GPU: 200 epochs of 45,000 images, each 0.31 GMAC forward
result:   not run; others report 93.5 % (geifmany) to 94.2 % (huyvnphan) on the test split
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="cifar10",
    configuration="D",
    width_multiplier=1.0,
    batch_norm=True,
    hidden_units=512,
    dropout=0.5,
    train_scale=None,
    eval_scale=None,
    crop_padding=4,
    horizontal_flip=True,
    epochs=200,
    batch_size=128,
    learning_rate=0.1,
    nesterov=True,
    schedule="cosine",
    warmup_epochs=5.0,
)
