"""CIFAR-10 trained as the paper trains ImageNet, at a quarter of the width.

training/claims.py varies this recipe.

command:  python training/claims.py DIR --workdir runs/claims
          (DIR holds CIFAR-10's images as <class>/<image>)
hardware: 2 CPU cores
result:   three seeds; training/README.md has their table

32x32 crops of images rescaled to 36 replace 224x224 crops at 256: S is 1.125 times the crop instead
of 1.14. There is no batch norm, as in the paper. The initialisation is He's, because the paper's
(variance 1e-2) gives NaN (training/README.md).
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="folder:cifar10",
    # 5,000 of the 50,000 images are the test split; 1,000 of the others select the epoch.
    test_fraction=0.1,
    validation_fraction=1 / 45,
    width_multiplier=0.25,
    batch_norm=False,
    hidden_units=512,
    dropout=0.5,
    initialization="he_normal",
    image_size=32,
    train_scale=(36, 36),
    eval_scale=36,
    horizontal_flip=True,
    rgb_shift=0.1,
    epochs=4,
    batch_size=64,
    learning_rate=0.015,
    weight_decay=5e-4,
    schedule="cosine",
    warmup_epochs=1.0,
)
