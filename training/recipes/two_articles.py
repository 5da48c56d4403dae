"""Two Fashion-MNIST articles on a canvas: several labels an image, a sigmoid for each class.

command:  python training/two_articles.py --data DIR --out two_articles
          keras-vgg train training/recipes/two_articles.py --source csv:two_articles/table.csv \
              --workdir runs/two_articles
          keras-vgg evaluate runs/two_articles --split validation
          keras-vgg evaluate runs/two_articles
          (DIR holds the four official .gz files)
hardware: 2 CPU cores (Intel Xeon, AVX-512) at the lowest priority beside other work, 1,663 s; about
          5 minutes of processor time
result:   mean average precision 95.13 %, macro F1 90.18 %, exact match 72.40 % on the 2,000 test
          canvases; 94.43 %, 90.36 % and 72.75 % on the 2,000 validation canvases (1 run, seed 0)
"""

from keras_vgg.recipe import Recipe

RECIPE = Recipe(
    source="csv:two_articles/table.csv",
    configuration="A",
    width_multiplier=0.125,
    head="gap",
    dropout=0.2,
    image_size=64,
    train_scale=None,  # the canvases have the network's size
    eval_scale=None,
    crop_padding=2,
    epochs=15,
    learning_rate=0.1,
    precision="float32",  # as measured
)
