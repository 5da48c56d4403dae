"""CIFAR-10 with VGG-16's ImageNet convolutions, all layers fine-tuned at 64x64, for two CPU cores.

command:  keras-vgg train training/recipes/cifar10_fine_tuned.py --source folder:DIR --init FILE \
              --precision mixed_bfloat16 --jit off --workdir runs/cifar10_fine_tuned
          (DIR holds CIFAR-10's 50,000 training images as <class>/<image>; FILE is a weight file,
          or "imagenet" to download it)
hardware: 2 CPU cores of a Xeon with AMX: 6,625 s, of which 600 s suspended, beside other work; 107
          images/s with nothing else running, which makes 63 minutes
result:   91.82 % (91.06 to 92.58) of the 5,000 held-out images with the mirror image (evaluate
          --protocol dense); validation 90.90 % of 1,000, in the last epoch (1 run, seed 0)
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="folder:cifar10",
    # 5,000 of the 50,000 images are the test split; 1,000 of the others select the epoch.
    test_fraction=0.1,
    validation_fraction=0.0222222,
    configuration="D",
    width_multiplier=1.0,
    batch_norm=False,
    head="gap",
    dropout=0.0,
    init="imagenet",
    init_head="probe",
    image_size=64,
    train_scale=(64, 76),
    eval_scale=72,
    horizontal_flip=True,
    auto_augment="trivial",
    cutout=0.25,
    epochs=9,
    batch_size=64,
    optimizer="adamw",
    learning_rate=1.5e-4,
    weight_decay=0.05,
    clip_norm=1.0,
    label_smoothing=0.1,
    warmup_epochs=0.5,
)
