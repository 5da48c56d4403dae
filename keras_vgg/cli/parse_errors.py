"""What is wrong with the words of a command, in one short line.

tyro's own lines name Python types, and repeat the help of every similar option.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

# The options of commands whose value is a list with commas; others take words with spaces.
_WITH_COMMAS = {
    "evaluate": "--scales",
    "explain": "--method",
    "export": "--format",
    "stylize": "--style-layers",
}
_NUMBERS = {"INT": ("a whole number", "whole numbers"), "FLOAT": ("a number", "numbers")}


def plain_line(name: str, arguments: Sequence[str], text: str) -> str:
    """Return a line for tyro's message.

    Args:
        name: The command.
        arguments: The words behind it.
        text: tyro's message, as one line.
    """
    if found := re.fullmatch(r"Unrecognized options: ([^-](?:(?!, -).)*)", text):
        return _too_many(name, arguments, found[1])
    if found := re.match(r"Unrecognized options: (--?[\w-]+)", text):
        similar = re.findall(r"(?<= )--[a-z][\w-]+\b(?!:)", text[found.end() :])
        meant = did_you_mean(found[1], {option: option for option in similar})
        return f"{name} has no option {found[1]}: {meant or f'see keras-vgg {name} --help'}"
    if found := re.match(r"Missing value for argument '(.+?)'", text):
        return f"{found[1]} needs a value: see keras-vgg {name} --help"
    found = re.match(r"Error parsing (--[\w-]+): (.*); \1 (\{.*?\}(?= [A-Z])|\[.*?\]\]|\S+)", text)
    values = found and re.search(r"\[('.*?')\]|: ('.*')", found[2])
    if found is None or values is None:
        return text
    given = " ".join(re.findall(r"'(.*?)'", values[0]))
    return f"{found[1]} takes {_kinds(found[3])}, not {given!r}: see keras-vgg {name} --help"


def did_you_mean(word: str, meanings: Mapping[str, str]) -> str:
    """Return a question with what the words like this one stand for; "" if there are none."""
    close = difflib.get_close_matches(word, meanings, n=2, cutoff=0.7)
    return f"did you mean {' or '.join(meanings[other] for other in close)}?" if close else ""


def _too_many(name: str, arguments: Sequence[str], words: str) -> str:
    """Return a line for words that follow the last argument."""
    first = words.split(", ")[0]
    place = list(arguments).index(first) if first in arguments else 0
    option = arguments[place - 2] if place > 1 else ""
    are_paths = any("." in word or "/" in word for word in words.split(", "))
    if option and option == _WITH_COMMAS.get(name) and not are_paths:
        together = f"{arguments[place - 1]},{words.replace(', ', ',')}"
        return f"{option} takes a list with commas and no spaces: {option} {together}"
    return f"{name} takes no argument {words!r} after the others: see keras-vgg {name} --help"


def _kinds(spec: str) -> str:
    """Return what an option takes, of a text such as "{None}|{INT INT}|{auto}"."""
    if spec.startswith("["):
        return _NUMBERS[spec.strip("[").split()[0]][1]
    kinds = []
    for part in spec.split("|"):
        words = part.strip("{}").split()
        one, several = _NUMBERS.get(words[0], ("", ""))
        kinds.append((f"{len(words)} {several}" if len(words) > 1 else one) or part.strip("{}"))
    kinds.sort(key=lambda kind: kind == "None")  # last
    return " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
