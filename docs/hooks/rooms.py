"""Draw which rooms of keras_vgg import which: docs/architecture.svg, from the imports themselves.

command:  python docs/hooks/rooms.py

A room is a module or a package directly inside `keras_vgg`. Its floor is its line in the import
contract of pyproject.toml, so every line of the picture goes down. The picture leaves out a line
that other lines imply: if A imports B, and B imports C, there is no line from A to C.
"""

from __future__ import annotations

import ast
import html
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "architecture.svg"
PACKAGE = "keras_vgg"

# All sizes are in pixels.
WIDTH, MARGIN = 760, 24
BOX, FLOOR = 28, 66  # heights
LETTER, PADDING = 7.6, 11
GAP, LANE = 14, 11  # space between boxes; width for a line that passes a floor


def floors() -> list[list[str]]:
    """Return the rooms of each floor, the highest first, from the import contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    return [line.split(" | ") for line in layers]


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the rooms that a module imports, also inside functions."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == PACKAGE and rest:
                yield rest[0]


def imports(rooms: set[str]) -> dict[str, set[str]]:
    """Return the other rooms that each room imports."""
    graph: dict[str, set[str]] = {room: set() for room in rooms}
    for room in rooms:
        path = ROOT / PACKAGE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            graph[room] |= set(imported(ast.parse(file.read_text())))
    return {room: names & rooms - {room} for room, names in graph.items()}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph without the lines that other lines imply."""

    def below(room: str) -> set[str]:
        return graph[room].union(*(below(other) for other in graph[room]))

    return {room: names - set().union(*map(below, names)) for room, names in graph.items()}


# Floor, room, and whether the node is the room's box or a line to the room that passes the floor.
Node = tuple[int, str, bool]


def drawn(rows: list[list[str]], graph: dict[str, set[str]]) -> tuple[list[list[Node]], set]:
    """Return the nodes of each floor, and the lines between nodes of neighbouring floors.

    All lines to one room join in one node on each floor that they pass.
    """
    floor = {room: number for number, row in enumerate(rows) for room in row}
    nodes = [[(number, room, True) for room in row] for number, row in enumerate(rows)]
    lines = set()
    for room in floor:
        users = [other for other in floor if room in graph[other]]
        for number in range(min((floor[user] for user in users), default=99) + 1, floor[room]):
            nodes[number].append((number, room, False))
        for user in users:
            for number in range(floor[user], floor[room]):
                start = (number, user if number == floor[user] else room, number == floor[user])
                lines.add((start, (number + 1, room, number + 1 == floor[room])))
    return nodes, lines


def width(node: Node) -> float:
    return LETTER * len(node[1]) + 2 * PADDING + GAP if node[2] else LANE


def spread(targets: list[float], widths: list[float]) -> list[float]:
    """Return the places nearest to the target places, in their order and without overlaps."""
    offsets = [sum(widths[:i]) + widths[i] / 2 for i in range(len(widths))]
    blocks: list[list[float]] = []  # sum and count of starts, for nodes that touch each other
    for place, offset in zip(targets, offsets, strict=True):
        blocks.append([place - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    free = max(WIDTH - 2 * MARGIN - sum(widths), 0)
    starts = [
        MARGIN + min(max(total / count - MARGIN, 0), free)
        for total, count in blocks
        for _ in range(int(count))
    ]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


def arranged(nodes: list[list[Node]], lines: set) -> dict[Node, float]:
    """Return the x of each node's middle, near the middle of the nodes that it is joined to."""
    joined: dict[Node, list[Node]] = {node: [] for row in nodes for node in row}
    for start, end in sorted(lines):
        joined[start].append(end)
        joined[end].append(start)
    places: dict[Node, float] = {}
    for row in nodes:
        even = [WIDTH * (i + 0.5) / len(row) for i in range(len(row))]
        places |= dict(zip(row, spread(even, [width(node) for node in row]), strict=True))
    for turn in range(60):
        for row in nodes if turn % 2 else reversed(nodes):
            targets = {
                node: sum(places[other] for other in joined[node]) / len(joined[node])
                if joined[node]
                else places[node]
                for node in row
            }
            order = sorted(row, key=lambda node: (round(targets[node], 3), node[1]))
            widths = [width(node) for node in order]
            middles = spread([targets[node] for node in order], widths)
            places |= dict(zip(order, middles, strict=True))
    return places


def picture() -> str:
    """Return the SVG: a box for each room, a line for each import that no others imply."""
    rows = floors()
    nodes, lines = drawn(rows, reduced(imports({room for row in rows for room in row})))
    places = arranged(nodes, lines)
    height = MARGIN * 2 + FLOOR * (len(rows) - 1) + BOX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
        f"<title>Rooms of {PACKAGE}: each imports only rooms below it</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fbfbfd"/>',
        '<g fill="none" stroke="#8fa3bf" stroke-width="1.3">',
    ]
    for start, end in sorted(lines):
        x, y = places[start], MARGIN + FLOOR * start[0] + (BOX if start[2] else BOX / 2)
        to_x, to_y = places[end], MARGIN + FLOOR * end[0] + (0 if end[2] else BOX / 2)
        half = (y + to_y) / 2
        parts.append(
            f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {half:.0f} {to_x:.0f} {half:.0f} '
            f'{to_x:.0f} {to_y:.0f}"/>'
        )
    parts.append('</g>\n<g text-anchor="middle">')
    for number, row in enumerate(rows):
        for room in row:
            x, y = places[number, room, True], MARGIN + FLOOR * number
            box_width = width((number, room, True)) - GAP
            parts.append(
                f'<rect x="{x - box_width / 2:.0f}" y="{y}" width="{box_width:.0f}" height="{BOX}" '
                f'rx="5" fill="#e3ebf6" stroke="#4a6a96"/>'
                f'<text x="{x:.0f}" y="{y + 18}" fill="#16283f">{html.escape(room)}</text>'
            )
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture())
    print(PICTURE.relative_to(ROOT))
