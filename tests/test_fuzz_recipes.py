"""Random recipes: each is a ValueError of one short line, or a recipe that can be used."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from keras_vgg.recipe import Recipe

pytestmark = pytest.mark.slow

FIELDS = [field.name for field in dataclasses.fields(Recipe)]
NUMBERS = (0, 1, -1, 2, 3, 32, 0.5, 1e-9, 1e30, -0.0, 2**31, 10**25, 10**400)
NUMBERS += (float("nan"), float("inf"), -float("inf"), 1e308)
WORDS = ("", "D", "vgg16", "A-LRN", "auto", "cpu", "2", "0", "imagenet", "none", "all", "on", "off")
WORDS += ("cosine", "step", "gap", "conv", "normal:0.1", "zeros", "\0", "\ud800", "x" * 200_000)
OTHERS = (None, True, False, [], {}, [[]], {"a": 1}, [1, 2], [32, 40], [1.0, 2.0, 3.0], ["a"])


def random_value(random: np.random.Generator, depth: int = 0) -> Any:
    """Something that JSON holds."""
    kind = random.integers(6)
    if kind < 4:
        pool = (NUMBERS, WORDS, OTHERS, NUMBERS)[kind]
        return pool[random.integers(len(pool))]
    if kind == 4:
        return int(random.integers(-100, 5000)) if random.random() < 0.5 else random.normal()
    if depth > 3:
        return []
    return [random_value(random, depth + 1) for _ in range(random.integers(5))]


def require_useful(recipe: Recipe) -> None:
    """It is kept in JSON, and its network has a table of layers."""
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.layers(10)
    assert recipe.differences(recipe) == {}
    hash(recipe)


def require_readable(error: ValueError, *names: str) -> None:
    """The message is one short line with one of these words."""
    message = str(error)
    assert 10 < len(message) < 400, message[:400]
    assert message.count("\n") == 0
    assert not names or any(name in message for name in names), message


def changes_of(random: np.random.Generator) -> dict[str, Any]:
    return {str(random.choice(FIELDS)): random_value(random) for _ in range(random.integers(1, 4))}


def test_random_values_of_fields() -> None:
    random, made = np.random.default_rng(0), 0
    for _ in range(20_000):
        changes = changes_of(random)
        try:
            recipe = Recipe(**changes)
        except ValueError as error:
            require_readable(error, *changes, "configuration")
            continue
        made += 1
        require_useful(recipe)
    assert made > 500


def test_random_json() -> None:
    random, made = np.random.default_rng(1), 0
    names = [*FIELDS, "", "epoch", "x" * 100_000, "self", "__class__"]
    for _ in range(5_000):
        # A right value beside a random one: with many fields, two right ones are rare.
        values: Any = {names[random.integers(len(names))]: random_value(random), "epochs": 3}
        if random.random() < 0.1:
            values = random_value(random)
        text = json.dumps(values)
        try:
            recipe = Recipe.from_json(text)
        except ValueError as error:
            require_readable(error)
            continue
        made += 1
        require_useful(recipe)
    assert made > 50


def test_damaged_json() -> None:
    random, text = np.random.default_rng(2), Recipe().to_json().encode()
    deep = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b"9" * 100_000, b"NaN"]
    deep += [b'{"epochs": ' + b"[" * depth + b"]" * depth + b"}" for depth in (100, 300, 900)]
    damaged = [bytearray(text) for _ in range(5_000)]
    for content in damaged:
        for place in random.integers(0, len(content), random.integers(1, 4)):
            content[place] = random.integers(128)
    for content in [*deep, *damaged]:
        try:
            recipe = Recipe.from_json(content.decode())
        except ValueError as error:
            require_readable(error)
            continue
        require_useful(recipe)
