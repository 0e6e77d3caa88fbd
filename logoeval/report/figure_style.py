"""The style of all figures: colours, lines and marks of the runs, and a panel as inline SVG.

A panel is about as wide as a telephone, so that its text is readable there; a page puts several side by side. Colours
are CSS variables of the page, so the page decides them, also in its dark style.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from logodata.common.markup import Html, raw, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib draws with these placeholder colours. Each is replaced by a variable of the style sheet.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c")
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
_DASHED, _DASHDOT = (0, (4, 2.5)), (0, (6, 1.5, 1, 1.5))
_MARKERS = ("o", "o", "s", "^", "D", "v", "P", "X")
WIDTH_INCHES = 3.45
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "logoeval",
    "text.parse_math": False,  # a dollar sign in a folder's name is a dollar sign
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def series_style(number: int) -> dict[str, Any]:
    """Return the colour and line style of run ``number``. The line of the first run is dashed."""
    linestyle = "solid" if 0 < number < len(SERIES) else _DASHDOT if number else _DASHED
    return {"color": SERIES[number % len(SERIES)], "linestyle": linestyle}


def mark_style(number: int) -> dict[str, Any]:
    """Return the mark of run ``number``. Marks differ in shape, for grey print; the first run's is hollow."""
    colour = SERIES[number % len(SERIES)]
    return {
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4.5,
        "markerfacecolor": colour if number else PAPER,
        "markeredgecolor": colour,
        "markeredgewidth": 1.2,
    }


def key(labels: Sequence[str], *, first: int = 0) -> Html:
    """Return the legend of lines and marks of some runs, of which ``first`` is the number of the first. It stands above
    the panels, where there is room for long labels."""
    entries = (tag("li", swatch(number), tag("span", label)) for number, label in enumerate(labels, first))
    return tag("ul", *entries, class_="key")


def swatch(number: int) -> Html:
    """Return a piece of the line of run ``number`` with its mark."""
    colour = f"var(--series-{number % len(SERIES)})"
    dash = {_DASHED: "5 3", _DASHDOT: "7 2 1.5 2"}.get(series_style(number)["linestyle"], "none")
    shape = _SHAPES[_MARKERS[number % len(_MARKERS)]]
    fill = colour if number else "var(--paper)"
    return raw(
        '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path d="M0 6H34" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        f'<path d="{shape}" fill="{fill}" stroke="{colour}" stroke-width="1.4"/></svg>'
    )


_SHAPES = {
    "o": "M13 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "s": "M13.5 2.5h7v7h-7Z",
    "^": "M17 1.5l4.5 8h-9Z",
    "v": "M17 10.5l4.5-8h-9Z",
    "D": "M17 1l5 5l-5 5l-5-5Z",
    "P": "M15.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
    "X": "M14.5 1.5l2.5 2.5l2.5-2.5l2 2l-2.5 2.5l2.5 2.5l-2 2l-2.5-2.5l-2.5 2.5l-2-2l2.5-2.5l-2.5-2.5Z",
}


@contextmanager
def panel(height: float) -> Iterator[Axes]:
    """Yield the axes of a new figure of ``height`` inches. Draw and save it in the block, where the style applies."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        yield Figure(figsize=(WIDTH_INCHES, height), layout="constrained").subplots()


def svg_of(axes: Axes, description: str) -> Html:
    """Return the figure of ``axes`` as an SVG element. ``description`` is for readers who do not see it."""
    buffer = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", drawing))
    drawing = re.sub(r' id="([^"]+)"', lambda match: match.group() if match.group(1) in used else "", drawing)
    view = re.search(r'viewBox="[^"]+"', drawing)
    assert view is not None
    # Inline SVG in HTML needs no namespaces.
    head = f'<svg {view.group()} role="img" aria-label="{escape(description)}">'
    drawing = re.sub(r"<svg[^>]*>", lambda _: head, drawing, count=1).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    return raw(drawing.strip())
