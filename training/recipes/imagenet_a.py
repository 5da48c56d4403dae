"""The paper's configuration A on ImageNet at S = 256, section 3.1.

command:  keras-vgg train training/recipes/imagenet_a.py --data-dir DIR --workdir runs/imagenet_a
          (TFDS's imagenet2012, prepared in DIR)
hardware: needs GPUs. Derived: 4.29e+18 FLOP, 11.9 h on one that sustains
          100 TFLOP/s; on 8, 1.5 h and 0.9 h of all-reduce at 100 GB/s (training/paper.py)
result:   not run; the paper has 29.6 / 10.4 % top-1 / top-5 error by dense testing at Q = 256
          (Table 3). It draws the weights from a normal distribution of variance 1e-2
          (initialization="normal"), which gives NaN in the third step here (training/paper.py);
          Glorot's is the paper's alternative.
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="imagenet2012",
    # The paper reports on ImageNet's validation set, so the model is selected on held-out
    # training images.
    train_split="train[:99%]",
    validation_split="train[99%:]",
    test_split="validation",
    configuration="A",
    width_multiplier=1.0,
    batch_norm=False,
    hidden_units=4096,
    dropout=0.5,
    initialization="glorot",
    image_size=224,
    train_scale=(256, 256),
    eval_scale=256,  # Q = S, section 4.1
    horizontal_flip=True,
    rgb_shift=0.1,
    mean_rgb=(123.68, 116.779, 103.939),
    std_rgb=(1.0, 1.0, 1.0),  # the paper subtracts the mean and does not scale
    epochs=74,
    batch_size=256,
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="plateau",
    plateau_patience=5,
    plateau_drops=3,
    warmup_epochs=0.0,
)
