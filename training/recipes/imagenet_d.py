"""The paper's configuration D on ImageNet with scale jitter in [256, 512], section 3.1.

command:  keras-vgg train training/recipes/imagenet_d.py --data-dir DIR \
              --workdir runs/imagenet_d
          (TFDS's imagenet2012, prepared in DIR)
hardware: needs GPUs. Derived: 8.71e+18 FLOP, 24.2 h on one that sustains
          100 TFLOP/s; on 8, 3.0 h and 1.0 h of all-reduce at 100 GB/s (training/paper.py)
result:   not run; the paper has 25.6 / 8.1 % top-1 / top-5 error, dense at Q = 384 (Table 3).
          The paper starts D from a trained A, then trains it at S = 256, at 384 and with jitter;
          training/paper.py does that. This recipe starts from Glorot's initialisation.
"""

from pathlib import Path

from keras_vgg.recipe import load_recipe

RECIPE = load_recipe(Path(__file__).with_name("imagenet_a.py")).replace(
    configuration="D",
    train_scale=(256, 512),
    eval_scale=384,  # Q = 0.5 (Smin + Smax), section 4.1
)
