"""The images that a run is tested on: its own, also in a new place, or those of another set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from keras_vgg import data
from keras_vgg.console import note_once
from keras_vgg.data.table_rows import columns_of, read_table
from keras_vgg.fit import describe, file_sizes, load_source, require_same_data
from keras_vgg.image_paths import expanded
from keras_vgg.recipe import PATH_SOURCES, Recipe
from keras_vgg.run import Run

SPLITS = ("test", "validation", "train", "all")
UNKNOWN_CLASSES = ("error", "skip")
UnknownClasses = Literal["error", "skip"]
_NAMED = 10  # classes in a message
_NOTHING_DRAWN: dict[str, Any] = {
    "validation_fraction": 0.0,
    "test_fraction": 0.0,
    "folds": 0,
    "fold": 0,
}


@dataclass(frozen=True)
class RunImages:
    """Images with the class numbers of a run.

    Attributes:
        split: The images.
        name: The split's name: "test", "validation", "train", or "all" for a set without splits.
        source: The other set that they are from; None: the run's own data.
        columns: For another table: the names of its columns that were given.
        classes: For another set: the run's class number of each of its classes, -1 for unknown.
        skipped: The classes of the other set whose images are left out.
    """

    split: data.Split
    name: str
    source: str | None = None
    columns: str = ""
    classes: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of their posteriors, inside posteriors/."""
        return Path(self.name) if self.source is None else Path(self._set_name, self.name)

    def key(self, name: str) -> str:
        """Return the key in results.json, from what `evaluation_name` returns."""
        return name if self.source is None else f"{name}_of_{self._set_name}"

    def record(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Return figures for results.json; those of another set also state the set."""
        if self.source is None:
            return figures
        columns = {"columns": self.columns} if self.columns else {}
        skipped = {"skipped_classes": list(self.skipped)}
        return {"source": self.source, **columns, **skipped, **figures}

    @property
    def title(self) -> str:
        """The images in words, such as "test images"."""
        if self.source is None:
            return f"{self.name} images"
        of = f"images of {self.source}"
        return of if self.name == "all" else f"{self.name} {of}"

    @property
    def _set_name(self) -> str:
        """A name of the other set for files: the end of its path, and a digest of all of it.

        A table has a name for each choice of columns: another column of labels is another set.
        """
        assert self.source is not None
        end = re.sub(r"[^A-Za-z0-9]+", "_", re.split(r"[/\\:]", self.source.rstrip("/\\"))[-1])
        whole = f"{self.source}\n{self.columns}" if self.columns else self.source
        digest = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{end.strip('_')[:30] or 'images'}_{digest[:8]}"


def in_data_dir(run: Run, data_dir: str | None, source: str | None = None) -> Run:
    """Return a run that looks for its TFDS data set in another folder; None: the run as it is.

    Nothing is written.

    Args:
        run: The run.
        data_dir: The folder of prepared data sets.
        source: The set that replaces the run's own, if there is one.

    Raises:
        ValueError: the images are not from TFDS.
        FileNotFoundError: there is no such folder.
    """
    if data_dir is None:
        return run
    name = source or run.recipe.source
    if name == "digits" or name.partition(":")[0] in PATH_SOURCES:
        raise ValueError(
            f"data_dir={data_dir!r} is for data sets of TFDS, and the images are from {name}; if "
            "they have moved, name their new place with --source"
        )
    folder = expanded(data_dir).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir={data_dir!r}: there is no such folder")
    return Run(run.directory, run.recipe.replace(data_dir=str(folder)))


def with_columns(run: Run, columns: str | None, source: str | None) -> Run:
    """Return a run that reads another table by these columns' names; None: the run as it is.

    Nothing is written.

    Args:
        run: The run.
        columns: As in `keras_vgg.data.load_source`; "": the columns have common names. Without
            `with_columns`, another table needs the names of the run's own.
        source: The other table, csv:FILE.

    Raises:
        ValueError: the source is no table, or has no such columns.
        FileNotFoundError: there is no such table.
    """
    if columns is None:
        return run
    form, _, path = (source or "").partition(":")
    if form != "csv":
        named = f"source={source!r} is none" if source else "there is no source"
        raise ValueError(
            f"columns={columns!r} names the columns of another table, and {named}; name the table "
            "with --source csv:FILE"
        )
    read_table(expanded(path), columns)
    return Run(run.directory, run.recipe.replace(columns=columns))


def open_images(
    run: Run,
    split: str | None = None,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
    default_split: str = "test",
) -> RunImages:
    """Open images to test a run on.

    Args:
        run: The run.
        split: "test", "validation" or "train". None: `default_split` of the run's own images,
            "test" of another set, or "all" images of another set that has no splits of its own.
        source: As `keras_vgg.data.load_source` takes it. None: the run's own. If the run's data
            has moved, name its new place: it is the run's own if class names and fingerprints are
            equal. Anything else is another set; its classes are matched by name.
        unknown_classes: If another set has classes that the run does not know: "error", or "skip"
            their images.
        default_split: The split of the run's own images if `split` is None.

    Raises:
        ValueError: there is no such split; the run's own data has changed; the run does not know
            all classes of another set, or none of them.
        FileNotFoundError: there is nothing at the source.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if unknown_classes not in UNKNOWN_CLASSES:
        raise ValueError(
            f"unknown_classes must be {' or '.join(UNKNOWN_CLASSES)}, not {unknown_classes!r}"
        )
    own_split = split or default_split
    if source is None and unknown_classes == "skip":
        raise ValueError("unknown_classes is for another set; name the set with --source")
    if source is None:
        advice = f"--source {run.recipe.source} evaluates on the images as they are now"
        return RunImages(_own_split(run, own_split, advice), own_split)
    recipe = recipe_of(run, source)
    whole = _without_held_out(recipe)
    moved = _moved(run, recipe, whole)
    if moved is not None:
        return _own_or_rewritten(run, moved, own_split, recipe)
    if recipe.group_pattern:
        whole = _with_groups(recipe, whole)
    return _of_another_set(run, whole, split, recipe, unknown_classes)


def open_split(run: Run, name: str, source: str | None = None) -> data.Split:
    """Open a split of the run's data, with the same images as when the run began.

    Args:
        run: The run.
        name: "test", "validation" or "train".
        source: The place to which the data has moved; None: it has not.

    Raises:
        ValueError: the data has no such split, or has changed.
        FileNotFoundError: there is nothing at the source.
    """
    if source is None:
        return _own_split(run, name, "put the images back, or train in another workdir")
    recipe = recipe_of(run, source)
    moved = _moved(run, recipe, _without_held_out(recipe))
    if moved is None or not _has_the_files(run, moved):
        other = "its classes, or the images of its splits, are others"
        if moved is not None:
            other = "its files have the same names and other sizes"
        raise ValueError(
            f"{recipe.source} does not hold the images of {run.directory}, which are from "
            f"{run.recipe.source}: {other}"
        )
    return _named_split(moved, name)


def as_arrays(split: data.Split, transform: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Return all images of a split, float32 [n, size, size, channels], and their labels.

    Args:
        split: The images.
        transform: What brings an image to the network's input (`fit.evaluation_transform`).

    Raises:
        ValueError: an image is damaged; the error names it.
    """
    with data.bad_images_named(split):
        batches = list(data.evaluation_dataset(split, 64, transform).as_numpy_iterator())
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _own_split(run: Run, name: str, advice: str) -> data.Split:
    try:
        source = load_source(run.recipe)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {run.directory} has its images from there; if they have moved, name their "
            "new place with --source, or with --data-dir for a data set of TFDS"
        ) from error
    split = _named_split(source, name)
    require_same_data(run, describe(source), advice)
    return split


def _named_split(source: data.Source, name: str) -> data.Split:
    split = source.splits().get(name)
    if split is None:
        raise ValueError(
            f"source {source.name} has no {name} split; it has {', '.join(source.splits())}"
        )
    return split


def recipe_of(run: Run, source: str) -> Recipe:
    """Return the run's recipe with another source; what names parts of the first is left out."""
    changes: dict[str, Any] = {"source": source}
    if source != run.recipe.source:
        changes |= dict.fromkeys(("train_split", "validation_split", "test_split"))
    form, _, path = source.partition(":")
    if form != "csv":
        changes["columns"] = ""
    elif run.recipe.columns and source != run.recipe.source and (file := expanded(path)).is_file():
        changes["columns"] = columns_of(file, run.recipe.columns)
    return run.recipe.replace(**changes).with_absolute_paths()


def _moved(run: Run, recipe: Recipe, whole: data.Source) -> data.Source | None:
    """Return the source of a recipe if its images have the run's names and labels, else None.

    `whole` is the same source without held-out splits.
    """
    described = run.read_json("data.json")
    if list(whole.class_names) != described["class_names"]:
        return None
    images = sum(split["images"] for split in described["splits"].values())
    splits = whole.splits()
    if recipe.folds:  # they leave the source's own test split alone
        splits.pop("test", None)
    if sum(split.size for split in splits.values()) != images:
        return None
    try:
        source = load_source(recipe)
    except ValueError:  # as large as the run's data, but too small for its splits
        return None
    same = describe(source)["splits"] == dict(described["splits"])
    return source if same else None


def _has_the_files(run: Run, moved: data.Source) -> bool:
    """Return whether files have the sizes of the run's own; earlier versions did not keep them."""
    stated = run.read_json("data.json").get("file_sizes")
    return stated is None or stated == file_sizes(moved)


def _own_or_rewritten(run: Run, moved: data.Source, name: str, recipe: Recipe) -> RunImages:
    """Return a split of `_moved`: the run's own, or another set with the run's own splits."""
    split = _named_split(moved, name)
    if _has_the_files(run, moved):
        return RunImages(split, name)
    note_once(
        f"the images of {recipe.source} have the names of the images of {run.directory}, and files "
        f"of other sizes: they count as another set, of which {name} has the same names"
    )
    classes = tuple(range(len(run.class_names)))
    return RunImages(split, name, recipe.source, recipe.columns, classes)


def _without_held_out(recipe: Recipe) -> data.Source:
    """Open a source with no more splits than it has itself."""
    return load_source(recipe.replace(**_NOTHING_DRAWN, group_pattern=None))


def _with_groups(recipe: Recipe, whole: data.Source) -> data.Source:
    """Return a source of `_without_held_out` with the groups of the recipe's pattern, if any."""
    try:
        return load_source(recipe.replace(**_NOTHING_DRAWN))
    except ValueError as error:  # its paths name no groups, or a column does
        if whole.train.groups is None:
            note_once(f"{recipe.source} has no groups, so intervals are over images: {error}")
        return whole


# --- another set -----------------------------------------------------------------------------


def require_labels_alike(
    name: str, source: data.Source, network: str | Path, several_labels: bool
) -> None:
    """Raise ValueError if a source gives an image several labels and a network one, or reversed."""
    if source.several_labels != several_labels:
        kinds = ("one label", "several labels")
        raise ValueError(
            f"source {name} gives an image {kinds[source.several_labels]}, and {network} "
            f"{kinds[several_labels]}; choose a source of the same kind"
        )


def _of_another_set(
    run: Run,
    other: data.Source,
    split: str | None,
    recipe: Recipe,
    unknown_classes: UnknownClasses,
) -> RunImages:
    name = recipe.source
    require_labels_alike(name, other, run.directory, run.several_labels)
    splits = other.splits()
    if list(splits) == ["train"]:
        if split not in (None, "all"):
            raise ValueError(
                f"source {name} has no splits of its own, so no {split} split; leave out the "
                "split to evaluate on all its images"
            )
        chosen, split_name = splits["train"], "all"
    else:
        split_name = split or "test"
        if split_name not in splits:
            raise ValueError(
                f"source {name} has no {split_name} split; choose one of {', '.join(splits)}"
            )
        chosen = splits[split_name]
    if name == run.recipe.source:
        same = recipe.columns == Run.open(run.directory).recipe.columns
        why = "have changed since the training of" if same else "by other columns are those of"
        note_once(
            f"the images of {name} {why} {run.directory}: it may have been trained on some of them"
        )
    for left_out in other.left_out:
        note_once(f"{name}: not read: {left_out}")
    classes, skipped = _matched(run, other.class_names, name, unknown_classes)
    labelled, present = data.relabelled(chosen, np.array(classes), len(run.class_names))
    absent = [one for number, one in enumerate(run.class_names) if number not in present]
    if absent:
        image = "image" if split_name == "all" else f"{split_name} image"
        note_once(f"{name} has no {image} of {_listed(absent)}")
    if labelled.size < chosen.size:
        why = f"the run does not know {_listed(skipped)}" if skipped else "they have no label"
        left_out = f"{chosen.size - labelled.size:,} of {chosen.size:,} images are left out"
        note_once(f"{name}: {left_out}: {why}")
    if not labelled.size:
        raise ValueError(f"source {name}: the run knows no class of the {split_name} images")
    return RunImages(labelled, split_name, name, recipe.columns, tuple(classes), tuple(skipped))


def _matched(
    run: Run, class_names: Sequence[str], name: str, unknown_classes: UnknownClasses
) -> tuple[list[int], list[str]]:
    """Return the run's number of each class by name, -1 for unknown, and the unknown classes.

    Names may repeat, as the two cranes of ImageNet do: then the classes must be the run's.
    """
    known = list(run.class_names)
    if list(class_names) == known:
        return list(range(len(known))), []
    for names, owner in ((known, str(run.directory)), (list(class_names), name)):
        twice = sorted({one for one in names if names.count(one) > 1})
        if twice:
            raise ValueError(
                f"the classes of {name} cannot be matched by name: {owner} has {_listed(twice)} "
                "more than once"
            )
    numbers = {class_name: number for number, class_name in enumerate(known)}
    unknown = [one for one in class_names if one not in numbers]
    if len(unknown) == len(class_names):
        raise ValueError(
            f"the run {run.directory} knows no class of {name}, which has {_listed(unknown)}; it "
            f"knows {_listed(known)}"
        )
    if unknown and unknown_classes == "error":
        raise ValueError(
            f"the run {run.directory} does not know {len(unknown)} of the {len(class_names)} "
            f"classes of {name}: {_listed(unknown)}; it knows {_listed(known)}. Rename the "
            "classes, or leave their images out with --unknown-classes skip"
        )
    return [numbers.get(one, -1) for one in class_names], unknown


def _listed(names: Sequence[str]) -> str:
    first = ", ".join(names[:_NAMED])
    return first if len(names) <= _NAMED else f"{first} and {len(names) - _NAMED} more"
