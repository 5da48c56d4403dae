"""The paper's configuration C on ImageNet with scale jitter in [256, 512], section 3.1.

command:  keras-vgg train training/recipes/imagenet_c.py --data-dir DIR \
              --workdir runs/imagenet_c
          (TFDS's imagenet2012, prepared in DIR)
hardware: needs GPUs. Derived: 6.63e+18 FLOP, 18.4 h on one that sustains
          100 TFLOP/s; on 8, 2.3 h and 1.0 h of all-reduce at 100 GB/s (training/paper.py)
result:   not run; the paper has 27.3 / 8.8 % top-1 / top-5 error, dense at Q = 384 (Table 3).
          The paper starts C from a trained A, then trains it at S = 256, at 384 and with jitter;
          training/paper.py does that. This recipe starts from Glorot's initialisation.
"""

from pathlib import Path

from keras_vgg.recipe import load_recipe

RECIPE = load_recipe(Path(__file__).with_name("imagenet_a.py")).replace(
    configuration="C",
    train_scale=(256, 512),
    eval_scale=384,  # Q = 0.5 (Smin + Smax), section 4.1
)
