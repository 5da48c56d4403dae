"""python -m keras_vgg.cli"""

import sys

from keras_vgg.cli import main

sys.exit(main())
