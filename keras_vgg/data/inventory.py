"""What a source holds and what it leaves out, with counts and names: nothing is lost silently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from keras_vgg.data.equal import EqualImages, equal_in
from keras_vgg.data.groups import SharedGroups, shared_groups
from keras_vgg.data.left_out import NAMED, LeftOut, listed
from keras_vgg.data.sides import Sizes, few_levels_text, sizes_of
from keras_vgg.data.split import Source

_UNEVEN = 3  # the largest class has so many times the smallest one's images


@dataclass(frozen=True)
class Inventory:
    """What a source holds.

    Attributes:
        class_counts: Split -> images of each class, in the order of the classes.
        left_out: What of a folder is not read, the most frequent reason first.
        equal: Equal images on two sides of a split, and equal images of two classes.
        absent: Split -> the classes that it has no image of.
        shared_groups: Groups that a source's own splits have on two sides.
        sizes: Split -> sizes of its images, and its 16-bit files of few levels; None where no image
            states its size. `take_inventory` looks at 200 images and decodes ten 16-bit files of
            each split; `check` looks at all.
    """

    class_names: tuple[str, ...]
    class_counts: dict[str, list[int]]
    left_out: tuple[LeftOut, ...]
    equal: tuple[EqualImages, ...]
    absent: dict[str, tuple[str, ...]]
    shared_groups: tuple[SharedGroups, ...] = ()
    sizes: dict[str, Sizes | None] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return at most five lines on what a user should know; none where all is as it should."""
        lines = self._few_levels()
        counts = self.class_counts.get("train", [])
        if counts and max(counts) >= _UNEVEN * min(counts):
            most, least = (self.class_names[int(f(counts))] for f in (np.argmax, np.argmin))
            lines.append(
                f"uneven classes: {most} has {max(counts):,} training images, "
                f"{least} {min(counts):,}"
            )
        for split, names in self.absent.items():
            lines.append(f"{split} has no image of {listed(names[:NAMED], len(names))}")
        lines += [str(shared) for shared in self.shared_groups]
        lines += [str(equal) for equal in self.equal]
        if self.left_out:
            total = sum(reason.count for reason in self.left_out)
            first = "; ".join(map(str, self.left_out[:2]))
            more = len(self.left_out) - 2
            others = f"; and {more} more reason{'s' * (more > 1)}" if more > 0 else ""
            lines.append(f"left out {total:,}: {first}{others}")
        if len(lines) > 5:
            more = f"and {len(lines) - 4} more remarks"
            lines[4:] = [f"{more}: see data.json, or the report of data check"]
        return lines

    def _few_levels(self) -> list[str]:
        known = [sizes for sizes in self.sizes.values() if sizes]
        flat = [row for sizes in known for row in sizes.few_levels]
        if not flat:
            return []
        deep = sum(sizes.deep for sizes in known)
        return [f"{few_levels_text(flat, deep)}; set bit_depth, such as stretch"]

    @classmethod
    def from_json(cls, class_names: Sequence[str], values: Mapping[str, Any]) -> Inventory:
        """Return the inventory that `as_json` wrote."""
        return cls(
            class_names=tuple(class_names),
            class_counts=dict(values["class_counts"]),
            left_out=tuple(LeftOut(**reason) for reason in values["left_out"]),
            equal=tuple(EqualImages(**images) for images in values["equal"]),
            absent={name: tuple(classes) for name, classes in values["absent"].items()},
            # Runs of earlier versions have no groups and no sizes.
            shared_groups=tuple(
                SharedGroups(**shared) for shared in values.get("shared_groups", ())
            ),
            sizes={
                name: None if sizes is None else _sizes_from_json(sizes)
                for name, sizes in values.get("sizes", {}).items()
            },
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = asdict(self)
        names = ("class_counts", "left_out", "equal", "absent", "shared_groups", "sizes")
        return json.loads(json.dumps({name: values[name] for name in names}))  # lists for tuples


def take_inventory(
    source: Source,
    sizes: Mapping[str, Sizes | None] | None = None,
    counts: Mapping[str, list[int]] | None = None,
) -> Inventory:
    """Return what a source holds, from its labels and files; equal files are found by hash.

    Args:
        sizes: Those of each split. None: look at some images.
        counts: Images of each class, of each split. None: those that are known. Labels of TFRecord
            files are in the files; a pack states how many there are.
    """
    splits = source.splits()
    if counts is None:
        counts = source.class_counts()
    absent = {
        name: tuple(c for c, n in zip(source.class_names, numbers, strict=True) if n == 0)
        for name, numbers in counts.items()
    }
    return Inventory(
        source.class_names,
        {**counts},
        source.left_out,
        equal_in(source),
        {name: classes for name, classes in absent.items() if classes},
        shared_groups(splits),
        {name: sizes_of(split) for name, split in splits.items()} if sizes is None else {**sizes},
    )


def _sizes_from_json(values: Mapping[str, Any]) -> Sizes:
    few_levels = tuple((name, low, high) for name, low, high in values["few_levels"])
    height, width = (*values["height"],), (*values["width"],)
    return Sizes(values["images"], height, width, values["deep"], few_levels)
