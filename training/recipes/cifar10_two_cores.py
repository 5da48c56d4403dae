"""CIFAR-10 with VGG-13 and batch norm at three quarters of the width, for two CPU cores.

command:  keras-vgg train training/recipes/cifar10_two_cores.py --source folder:DIR \
              --workdir runs/cifar10_two_cores
          (DIR holds CIFAR-10's 50,000 training images as <class>/<image>)
hardware: 2 CPU cores with AVX512-BF16, float32 without XLA: 8,631 s beside other work, at 54 to 241
          images/s; 277 images/s when the machine is quiet
result:   89.00 % (88.12 to 89.86) of the 5,000 held-out images, and 89.80 % (88.96 to 90.64) with
          the mirror image (evaluate --protocol dense); validation 89.20 % of 1,000, in epoch 26
          (1 run, seed 0); without augmentation, 97.2 % of its training images
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="folder:cifar10",
    # 5,000 of the 50,000 images are the test split; 1,000 of the others select the epoch.
    test_fraction=0.1,
    validation_fraction=0.0222222,
    configuration="B",
    width_multiplier=0.75,
    batch_norm=True,
    head="gap",
    dropout=0.0,
    image_size=32,
    train_scale=None,
    eval_scale=None,
    crop_padding=4,
    horizontal_flip=True,
    random_erasing=0.25,
    epochs=30,
    batch_size=128,
    learning_rate=0.1,
    nesterov=True,
    weight_decay=5e-4,
    label_smoothing=0.1,
    warmup_epochs=2.0,
)
