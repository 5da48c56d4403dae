"""Draw why a run's model answers as it does on image files."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_vgg import data, evaluation, explain
from keras_vgg.augment.geometry import Window, central_window, snapped, visible
from keras_vgg.data.left_out import short_name
from keras_vgg.evaluation.temperature import apply_temperature
from keras_vgg.explain import cam, draw
from keras_vgg.explain.heat import resized, scaled
from keras_vgg.explain.network import Network, opened
from keras_vgg.fit import evaluation_transform
from keras_vgg.image_paths import expanded, require_list
from keras_vgg.plotting import drawable_class
from keras_vgg.run import Run
from keras_vgg.runs.calibration import read_calibration
from keras_vgg.runs.network import open_network
from keras_vgg.runs.several_labels import read_thresholds

HEATS = ("grad-cam", "grad-cam++", "occlusion", "saliency", "smoothgrad")
METHODS = (*HEATS, "features", "filters")
_BRIGHTEST = 99  # Percentile of a saliency map; all brighter pixels are cut to it (Smilkov et al.).
_FILTERS = 8
_LABELS = 5  # explained of an image with several labels
# Pixels of the longer side of a drawn picture. A smaller picture is enlarged, because the heat is
# finer than its pixels; a larger one is scaled down.
_MIN_SIDE, _MAX_SIDE = 256, 1600
_KEYWORD = "Explanation"  # the PNG metadata that tells which picture a file holds


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
    """Draw explanations of what a run's best model answers on image files.

    A picture of heat shows the whole image, upright, and beside it each method's heat over the
    part that the model saw, as evaluation crops it; the rest is grey. The title has the
    probability, calibrated if the run has a temperature. The image is drawn at its own size. It is
    scaled down if its longer side has more than 1600 pixels; with fewer than 256, each pixel
    becomes a square of pixels. A class whose name the font cannot write, such as one in Chinese,
    has its number.

    Args:
        run: A run.
        paths: Image files. There is none for "filters" alone.
        methods: Some of HEATS, side by side in IMAGE_METHODS.png; "features", the strongest feature
            maps of each block, in IMAGE_features.png; "filters", images that a layer's first
            filters answer to most, in filters_LAYER.png. If the name is taken, a number follows
            IMAGE or LAYER: only a picture of the same image with the same options is replaced.
        layer: The layer for Grad-CAM, features and filters. None: as in `keras_vgg.explain`.
        class_name: Explain this class instead of the most probable one. If the run gives an image
            several labels, None explains each label that the image gets, at most five, beside each
            other; the most probable class if it gets none.
        out: The folder to write into, made if needed. None: explain/ in the run directory.
        seed: Seed of SmoothGrad's noise and of the filters' first images.

    Returns:
        The files written, in the order of `paths`, each once.

    Raises:
        ValueError: no epoch of the run has ended; an unknown method, layer or class; a file
            is not an image; a method needs an image, or needs none; no method uses `layer` or
            `class_name`; calibration.json is of another
            model, or damaged. Then nothing is written.
        OSError: a file does not exist, or cannot be written.
    """
    require_list(paths)
    methods = _known_methods(methods, paths)
    if layer is not None and not {*cam.METHODS, "features", "filters"} & {*methods}:
        raise ValueError(f"layer={layer!r} plays no part with {', '.join(methods)}; leave it out")
    if class_name is not None and methods == ["filters"]:
        raise ValueError(f"class_name={class_name!r} plays no part with filters; leave it out")
    class_number = None if class_name is None else _class_number(run, class_name)
    for path in paths:
        data.load_image(path)  # This raises for a damaged file, before anything is written.
    calibration = read_calibration(run) if paths and not run.several_labels else None
    model = run.model()
    network = opened(model)
    answer = evaluation.runner(  # as `predict`
        open_network(run, model), evaluation.Protocol("center"), len(run.class_names)
    )
    if layer is not None:
        (network.find if methods == ["filters"] else network.place)(layer)
    out = run.directory / "explain" if out is None else expanded(out)
    out.mkdir(parents=True, exist_ok=True)
    written: dict[Path, str] = {}
    options = {"layer": layer, "seed": seed}
    heat_methods = [method for method in methods if method in HEATS]
    for source in paths:
        picture = data.load_image(source, bit_depth=run.recipe.bit_depth)
        image = evaluation_transform(run.recipe)(picture).numpy()
        (probabilities,) = answer(image[np.newaxis])
        if calibration is not None:
            probabilities = apply_temperature(probabilities, calibration.temperature)
        explained = _labels_of(run, probabilities) if class_number is None else [class_number]
        options["image"] = _digest(Path(source))
        options["class"] = explained[0] if len(explained) == 1 else explained
        shown_name = short_name(source)
        title = f"{shown_name}: {_title(run.class_names, probabilities, explained)}"
        if heat_methods:
            heats = {
                _heat_name(run.class_names, method, number, explained): _heat(
                    model, image, method, number, layer, seed
                )
                for number in explained
                for method in heat_methods
            }
            identity = _identity(run, methods=heat_methods, **options)
            path = _free_path(out, Path(source).stem, "_".join(heat_methods), identity, written)
            _draw_heats(path, run, picture, heats, title, {_KEYWORD: identity})
            written[path] = identity
        if "features" in methods:
            maps = explain.feature_maps(model, image, [layer] if layer else None)
            identity = _identity(run, methods=["features"], **options)
            path = _free_path(out, Path(source).stem, "features", identity, written)
            draw.draw_maps(path, image, maps, title=title, texts={_KEYWORD: identity})
            written[path] = identity
    if "filters" in methods:
        path, identity = _filters(run, model, network, layer, out, seed)
        written[path] = identity
    return list(written)


def _draw_heats(
    path: Path,
    run: Run,
    picture: np.ndarray,
    heats: Mapping[str, np.ndarray],
    title: str,
    texts: Mapping[str, str],
) -> None:
    """Draw a picture, uint8 [h, w, 3], and each method's heat [size, size] over it."""
    window = central_window(
        np.array(picture.shape[:2]),
        size=run.recipe.image_size,
        scale=run.recipe.eval_scale_side,
        resize=run.recipe.resize,
    )
    resized_picture = _resized_to_draw(picture)
    sides = resized_picture.shape[:2]
    placed_heats = {
        method if heat.any() else f"{method}: empty": place_heat(heat, window, sides)
        for method, heat in heats.items()
    }
    seen = _frame(window, sides)
    draw.draw_heats(path, resized_picture, placed_heats, title=title, seen=seen, texts=texts)


