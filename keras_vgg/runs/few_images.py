"""Say when validation images are too few for the numbers that are chosen on them."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_IMAGES, LEAST_OF_CLASS = 100, 10
_NAMED = 3  # classes in a line


def few_images_text(
    chosen: str, class_names: Sequence[str], counts: Sequence[int], images: int | None = None
) -> str:
    """Return a line if there are fewer than 100 validation images, or fewer than 10 of a class.

    Args:
        chosen: What was chosen on the images, in the plural, such as "the thresholds".
        class_names: The classes.
        counts: The number of validation images of each class.
        images: The number of all validation images; None: the sum of the counts.

    Returns:
        The line; empty if there are enough images.
    """
    total = sum(counts) if images is None else images
    parts = [f"{total:,} in all, fewer than {LEAST_IMAGES}"] if total < LEAST_IMAGES else []
    few = [
        f"{count} of {name}"
        for name, count in zip(class_names, counts, strict=True)
        if count < LEAST_OF_CLASS
    ]
    if few:
        more = f" and of {len(few) - _NAMED:,} other classes" if len(few) > _NAMED else ""
        parts.append(f"fewer than {LEAST_OF_CLASS} of a class: {', '.join(few[:_NAMED])}{more}")
    if not parts:
        return ""
    return (
        f"{chosen} are from few validation images ({'; '.join(parts)}), and may not fit other "
        "images: hold out more with validation_fraction"
    )
