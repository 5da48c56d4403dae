"""Scikit-learn's handwritten digits (1,797 images of 8x8): the default recipe, spelled out.

command:  keras-vgg train training/recipes/digits.py --workdir runs/digits
hardware: 2 CPU cores
result:   see training/README.md
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe()
