"""Draw the packages of bdlbench and what imports what: ``python -m tools.drawing docs/packages.svg``.

A row of the drawing is a layer, and a package is above everything that it imports. An import that follows from others
is not drawn: if A imports B and B imports C, there is no arrow from A to C.
"""

import ast
import graphlib
import sys
import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "bdlbench"
WIDTH, HEIGHT, GAP, RISE = 208, 62, 16, 104
"""Width and height of a box, distance between boxes, and distance from one row to the next, in pixels."""


def parts() -> dict[str, tuple[str, set[str]]]:
    """For each part of the package, the first sentence of its docstring and the other parts that it imports."""
    found: dict[str, tuple[str, set[str]]] = {}
    for path in sorted(PACKAGE.iterdir()):
        if path.name.startswith("_") or (path.suffix != ".py" and not (path / "__init__.py").exists()):
            continue
        front = path if path.suffix == ".py" else path / "__init__.py"
        paragraph = (ast.get_docstring(ast.parse(front.read_text())) or "").split("\n\n")[0].replace("\n", " ")
        said = paragraph.split(". ")[0].rstrip(".")
        files = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
        found[path.stem] = said, {other for file in files for other in _imported(file)} - {path.stem}
    return {name: (said, imports & set(found)) for name, (said, imports) in found.items()}


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("bdlbench.")}
    return found


def layers(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The parts in rows, the lowest row first. Each part is one row above the highest part that it imports."""
    level: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(imports).static_order():
        level[name] = 1 + max((level[other] for other in imports[name]), default=-1)
    return [sorted(name for name in level if level[name] == row) for row in range(max(level.values()) + 1)]


def essential(imports: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports (a, b) of b by a that do not follow from other imports."""

    def below(name: str) -> set[str]:
        return imports[name].union(*map(below, imports[name]))

    return sorted((a, b) for a in imports for b in imports[a] if not any(b in below(c) for c in imports[a] - {b}))


def drawing() -> str:
    """The drawing as SVG. The same imports and docstrings give the same text."""
    found = parts()
    imports = {name: others for name, (_, others) in found.items()}
    rows = layers(imports)
    wide = max(map(len, rows)) * (WIDTH + GAP) + GAP
    high = len(rows) * RISE + GAP
    at: dict[str, tuple[float, float]] = {}
    for row, names in enumerate(reversed(rows)):
        begin = (wide - len(names) * (WIDTH + GAP) + GAP) / 2
        at |= {name: (begin + i * (WIDTH + GAP), GAP + row * RISE) for i, name in enumerate(names)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{wide:g}" height="{high:g}" fill="white"/>',
    ]
    for a, b in essential(imports):
        (x, y), (u, v) = at[a], at[b]
        lines.append(
            f'<path d="M{x + WIDTH / 2:g} {y + HEIGHT:g}L{u + WIDTH / 2:g} {v - 2:g}" stroke="#666" fill="none" '
            'marker-end="url(#tip)"/>'
        )
    for name, (x, y) in at.items():
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3fa" stroke="#33557f"/>'
            f'<text x="{x + WIDTH / 2:g}" y="{y + 18:g}" font-size="14" font-weight="bold" text-anchor="middle">{name}</text>'
        )
        for i, text in enumerate(_wrapped(found[name][0])):
            lines.append(
                f'<text x="{x + WIDTH / 2:g}" y="{y + 34 + 11 * i:g}" font-size="9.5" text-anchor="middle">{escape(text)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _wrapped(text: str, width: int = 38, most: int = 3) -> list[str]:
    return textwrap.wrap(text.replace("``", "").rstrip(":"), width, max_lines=most, placeholder=" ...")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawing())
