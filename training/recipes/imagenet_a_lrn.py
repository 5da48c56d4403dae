"""The paper's configuration A-LRN on ImageNet at S = 256, section 3.1.

command:  keras-vgg train training/recipes/imagenet_a_lrn.py --data-dir DIR \
              --workdir runs/imagenet_a_lrn
          (TFDS's imagenet2012, prepared in DIR)
hardware: needs GPUs. Derived: 4.29e+18 FLOP, 11.9 h on one that sustains
          100 TFLOP/s; on 8, 1.5 h and 0.9 h of all-reduce at 100 GB/s (training/paper.py)
result:   not run; the paper has 29.7 / 10.5 % top-1 / top-5 error, dense at Q = 256 (Table 3).
"""

from pathlib import Path

from keras_vgg.recipe import load_recipe

RECIPE = load_recipe(Path(__file__).with_name("imagenet_a.py")).replace(
    configuration="A-LRN",
)
