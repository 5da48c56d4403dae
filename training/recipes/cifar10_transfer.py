"""CIFAR-10 with VGG-16's ImageNet convolutions; all layers are fine-tuned at 32x32.

command:  keras-vgg train training/recipes/cifar10_transfer.py --source folder:DIR \
              --init FILE --workdir runs/cifar10_transfer
          (DIR holds train/<class>/<image>; FILE is a weight file, or "imagenet" to download it)
hardware: 2 CPU cores (AVX2), 79 minutes of processor time; see training/README.md
result:   81.24 % on the 5,000 held-out images, which also choose the epoch (1 run, seed 0); a
          linear classifier on the frozen base at 96x96: 86.14 % (training/cifar10_transfer.py)
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="cifar10",
    configuration="D",
    width_multiplier=1.0,
    batch_norm=False,
    head="gap",
    dropout=0.0,
    init="imagenet",
    layer_decay=0.8,
    validation_fraction=0.1,
    test_fraction=0.0,  # for a folder; TFDS has its own test split
    train_scale=None,
    eval_scale=None,
    crop_padding=4,
    horizontal_flip=True,
    epochs=3,
    batch_size=64,
    learning_rate=0.001,
    nesterov=True,
    warmup_epochs=0.2,
)
