"""Fashion-MNIST in an hour: the searched network with shifts, erasing and four times the epochs.

command:  keras-vgg train training/recipes/fashion_mnist_long.py --manual-dir DIR \
              --workdir runs/long
          keras-vgg evaluate runs/long --protocol dense
          (DIR holds the four official .gz files; or --download True)
hardware: one CPU core (AVX2) beside other work, 3,678 s
result:   94.00 % on the 10,000 test images, 94.80 % on the 5,000 validation images (1 run, seed 0),
          evaluated with the mirror image; see training/README.md
"""

from pathlib import Path

from keras_vgg.recipe import load_recipe

RECIPE = load_recipe(Path(__file__).with_name("fashion_mnist_searched.py")).replace(
    crop_padding=4,
    random_erasing=0.25,
    epochs=32,
    weight_decay=0.0003,
)
