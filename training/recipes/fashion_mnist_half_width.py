"""Fashion-MNIST with VGG-13 and batch norm at half the width, for two CPU cores with bfloat16.

command:  keras-vgg train training/recipes/fashion_mnist_half_width.py --manual-dir DIR \
              --precision mixed_bfloat16 --jit off --workdir runs/half_width
          keras-vgg evaluate runs/half_width --protocol dense
          (DIR holds the four official .gz files; or --download True)
hardware: 2 CPU cores of a Xeon with AMX, 4,328 s beside other work (the process was suspended for
          550 s of them); 57 s an epoch with nothing else running, which makes 57 minutes
result:   95.34 % (94.92 to 95.75) on the 10,000 test images, 95.80 % on the 5,000 validation images
          (1 run, seed 0), evaluated with the mirror image; see training/README.md
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="fashion_mnist",
    validation_fraction=1 / 12,  # 5,000 of 60,000
    configuration="B",
    width_multiplier=0.5,
    batch_norm=True,
    head="gap",
    dropout=0.0,
    train_scale=None,  # pad 28x28 to 36x36 and crop 32x32, do not stretch
    eval_scale=None,
    crop_padding=4,
    horizontal_flip=True,
    random_erasing=0.5,
    epochs=60,
    batch_size=128,
    learning_rate=0.1,
    nesterov=True,
    weight_decay=5e-4,
    label_smoothing=0.1,
    warmup_epochs=1.0,
)