def _known_methods(methods: Sequence[str], paths: Sequence[str | Path]) -> list[str]:
    """Return each method once.

    Raises:
        ValueError: no method, an unknown one, one without its image, or an image for "filters".
    """
    methods = [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {', '.join(unknown)!r}")
    if paths and methods == ["filters"]:
        raise ValueError(f"{paths[0]} plays no part with --method filters; leave out images")
    if not paths and methods != ["filters"]:
        raise ValueError(f"{', '.join(m for m in methods if m != 'filters')} needs an image file")
    return methods


def place_heat(heat: np.ndarray, window: Window, sides: tuple[int, int]) -> np.ndarray:
    """Put the heat of the window that evaluation cuts out into the whole picture.

    Args:
        heat: [size, size], one value for each pixel of the window.
        window: The window in the rescaled picture, as `central_window` returns it.
        sides: (height, width) of the picture to draw.

    Returns:
        float32 [height, width]; NaN where the model did not see the picture.
    """
    low, high = visible(window)
    # The picture is not rescaled here: one pixel high and a million wide, it would take gigabytes.
    edges = snapped(np.array(sides), window.scaled, low, high)
    rows, columns = zip(*(edge.numpy() for edge in edges), strict=True)
    heat_edges = [(edge - window.start).numpy() for edge in (low, high)]
    visible_heat = heat[tuple(slice(*side) for side in zip(*heat_edges, strict=True))]
    placed = np.full(sides, np.nan, "float32")
    placed[slice(*rows), slice(*columns)] = resized(
        visible_heat, (rows[1] - rows[0], columns[1] - columns[0])
    )
    return placed


def _resized_to_draw(picture: np.ndarray) -> np.ndarray:
    """Resize uint8 [h, w, 3] to a longer side of _MIN_SIDE to about _MAX_SIDE, undistorted."""
    height, width = picture.shape[:2]
    longer_side = max(height, width)
    if longer_side > _MAX_SIDE:
        size = [max(1, round(side * _MAX_SIDE / longer_side)) for side in (width, height)]
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    times = -(-_MIN_SIDE // longer_side)
    return picture.repeat(times, 0).repeat(times, 1)


def _frame(window: Window, sides: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return (top, left, height, width) of the window in a picture; None for the whole picture."""
    low, high = (side.numpy() for side in visible(window))
    scaled = window.scaled.numpy()
    if (high - low == scaled).all():
        return None
    top, left = low * sides / scaled
    height, width = (high - low) * sides / scaled
    return float(top), float(left), float(height), float(width)


def _heat(
    model, image: np.ndarray, method: str, class_number: int, layer: str | None, seed: int
) -> np.ndarray:
    """Return a method's heat for a class, [size, size] in [0, 1]."""
    images = image[np.newaxis]
    if method in cam.METHODS:
        return explain.grad_cam(model, images, classes=class_number, layer=layer, method=method)[0]
    if method == "occlusion":
        # Negative values speak against the class. They are not shown.
        heat = explain.occlusion_sensitivity(model, images, classes=class_number)[0]
        return scaled(np.maximum(heat, 0))
    options = {"samples": 25, "noise": 0.15} if method == "smoothgrad" else {}
    heat = explain.saliency(model, images, classes=class_number, seed=seed, **options)[0]
    return scaled(np.minimum(heat, np.percentile(heat, _BRIGHTEST)))


def _filters(
    run: Run, model, network: Network, layer: str | None, out: Path, seed: int
) -> tuple[Path, str]:
    place = network.place(None) if layer is None else network.find(layer)
    count = network.output_before_activation(place).shape[-1]
    filters = list(range(min(count, _FILTERS)))
    images = explain.activation_maximization(model, layer, filters, seed=seed)
    classes = run.class_names if place.output is network.output else None
    names = [drawable_class(classes[i], i) if classes else f"filter {i}" for i in filters]
    identity = _identity(run, methods=["filters"], layer=place.path, seed=seed)
    path = _free_path(out, f"filters_{place.path.replace('/', '_')}", "", identity, {})
    title = f"what {place.path} answers to most"
    draw.draw_filters(path, images, names, title=title, texts={_KEYWORD: identity})
    return path, identity


def _class_number(run: Run, name: str) -> int:
    if name not in run.class_names:
        close = difflib.get_close_matches(name, run.class_names, 1)
        few = ", ".join(run.class_names[:20]) + (", ..." if len(run.class_names) > 20 else "")
        hint = f"did you mean {close[0]!r}?" if close else f"the classes are {few}"
        raise ValueError(f"the run has no class {name!r}; {hint}")
    return run.class_names.index(name)


def _labels_of(run: Run, probabilities: np.ndarray) -> list[int]:
    """Return the classes to explain: the best, or with several labels those that the image gets."""
    best = int(probabilities.argmax())
    if not run.several_labels:
        return [best]
    thresholds = read_thresholds(run)
    ranked = np.argsort(-probabilities, kind="stable")[:_LABELS]
    labels = ranked[probabilities[ranked] >= (0.5 if thresholds is None else thresholds[ranked])]
    return labels.tolist() or [best]


def _heat_name(
    class_names: Sequence[str], method: str, number: int, explained: Sequence[int]
) -> str:
    name = drawable_class(class_names[number], number)
    return method if len(explained) == 1 else f"{name}: {method}"


def _title(class_names: Sequence[str], probabilities: np.ndarray, explained: Sequence[int]) -> str:
    best = int(probabilities.argmax())
    texts = {
        i: f"{drawable_class(class_names[i], i)} {probabilities[i]:.1%}" for i in (*explained, best)
    }
    title = ", ".join(texts[i] for i in explained)
    return title if best in explained else f"{title} ({texts[best]})"


def _identity(run: Run, **options: Any) -> str:
    """Return a text that differs between two pictures of different content."""
    model = run.model_path.stat()
    described = {"model": [str(run.model_path.resolve()), model.st_size, model.st_mtime_ns]}
    text = json.dumps(described | options, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> list[str]:
    """Return what tells an image file from others: its place and its content."""
    path = expanded(path).resolve()
    return [repr(str(path)), hashlib.sha256(path.read_bytes()).hexdigest()]


def _free_path(
    out: Path, stem: str, methods: str, identity: str, written: Mapping[Path, str]
) -> Path:
    """Return the first of STEM_METHODS.png, STEM_2_METHODS.png ... that holds no other picture.

    Args:
        out: The folder.
        stem: The image file's name without its suffix.
        methods: The end of the name, or an empty text.
        identity: What `_identity` returns for the picture.
        written: The pictures of this call, path -> identity.
    """
    # Some file systems take A.png for a.png.
    others = {path.name.casefold() for path, other in written.items() if other != identity}
    for number in itertools.count(1):
        parts = [stem, *([str(number)] if number > 1 else []), *([methods] if methods else [])]
        path = out / f"{'_'.join(parts)}.png"
        if path.name.casefold() in others:
            continue
        if not path.exists() or _identity_in(path) == identity:
            return path
    raise AssertionError("itertools.count ends")


def _identity_in(path: Path) -> str | None:
    """Return the identity in a PNG that this module wrote; None for any other file."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(_KEYWORD)
    except (OSError, ValueError, SyntaxError):  # Pillow's errors for what is not an image
        return None
