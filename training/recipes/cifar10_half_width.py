"""CIFAR-10 with VGG-16 and batch norm at half the width, for two CPU cores with bfloat16.

command:  keras-vgg train training/recipes/cifar10_half_width.py --source folder:DIR \
              --precision mixed_bfloat16 --jit off --workdir runs/cifar10_half_width
          (DIR holds CIFAR-10's 50,000 training images as <class>/<image>)
hardware: 2 CPU cores of an AMD EPYC (Zen 4) with AVX512-BF16: 2,498 s, with short tests beside it
result:   87.82 % (86.90 to 88.72) of the 5,000 held-out images, and 88.66 % (87.78 to 89.54) with
          the mirror image (evaluate --protocol dense); validation 86.70 % of 1,000, in epoch 27
          (1 run, seed 0); the network is in training/results
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="folder:cifar10",
    # 5,000 of the 50,000 images are the test split; 1,000 of the others select the epoch.
    test_fraction=0.1,
    validation_fraction=0.0222222,
    configuration="D",
    width_multiplier=0.5,
    batch_norm=True,
    head="gap",
    dropout=0.0,
    image_size=32,
    train_scale=None,
    eval_scale=None,
    crop_padding=4,
    horizontal_flip=True,
    cutout=0.25,
    epochs=30,
    batch_size=128,
    learning_rate=0.1,
    nesterov=True,
    weight_decay=5e-4,
    label_smoothing=0.1,
    warmup_epochs=2.0,
)
