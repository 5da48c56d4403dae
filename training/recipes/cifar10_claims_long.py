"""CIFAR-10 as in cifar10_claims, until the validation images stop improving.

training/claims.py varies this recipe.

command:  python training/claims.py DIR --recipe training/recipes/cifar10_claims_long.py \
              --nets A B D --workdir runs/claims_long
          (DIR holds CIFAR-10's images as <class>/<image>)
hardware: 2 CPU cores of a Xeon with AMX, each with a run of its own: 30 to 45 s an epoch of A,
          46 to 90 s of B and D, beside other work; 37 to 45 epochs
result:   test errors of A 18.92 %, of B 17.55 %, of D 18.25 % (means of seeds 0 to 2, dense, one
          scale; training/claims_long)

The learning rate falls to a tenth after three epochs without a better validation accuracy, twice,
and the training ends in place of a third fall, or after 45 epochs. 5,000 images decide this:
with 1,000, chance (1.4 points) is larger than what an epoch gains.
"""

from pathlib import Path

from keras_vgg.recipe import load_recipe

RECIPE = load_recipe(Path(__file__).with_name("cifar10_claims.py")).replace(
    validation_fraction=1 / 9,
    epochs=45,
    schedule="plateau",
    plateau_patience=3,
    plateau_drops=2,
)
