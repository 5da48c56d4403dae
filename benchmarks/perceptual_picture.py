"""Draw docs/perceptual.jpg: one photograph, its distortions, their distances and LPIPS maps.

python benchmarks/perceptual_picture.py WEIGHTS [docs/perceptual.jpg]

WEIGHTS is a file with VGG-16's ImageNet convolutions. The photograph is scikit-learn's flower.jpg.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image

LEFT, TOP, SIDE = 240, 100, 256  # the part of the photograph, in pixels


def distortions() -> dict[str, np.ndarray]:
    """Return the part of the photograph, uint8 [SIDE, SIDE, 3], and its distortions."""
    whole = load_sample_image("flower.jpg")
    part = Image.fromarray(whole).crop((LEFT, TOP, LEFT + SIDE, TOP + SIDE))
    file = io.BytesIO()
    part.save(file, "JPEG", quality=6)
    noise = np.random.default_rng(0).normal(0, 16, (SIDE, SIDE, 3))
    return {
        "photograph": np.asarray(part),
        "shift by 2 pixels": whole[TOP + 2 : TOP + 2 + SIDE, LEFT + 2 : LEFT + 2 + SIDE],
        "noise": np.clip(np.rint(np.asarray(part) + noise), 0, 255).astype("uint8"),
        "JPEG, quality 6": np.asarray(Image.open(file)),
        "blur": np.asarray(part.filter(ImageFilter.GaussianBlur(2.5))),
    }


def draw(weights: str, path: Path) -> None:
    import tensorflow as tf

    from keras_vgg import DISTS, LPIPS

    lpips, maps, dists = LPIPS(weights), LPIPS(weights, spatial=True), DISTS(weights)
    images = distortions()
    reference = images["photograph"]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    rows = figure.subplots(2, len(images))
    for (name, image), above, below in zip(images.items(), *rows, strict=True):
        above.imshow(image)
        above.set_title(name)
        for axes in (above, below):
            axes.set_axis_off()
        if image is reference:
            below.text(0.5, 0.5, "where LPIPS\nsees a difference", ha="center", va="center")
            continue
        a, b = reference[None], image[None]
        values = {
            "LPIPS": f"{lpips(a, b)[0]:.3f}",
            "DISTS": f"{dists(a, b)[0]:.3f}",
            "PSNR": f"{float(tf.image.psnr(a, b, 255)[0]):.1f} dB",
            "SSIM": f"{float(tf.image.ssim(tf.constant(a), tf.constant(b), 255)[0]):.2f}",
        }
        print(name, values)
        below.imshow(maps(a, b)[0], vmin=0, vmax=1, cmap="magma")
        lines = [f"{key} {value}" for key, value in values.items()]
        below.set_title("   ".join(lines[:2]) + "\n" + "   ".join(lines[2:]), fontsize=10)
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 88})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("weights", help="file with VGG-16's convolutions")
    parser.add_argument("path", nargs="?", type=Path, default=Path("docs/perceptual.jpg"))
    options = parser.parse_args()
    draw(options.weights, options.path)


if __name__ == "__main__":
    main()
