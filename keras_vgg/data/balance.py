"""Balanced sampling: every class equally often, in an order that seed and epoch decide."""

from __future__ import annotations

import numpy as np


def balanced_order(
    labels: np.ndarray, steps: int, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    """Return the image at each place of an epoch: int32 [steps * batch_size], batch after batch.

    In every batch, the classes that have images differ by at most one image; in all epochs so far
    too. The images of a class come in a random order without replacement, in which the next epoch
    goes on. When all have come, they come again in another order. The order is a function of the
    arguments alone.

    Args:
        labels: The class of each image, int [n].
        steps: Batches of an epoch.
        batch_size: Images of a batch, on all hosts together.
        seed: The recipe's seed.
        epoch: The number of the epoch, from 0.
    """
    present, members = np.unique(labels, return_inverse=True)
    classes = len(present)
    images = _places(members, classes)
    rng = np.random.default_rng([seed, epoch])
    sets, extras = divmod(batch_size, classes)
    columns = [rng.permuted(np.tile(np.arange(classes), (steps, 1)), axis=1) for _ in range(sets)]
    earlier = np.full(classes, epoch * steps * sets)
    if extras:
        drawn, earlier_extras = _extras(classes, steps, extras, seed, epoch, rng)
        columns.append(drawn)
        earlier += earlier_extras
    order = np.concatenate(columns, axis=1).ravel()
    result = np.empty(len(order), np.int32)
    for place, turns in enumerate(_places(order, classes)):
        numbers = earlier[place] + np.arange(len(turns))  # since the start of training
        result[turns] = _in_turn(images[place], numbers, seed, place)
    return result


def _places(values: np.ndarray, classes: int) -> list[np.ndarray]:
    """Return where each of 0 ... classes - 1 is among the values, in rising order."""
    ends = np.cumsum(np.bincount(values, minlength=classes))
    return np.split(np.argsort(values, kind="stable"), ends[:-1])


def _extras(
    classes: int, steps: int, extras: int, seed: int, epoch: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes that have one image more in each batch, and how often they had before.

    The classes are drawn in rounds of all of them, so that each is drawn equally often. What
    remains of the epoch's draws is a shorter round, whose classes a fixed order decides: the next
    epoch goes on in that order.

    Returns:
        Classes [steps, extras], in a batch without repetition; draws in earlier epochs [classes].
    """
    rounds, rest = divmod(steps * extras, classes)
    fixed = np.random.default_rng(seed).permutation(classes)
    first = fixed[np.arange(epoch * rest, (epoch + 1) * rest) % classes]
    drawn = list(rng.permutation(first))
    for _ in range(rounds):
        batch = drawn[len(drawn) - len(drawn) % extras :]  # the classes of an unfinished batch
        round_order = rng.permutation(classes)
        repeated = np.isin(round_order, batch)
        drawn += [*round_order[~repeated], *round_order[repeated]]
    earlier = np.full(classes, epoch * rounds)
    earlier[fixed] += (epoch * rest - np.arange(classes) + classes - 1) // classes
    return np.reshape(drawn, (steps, extras)), earlier


def _in_turn(images: np.ndarray, numbers: np.ndarray, seed: int, place: int) -> np.ndarray:
    """Return a class's image for each draw, numbered from the start of training."""
    passes, places = np.divmod(numbers, len(images))
    result = np.empty(len(numbers), np.int32)
    for number in np.unique(passes):
        order = np.random.default_rng([seed, place, int(number)]).permutation(images)
        result[passes == number] = order[places[passes == number]]
    return result
