"""Charts as SVG text whose colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 46
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From values to pixels. ``low`` < ``high``; both > 0 for a logarithmic one."""

    label: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, label: str, values: Iterable[float], *, log: bool = False, zero: bool = False) -> Axis:
        """With a margin; ``zero``: begins there. Values that are not finite (not positive, if ``log``) are ignored."""
        kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        if not kept:
            return cls(label, 0.1 if log else 0.0, 1.0, log)
        low, high = min(kept), max(kept)
        if log:
            factor = max((high / low) ** 0.05, 1.05) if high > low else 2.0
            return cls(label, low / factor, high * factor, True)
        pad = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        return cls(label, 0.0 if zero and low >= 0 else low - pad, high + pad)

    def place(self, value: float) -> float:
        """In [0, 1] between low and high."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """A handful of round numbers."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            steps: tuple[int, ...] = (1,) if len(powers) >= 3 else (1, 2, 5)
            wider = range(math.floor(math.log10(self.low)), powers.stop + 1)
            return [m * 10.0**p for p in wider for m in steps if self.low <= m * 10.0**p <= self.high]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """As a tick or a table shows it: four significant digits at most."""
    return f"{value:.4g}"


@dataclass
class Chart:
    """Two axes and what is drawn between them, in the order of the calls."""

    x: Axis
    y: Axis
    width: int = 640
    height: int = 400
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        """Pixels from the top left corner."""
        inner_w, inner_h = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return (
            round(_LEFT + inner_w * self.x.place(x), 1),
            round(_TOP + inner_h * (1 - self.y.place(y)), 1),
        )

    def raw(self, svg: str) -> None:
        self.parts.append(svg)

    def line(self, points: Sequence[Point], style: str, *, step: bool = False) -> None:
        """``step``: a value holds until the next."""
        if points:
            self.parts.append(f'<path class="{style}" d="{self.path(points, step=step)}"/>')

    def path(self, points: Sequence[Point], *, step: bool = False) -> str:
        placed = [self.at(*p) for p in points]
        text = f"M{_n(placed[0][0])} {_n(placed[0][1])}"
        for x, y in placed[1:]:
            text += f"H{_n(x)}V{_n(y)}" if step else f"L{_n(x)} {_n(y)}"
        return text

    def area(self, points: Sequence[Point], style: str) -> None:
        if points:
            self.parts.append(f'<path class="{style}" d="{self.path(points)}Z"/>')

    def bar(self, low: Point, high: Point, style: str) -> None:
        (x0, y0), (x1, y1) = self.at(*low), self.at(*high)
        self.line([low, high], style)
        if x0 == x1:  # an upright interval has caps
            self.parts.append(f'<path class="{style}" d="M{_n(x0 - 4)} {_n(y0)}h8M{_n(x1 - 4)} {_n(y1)}h8"/>')

    def render(self, label: str, *, name: str = "", interactive: bool = False) -> Markup:
        """The whole ``svg`` element; ``label`` says in words what it shows."""
        frame = []
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        for tick in self.x.ticks():
            px = _n(self.at(tick, self.y.low)[0])
            frame.append(f'<path class="grid" d="M{px} {_TOP}V{bottom}"/>')
            frame.append(f'<text class="tick" x="{px}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
        for tick in self.y.ticks():
            py = self.at(self.x.low, tick)[1]
            frame.append(f'<path class="grid" d="M{_LEFT} {_n(py)}H{right}"/>')
            frame.append(f'<text class="tick" x="{_LEFT - 6}" y="{_n(py + 4)}" text-anchor="end">{number(tick)}</text>')
        middle = (_LEFT + right) / 2
        frame.append(
            f'<text class="axis" x="{_n(middle)}" y="{self.height - 8}" text-anchor="middle">'
            f"{escape(self.x.label)}</text>"
        )
        up = (_TOP + bottom) / 2
        first, _, rest = self.y.label.partition(" (")
        lines = [first, f"({rest}"] if rest and len(self.y.label) * 6 > bottom - _TOP else [self.y.label]
        for i, words in enumerate(lines):
            frame.append(
                f'<text class="axis" transform="translate({12 + 13 * i} {_n(up)}) rotate(-90)" text-anchor="middle">'
                f"{escape(words)}</text>"
            )
        return wrap("".join(frame) + "".join(self.parts), self.width, self.height, label, name, interactive)


def wrap(inner: str, width: int, height: int, label: str, name: str = "", interactive: bool = False) -> Markup:
    """An ``svg`` element with a text alternative; ``interactive``: what is inside can be reached by itself."""
    role = "group" if interactive else "img"
    identity = f' id="{escape(name)}"' if name else ""
    return Markup(
        f'<svg{identity} viewBox="0 0 {width} {height}" role="{role}" aria-label="{escape(label)}">{inner}</svg>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
