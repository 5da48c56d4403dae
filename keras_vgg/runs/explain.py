"""Why a run's model says what it says of image files, as pictures."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keras_vgg import data, explain
from keras_vgg.augment.geometry import Window, central_window, snapped, visible
from keras_vgg.explain import cam, draw
from keras_vgg.explain.heat import resized, scaled
from keras_vgg.explain.network import Network, opened
from keras_vgg.fit import evaluation_transform
from keras_vgg.run import Run

HEATS = ("grad-cam", "grad-cam++", "occlusion", "saliency", "smoothgrad")
METHODS = (*HEATS, "features", "filters")
_BRIGHTEST = 99  # per cent of a saliency's pixels; what is above is as bright (Smilkov et al.)
_FILTERS = 8
# Pixels of a picture's longer side as it is drawn: of less each is shown as several, as heat is
# finer than a picture of a few; of more it is scaled down.
_LEAST, _MOST = 256, 1600


def explain_files(
    run: Run,
    paths: Sequence[str | Path] = (),
    *,
    methods: Sequence[str] = ("grad-cam",),
    layer: str | None = None,
    class_name: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> list[Path]:
    """Draw explanations of what a run's best model says of image files.

    A picture of heat shows the whole image, upright, and beside it each method's heat over it: on
    the part that the model saw, as evaluation crops it; the rest is grey. It is drawn at its own
    size, but scaled down to a longer side of at most 1600 pixels; below 256 each of its pixels
    becomes a square of them.

    Args:
        run: A finished run.
        paths: Image files; "filters" needs none, and alone it does not look at them.
        methods: Of HEATS, side by side in IMAGE_METHODS.png; "features", the strongest maps of
            each block, in IMAGE_features.png; "filters", images that a layer's first filters answer
            to most, in filters_LAYER.png.
        layer: The layer that Grad-CAM, features and filters look at; default as `explain`.
        class_name: Explain this class instead of the most probable one.
        out: A folder, made if needed. Default: explain/ in the run directory.
        seed: Seed of SmoothGrad's noise and of the filters' first images.

    Returns:
        The files written, in the order of `paths`.

    Raises:
        ValueError: the run has not finished training; an unknown method, layer or class; a file
            that is no image; no image where one is needed. Nothing has been written then.
        OSError: a file that is not there, or cannot be written.
    """
    methods = _known_methods(methods, has_images=bool(paths))
    wanted = None if class_name is None else _class(run, class_name)
    if methods == ["filters"]:
        paths = ()
    for path in paths:
        data.load_image(path)  # all of them are whole, before anything is written; none is kept
    model = run.model()
    network = opened(model)
    if layer is not None:
        (network.find if methods == ["filters"] else network.place)(layer)
    out = run.directory / "explain" if out is None else Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    names = _names(paths)
    written = []
    heats = [method for method in methods if method in HEATS]
    for name, source in zip(names, paths, strict=True):
        picture = data.load_image(source)
        image = evaluation_transform(run.recipe)(picture).numpy()
        probabilities = network.probabilities(image[np.newaxis], 1)[0]
        chosen = int(probabilities.argmax()) if wanted is None else wanted
        title = _title(run.class_names, probabilities, chosen)
        if heats:
            window = central_window(
                np.array(picture.shape[:2]),
                size=run.recipe.image_size,
                scale=run.recipe.eval_scale,
            )
            shown = _to_draw(picture)
            found = {}
            for method in heats:
                heat = _heat(model, image, method, chosen, layer, seed)
                name_of = method if heat.any() else f"{method}: empty"
                found[name_of] = placed(heat, window, shown.shape[:2])
            path = out / f"{name}_{'_'.join(heats)}.png"
            draw.draw_heats(
                path,
                shown,
                found,
                title=f"{name}: {title}",
                seen=_frame(window, shown.shape[:2]),
            )
            written.append(path)
        if "features" in methods:
            maps = explain.feature_maps(model, image, [layer] if layer else None)
            path = out / f"{name}_features.png"
            draw.draw_maps(path, image, maps, title=f"{name}: {title}")
            written.append(path)
    if "filters" in methods:
        written.append(_filters(run, model, network, layer, out, seed))
    return written


def _known_methods(methods: Sequence[str], has_images: bool) -> list[str]:
    """Return each method once. ValueError: one is unknown or needs an image, or there is none."""
    methods = list(dict.fromkeys(methods))
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"method must be of {', '.join(METHODS)}, not {', '.join(unknown)!r}")
    if not has_images and methods != ["filters"]:
        raise ValueError(f"{', '.join(m for m in methods if m != 'filters')} needs an image file")
    return methods


def placed(heat: np.ndarray, window: Window, sides: tuple[int, int]) -> np.ndarray:
    """Heat of what evaluation cut out, where it belongs in the whole picture.

    Args:
        heat: [size, size], of the window's pixels.
        window: Where of the rescaled picture the pixels are, as `central_window`.
        sides: (height, width) to show the picture at.

    Returns:
        float32 [height, width]; NaN where the model saw nothing of the picture.
    """
    low, high = visible(window)
    # The rescaled picture is never made: of one a pixel high and a million wide it takes gigabytes.
    edges = snapped(np.array(sides), window.scaled, low, high)
    rows, columns = zip(*(edge.numpy() for edge in edges), strict=True)
    shown = [(edge - window.start).numpy() for edge in (low, high)]
    part = heat[tuple(slice(*side) for side in zip(*shown, strict=True))]
    found = np.full(sides, np.nan, "float32")
    found[slice(*rows), slice(*columns)] = resized(
        part, (rows[1] - rows[0], columns[1] - columns[0])
    )
    return found


def _to_draw(picture: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> the same, its longer side _LEAST to about _MOST pixels, undistorted."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    if longer > _MOST:
        wide, high = (max(1, round(side * _MOST / longer)) for side in (width, height))
        return np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.LANCZOS))
    times = -(-_LEAST // longer)
    return picture.repeat(times, 0).repeat(times, 1)


def _frame(window: Window, sides: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """(top, left, height, width) of the window in a picture of `sides`; None where it is all."""
    low, high = (side.numpy() for side in visible(window))
    scaled = window.scaled.numpy()
    if (high - low == scaled).all():
        return None
    top, left = low * sides / scaled
    height, width = (high - low) * sides / scaled
    return float(top), float(left), float(height), float(width)


def _heat(
    model, image: np.ndarray, method: str, chosen: int, layer: str | None, seed: int
) -> np.ndarray:
    """[size, size] in [0, 1]."""
    images = image[np.newaxis]
    if method in cam.METHODS:
        return explain.grad_cam(model, images, classes=chosen, layer=layer, method=method)[0]
    if method == "occlusion":
        # What speaks against the class is not shown.
        found = explain.occlusion_sensitivity(model, images, classes=chosen)[0]
        return scaled(np.maximum(found, 0))
    options = {"samples": 25, "noise": 0.15} if method == "smoothgrad" else {}
    found = explain.saliency(model, images, classes=chosen, seed=seed, **options)[0]
    return scaled(np.minimum(found, np.percentile(found, _BRIGHTEST)))


def _filters(run: Run, model, network: Network, layer: str | None, out: Path, seed: int) -> Path:
    place = network.place(None) if layer is None else network.find(layer)
    count = network.output_before_activation(place).shape[-1]
    filters = list(range(min(count, _FILTERS)))
    images = explain.activation_maximization(model, layer, filters, seed=seed)
    classes = run.class_names if place.output is network.output else None
    names = [classes[i] if classes else f"filter {i}" for i in filters]
    path = out / f"filters_{place.path.replace('/', '_')}.png"
    draw.draw_filters(path, images, names, title=f"what {place.path} answers to most")
    return path


def _class(run: Run, name: str) -> int:
    if name not in run.class_names:
        close = difflib.get_close_matches(name, run.class_names, 1)
        few = ", ".join(run.class_names[:20]) + (", ..." if len(run.class_names) > 20 else "")
        hint = f"did you mean {close[0]!r}?" if close else f"they are {few}"
        raise ValueError(f"the run has no class {name!r}; {hint}")
    return run.class_names.index(name)


def _title(class_names: Sequence[str], probabilities: np.ndarray, chosen: int) -> str:
    best = int(probabilities.argmax())
    title = f"{class_names[chosen]} {probabilities[chosen]:.1%}"
    return title if best == chosen else f"{title} ({class_names[best]} {probabilities[best]:.1%})"


def _names(paths: Sequence[str | Path]) -> list[str]:
    """What each file's pictures begin with: its name, with a number where another has it, too."""
    stems = [Path(path).stem for path in paths]
    count = Counter(stem.casefold() for stem in stems)  # A.png is a.png to some file systems
    taken = {stem for stem in count if count[stem] == 1}
    names = []
    for stem in stems:
        name = stem
        if count[stem.casefold()] > 1:
            numbered = (f"{stem}_{number}" for number in itertools.count(1))
            name = next(name for name in numbered if name.casefold() not in taken)
            taken.add(name.casefold())
        names.append(name)
    return names
