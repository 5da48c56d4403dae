"""The paper's configuration D on ImageNet, scale jitter in [256, 512], section 3.1.

command:  keras-vgg train training/recipes/imagenet_d.py --data-dir DIR --workdir runs/imagenet_d
          (TFDS's imagenet2012, prepared in DIR)
hardware: needs GPUs: 74 epochs of 1.27 million images, 15.5 GMAC an image forward
result:   not run; the paper has 25.6 / 8.1 % top-1 / top-5 error at one scale (Table 3). The
          paper starts D from a trained A and, for jitter, from a net trained at S = 384; this
          recipe starts from Glorot's initialisation, which the paper names as the alternative.
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="imagenet2012",
    # The paper reports on ImageNet's validation set, so the model is selected on held-out
    # training images.
    train_split="train[:99%]",
    validation_split="train[99%:]",
    test_split="validation",
    configuration="D",
    width_multiplier=1.0,
    batch_norm=False,
    hidden_units=4096,
    dropout=0.5,
    initialization="glorot",
    image_size=224,
    train_scale=(256, 512),
    eval_scale=384,  # Q = 0.5 (Smin + Smax), section 4.1
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
