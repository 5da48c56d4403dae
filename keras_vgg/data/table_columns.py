"""Which column of a table holds what: common names, and names that a user gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

# What each column holds -> the names that are recognised, in small letters with underscores.
COLUMN_NAMES: Mapping[str, tuple[str, ...]] = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("image", "image_path", "image_file", "image_name", "img", "img_path"),
    ),
    "label": ("label", "class", "class_name", "target", "category"),
    "labels": ("labels", "tags", "classes", "categories"),
    "split": ("split", "set", "subset", "partition"),
    "group": (
        *("group", "group_id", "patient", "patient_id"),
        *("subject", "subject_id", "session", "session_id"),
    ),
}


def parse_columns(columns: str) -> dict[str, str]:
    """Return what each column holds -> its name, of a text such as "path=file,group=patient"."""
    parsed: dict[str, str] = {}
    for part in columns.split(",") if columns.strip() else ():
        role, equals, name = (text.strip() for text in part.partition("="))
        if not equals or role not in COLUMN_NAMES or role in parsed:
            raise ValueError(
                f"columns must name each of {', '.join(COLUMN_NAMES)} at most once, such as "
                f"path=file,label=diagnosis, not {columns!r}"
            )
        parsed[role] = name
    return parsed


def find_roles(
    file: Path, names: Sequence[str], columns: str, wanted: Sequence[str] = tuple(COLUMN_NAMES)
) -> dict[str, str]:
    """Return what a column holds -> its name, for the columns that are named or recognised.

    Columns that hold something else than what is `wanted` are not looked for.
    """
    given = parse_columns(columns)
    roles: dict[str, str] = {}
    for role in wanted:
        known = COLUMN_NAMES[role]
        if role in given:
            matches = [name for name in names if given[role] and name == given[role]]
            if given[role] and not matches:
                raise ValueError(
                    f"{file} has no column {given[role]!r}, which columns={columns!r} names; it "
                    f"has {quoted(names)}"
                )
        elif role in ("label", "labels") and ("label" in given or "labels" in given):
            continue
        else:
            matches = [n for n in names if plain(n) in known and n not in given.values()]
        if len(matches) > 1 and len(set(matches)) == 1:
            raise ValueError(
                f"{file} has {len(matches)} columns {matches[0]!r}: rename one of them"
            )
        if len(matches) > 1:
            raise ValueError(
                f"{file}: the {role} may be in any of the columns {quoted(matches)}; choose one "
                f"with columns='{role}={matches[0]}'"
            )
        if matches:
            roles[role] = matches[0]
    if "label" in roles and "labels" in roles:
        raise ValueError(
            f"{file} has a column of one label and one of several, {roles['label']!r} and "
            f"{roles['labels']!r}; choose one, such as columns='label={roles['label']}'"
        )
    return roles


def plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
