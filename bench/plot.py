"""How are curves drawn? As SVG, written by hand: panels of lines need no plotting library. Sizes are logarithmic."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 360  # pixels, of one panel
HEIGHT: Final = 240
LEFT: Final = 62
RIGHT: Final = 14
TOP: Final = 34
BOTTOM: Final = 44
COLOURS: Final = ("#0b6e4f", "#c44536", "#2d6cdf", "#8a5a00")
TICKS: Final = 4

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: curves by name, over one axis of sizes."""

    title: str
    across: str
    curves: Mapping[str, Curve]


def svg(panels: Sequence[Panel], columns: int = 2) -> str:
    """Return the panels as one picture, `columns` beside each other, with one legend."""
    rows = -(-len(panels) // columns)
    width, height = columns * WIDTH, rows * HEIGHT + 24
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for at, name in enumerate(names):
        x = LEFT + at * 130
        parts.append(f'<rect x="{x}" y="8" width="14" height="4" fill="{COLOURS[at % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 20}" y="14" fill="#222222">{escape(name)}</text>')
    for number, panel in enumerate(panels):
        x, y = (number % columns) * WIDTH, 20 + (number // columns) * HEIGHT
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _panel(panel, names)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, names: Sequence[str]) -> list[str]:
    points = [point for curve in panel.curves.values() for point in curve]
    sizes = sorted({size for size, _ in points})
    top = _round_up(max(value for _, value in points))
    low, high = math.log2(sizes[0]), math.log2(sizes[-1]) or 1.0
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(size: float) -> float:
        return LEFT + inner_width * (math.log2(size) - low) / ((high - low) or 1.0)

    def y(value: float) -> float:
        return TOP + inner_height * (1 - value / top)

    parts = [f'<text x="{LEFT}" y="{TOP - 10}" fill="#222222" font-weight="bold">{escape(panel.title)}</text>']
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555555">{value:g}</text>')
    below = HEIGHT - BOTTOM + 16
    parts += [f'<text x="{x(s):.1f}" y="{below}" text-anchor="middle" fill="#555555">{s:g}</text>' for s in sizes]
    across = f'<text x="{LEFT + inner_width / 2}" y="{HEIGHT - BOTTOM + 32}" text-anchor="middle" fill="#555555">'
    parts.append(f"{across}{escape(panel.across)}</text>")
    for name, curve in panel.curves.items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        path = "L".join(f"{x(size):.1f} {y(value):.1f}" for size, value in sorted(curve))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="2.5" fill="{colour}"/>' for size, value in curve]
    return parts


def _round_up(value: float) -> float:
    """Return the next number of one or two digits and zeros that four ticks divide well."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * unit >= value)
