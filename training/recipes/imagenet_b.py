"""The paper's configuration B on ImageNet at S = 256, section 3.1.

command:  keras-vgg train training/recipes/imagenet_b.py --data-dir DIR \
              --workdir runs/imagenet_b
          (TFDS's imagenet2012, prepared in DIR)
hardware: needs GPUs. Derived: 6.37e+18 FLOP, 17.7 h on one that sustains
          100 TFLOP/s; on 8, 2.2 h and 0.9 h of all-reduce at 100 GB/s (training/paper.py)
result:   not run; the paper has 28.7 / 9.9 % top-1 / top-5 error, dense at Q = 256 (Table 3).
          The paper starts B from a trained A (training/paper.py does); this recipe does not.
"""

from pathlib import Path

from keras_vgg.recipe import load_recipe

RECIPE = load_recipe(Path(__file__).with_name("imagenet_a.py")).replace(
    configuration="B",
)
