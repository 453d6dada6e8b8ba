"""A small static line chart as SVG, so that documentation needs neither a script nor a picture format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_COLOURS = (
    *("#000000", "#888888", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#a6611a"),
    *("#4d9221", "#c51b7d", "#01665e", "#542788"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 860, 420, 60, 34, 46, 220


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[float]]) -> str:
    """Return an SVG of ``lines`` over 1, 2, ... with a logarithmic vertical axis.

    Args:
        title: Above the chart.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis.
        lines: Positive values per name, drawn in order; infinite ones are left out.
    """
    finite = [value for line in lines.values() for value in line if 0 < value < math.inf]
    low, high = (min(finite), max(finite)) if finite else (1.0, 10.0)
    log_low, log_high = math.log10(low) - 0.03, math.log10(high) + 0.03
    n = max((len(line) for line in lines.values()), default=1)

    def x_of(index: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * index / max(n - 1, 1)

    def y_of(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (log_high - math.log10(value)) / (log_high - log_low)

    middle = (_WIDTH + _LEFT - _RIGHT) / 2
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            'font-size="12" role="img">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(14 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for value in _ticks(low, high):
        y = y_of(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        index = round(share * (n - 1))
        parts.append(f'<text x="{x_of(index):.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{index + 1}</text>')
    for place, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        points = [f"{x_of(i):.1f},{y_of(value):.1f}" for i, value in enumerate(line) if 0 < value < math.inf]
        dashes = "" if place < len(_COLOURS) else ' stroke-dasharray="5 3"'
        line_style = f'fill="none" stroke="{colour}" stroke-width="1.6"{dashes}'
        parts.append(f'<polyline {line_style} points="{" ".join(points)}"/>')
        y, x = _TOP + 8 + 15 * place, _WIDTH - _RIGHT + 12
        parts.append(f'<path d="M{x} {y}h18" {line_style}/><text x="{x + 24}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in (1, 1.5, 2, 3, 5, 7)]
    return [tick for tick in ticks if low * 0.95 <= tick <= high * 1.05]
