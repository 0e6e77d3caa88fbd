"""Draw the figures of a report with matplotlib, as inline SVG in one style (``figure_style.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from logodata.common.markup import Html
from logoeval.compare.compare import Value
from logoeval.records import CurveValue
from logoeval.report.figure_style import INK, MUTED, PAPER, RULE, SERIES, mark_style, panel, series_style, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

_MOST_WRITTEN_COLUMNS, _MOST_COLUMN_LABELS = 9, 6
_NARROWEST_WRITTEN = 0.07  # share of a bar that is wide enough for two digits


def margin_histogram(
    labels: Sequence[str], margins: Sequence[Sequence[float]], number: int, *, titled: bool = False
) -> Html:
    """Draw the distributions of the reward margin of the first run, as an outline, and of run ``number``. Triangles
    mark the means. All runs' ``margins`` are needed, so that every panel has the same scale."""
    with panel(2.35) as axes:
        bins = _bins(np.concatenate([np.asarray(column) for column in margins]), len(margins[0]))
        for run in (0, number):
            style = series_style(run)
            if run:
                axes.hist(margins[run], bins=bins, histtype="stepfilled", color=style["color"], alpha=0.16)
            axes.hist(margins[run], bins=bins, histtype="step", linewidth=1.5, **style)
            colours = {"color": style["color"], "markerfacecolor": style["color"] if run else PAPER}
            axes.plot(float(np.mean(margins[run])), 0, marker=6, markersize=7, clip_on=False, **colours)
        axes.axvline(0, color=RULE, linewidth=0.8)
        _count_pairs(axes, labels[number] if titled else "", "margin, nats per token (triangle: mean)")
        means = ", ".join(f"{labels[run]} {np.mean(margins[run]):.2f}" for run in (0, number))
        return svg_of(axes, f"Histogram of the reward margin, means: {means}.")


def change_histogram(label: str, changes: Sequence[float], number: int) -> Html:
    """Draw the distribution of the change of the margin of each pair, from the first run to run ``number``."""
    with panel(2.35) as axes:
        bins = _bins(np.append(changes, 0.0), len(changes))
        axes.hist(changes, bins=bins, color=series_style(number)["color"], alpha=0.55)
        axes.axvline(0, color=INK, linewidth=0.8)
        _count_pairs(axes, label, "change of the margin of the same pair, nats")
        share = 100 * float(np.mean(np.asarray(changes) > 0))
        return svg_of(axes, f"Histogram of the change of the margin, {label}: {share:.0f} % of the pairs rose.")


def interval_rows(rows: Sequence[str], lines: Sequence[Sequence[Value]], *, x_label: str, of: str) -> Html:
    """Draw shares as marks with bars for their intervals, a row for each name in ``rows`` and in it a mark for each
    run, whose values are in ``lines``. ``of`` names what has these values, for readers who do not see the figure."""
    runs = len(lines)
    gap = min(0.22, 0.74 / runs)
    with panel(0.62 + len(rows) * max(0.3, 0.09 * (runs + 1))) as axes:
        for number, values in enumerate(lines):
            for row, value in enumerate(values):
                place = row + (number - (runs - 1) / 2) * gap
                if value.low is not None and value.high is not None:
                    axes.hlines(place, value.low, value.high, color=SERIES[number % len(SERIES)], linewidth=1.3)
                axes.plot(value.value, place, linestyle="none", zorder=3, **mark_style(number))
        for row in range(1, len(rows)):
            axes.axhline(row - 0.5, color=RULE, linewidth=0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), rows, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g} %")
        axes.margins(x=0.05)
        axes.set_xlabel(x_label)
        return svg_of(axes, f"{x_label} of {of}, with 95 % intervals: the numbers are in the tables.")


def scatter(
    title: str, points: Sequence[tuple[str, Value, Value]], *, x_label: str, y_label: str, published: bool = False
) -> Html:
    """Draw points with intervals, in the marks of the runs. Published points are grey, each with its letter."""
    with panel(2.7) as axes:
        for number, (name, x, y) in enumerate(points):
            if published:
                axes.plot(x.value, y.value, marker="o", markersize=4, color=MUTED, linestyle="none")
                place = (x.value, y.value)
                axes.annotate(name, place, xytext=(4, 3), textcoords="offset points", fontsize=8.5, color=MUTED)
                continue
            style: dict[str, Any] = {"color": SERIES[number % len(SERIES)], "linewidth": 0.9, "alpha": 0.55}
            if x.low is not None and x.high is not None:
                axes.hlines(y.value, x.low, x.high, **style)
            if y.low is not None and y.high is not None:
                axes.vlines(x.value, y.low, y.high, **style)
            axes.plot(x.value, y.value, linestyle="none", zorder=3, **mark_style(number))
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.12, y=0.12)
        shown = "; ".join(f"{name} {x.value:.2f} and {y.value:.1f}" for name, x, y in points)
        return svg_of(axes, f"{title}, {x_label} and {y_label}: {shown}.")


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: ArrayLike,
    *,
    row_label: str,
    of: str = "Needle recall",
) -> Html:
    """Draw shares in [0, 1] as a grid of colours from light to dark; ``of`` names them. A NaN means that a cell has no
    sample. Percentages are written into the cells if there are few columns, so that they can be read on a
    telephone."""
    from matplotlib.colors import LinearSegmentedColormap

    grid = np.asarray(values, dtype=float)
    written = len(columns) <= _MOST_WRITTEN_COLUMNS
    with panel(0.95 + 0.32 * len(rows)) as axes:
        # The colours are fixed, so that the number in a cell is readable on a dark page too. There are eleven shades,
        # for 0, 10, ..., 100 %. Their lightness falls evenly, so they differ in grey print and for the colour-blind.
        shades = LinearSegmentedColormap.from_list("recall", ["#ebe3d2", "#b9cfc9", "#5f98a0", "#1d5a70"], N=11)
        edge, width = (PAPER, 1.5) if written else ("face", 0.4)
        mesh = axes.pcolormesh(grid[::-1], cmap=shades, vmin=-0.05, vmax=1.05, edgecolors=edge, linewidth=width)
        for (i, j), value in np.ndenumerate(grid) if written else ():
            empty = np.isnan(value)
            ink = MUTED if empty else "#ffffff" if value >= 0.75 else "#24211c"  # the colour with more contrast
            text = "-" if empty else f"{100 * value:.0f}"
            axes.text(j + 0.5, len(rows) - i - 0.5, text, ha="center", va="center", color=ink, fontsize=9)
        step = -(-len(columns) // _MOST_COLUMN_LABELS)
        axes.set_xticks(np.arange(0, len(columns), step) + 0.5, columns[::step])
        axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows)[::-1])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        scale = axes.figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.03, ticks=[0, 0.5, 1])
        scale.ax.set_yticklabels(["0 %", "50 %", "100 %"], fontsize=8)
        scale.ax.tick_params(length=0)
        scale.outline.set_visible(False)
        axes.set(title=title, xlabel="prompt length, tokens", ylabel=row_label)
        return svg_of(axes, f"{of} in percent for {title}, by {row_label} and prompt length.")


def curves(
    labels: Sequence[str],
    x: Sequence[float],
    columns: Sequence[Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    notes: Sequence[str] = (),
) -> Html:
    """Draw lines over lengths on a logarithmic axis, with ``notes`` written above the points."""
    with panel(2.6) as axes:
        for number, column in enumerate(columns):
            # The first run is drawn on top, because a line below shows between its dashes.
            order = 3 - number / len(columns)
            axes.plot(x, column, linewidth=1.6, zorder=order, **series_style(number), **mark_style(number))
        highest = np.max(np.asarray(columns), axis=0)
        for place, top, text in zip(x, highest, notes, strict=False):
            axes.annotate(
                text, (place, top), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=MUTED
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(x), token_labels(x))
        axes.minorticks_off()
        axes.margins(x=0.1, y=0.22)
        axes.set(xlabel=x_label, ylabel=y_label)
        return svg_of(axes, f"{y_label} by {x_label} for {' and '.join(labels)}.")


def step_curve(
    title: str, steps: Sequence[int], values: Sequence[float], held_out: Sequence[tuple[int, float]] = ()
) -> Html:
    """Draw one metric of a training run by step, with a running mean if there are enough steps.

    ``held_out`` are steps and values of held-out samples, drawn as points.
    """
    from matplotlib.ticker import MaxNLocator

    with panel(2.1) as axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        window = len(steps) // 10
        smooth = window >= 2
        axes.plot(steps, values, color=SERIES[0] if smooth else SERIES[1], linewidth=0.8 if smooth else 1.5)
        if smooth:
            mean = np.convolve(values, np.ones(window) / window, mode="valid")
            axes.plot(steps[window - 1 :], mean, color=SERIES[1], linewidth=1.6)
        if held_out:
            style: dict[str, Any] = {
                "color": SERIES[2],
                "marker": "o",
                "markersize": 4,
                "linewidth": 1.0,
                "linestyle": ":",
            }
            axes.plot(*zip(*held_out, strict=True), **style)
        marks = [f"thick: mean of {window} steps"] * smooth + ["points: held out"] * bool(held_out)
        axes.set(title=title + (f" ({'; '.join(marks)})" if marks else ""), xlabel="step")
        return svg_of(axes, f"{title} by training step.")


def step_intervals(title: str, labels: Sequence[str], lines: Sequence[Sequence[tuple[int, CurveValue]]]) -> Html:
    """Draw shares over training steps, one line per run of steps and values, with bars for their intervals. The style
    of number 0 is the base model's, so the runs have those from number 1 on."""
    with panel(2.5) as axes:
        for number, points in enumerate(lines, 1):
            style = series_style(number)
            steps, values = [step for step, _ in points], [value.value for _, value in points]
            axes.plot(steps, values, linewidth=1.6, **style, **mark_style(number))
            for step, value in points:
                if value.low is not None and value.high is not None:
                    axes.vlines(step, value.low, value.high, color=style["color"], linewidth=1.0, alpha=0.6)
        axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g} %")
        axes.set(title=title, xlabel="training step")
        axes.margins(x=0.06, y=0.12)
        return svg_of(axes, f"{title} by training step for {' and '.join(labels)}.")


def token_labels(lengths: Sequence[float]) -> list[str]:
    """Format lengths in tokens for axes, such as ``8K`` for 8,192."""
    return [f"{length / 1024:g}K" if length >= 1024 and length % 512 == 0 else f"{length:,.0f}" for length in lengths]


def stacked_bars(title: str, parts: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], *, unit: str) -> Html:
    """Draw shares that add up to one: a bar for each row under its label, with the same ``parts`` (at most four) in the
    same order. ``unit`` says what the shares are of."""
    from matplotlib.patches import Patch

    # Fill, opacity, edge, and the text colour on it. Neighbours differ most in lightness, so that they can be
    # distinguished in grey print and by the colour-blind.
    looks = (
        (SERIES[0], 0.3, PAPER, INK),
        (SERIES[1], 1.0, PAPER, PAPER),
        (SERIES[2], 0.5, PAPER, INK),
        (PAPER, 1.0, MUTED, INK),
    )
    styles: list[dict[str, Any]] = [
        {"facecolor": (fill, alpha), "edgecolor": edge, "linewidth": 0.8} for fill, alpha, edge, _ in looks
    ]
    with panel(1.2 + 0.47 * len(rows)) as axes:
        for number, (label, shares) in enumerate(rows):
            left = 0.0
            for share, style, (*_, ink) in zip(shares, styles, looks, strict=False):
                if not share:
                    continue
                axes.barh(-number, share, left=left, height=0.46, clip_on=False, **style)
                if share >= _NARROWEST_WRITTEN:
                    place = (left + share / 2, -number - 0.015)
                    axes.text(*place, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=9)
                left += share
            axes.text(0, -number + 0.3, label, ha="left", va="bottom", color=INK, fontsize=9)
        handles = [Patch(label=part, **style) for part, style in zip(parts, styles, strict=False)]
        axes.set(xlim=(0, 1), ylim=(0.4 - len(rows), 0.75), yticks=[], xlabel=unit)
        axes.spines["left"].set_visible(False)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        axes.legend(
            handles=handles, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, handlelength=1.2
        )
        axes.figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=INK)
        description = "; ".join(
            f"{label}: " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in zip(parts, shares, strict=True))
            for label, shares in rows
        )
        return svg_of(axes, f"{title}, {unit}. {description}.")


def _bins(values: NDArray[np.float64], count: int) -> list[float]:
    return np.histogram_bin_edges(values, bins=min(30, max(8, count // 4))).tolist()


def _count_pairs(axes: Axes, title: str, x_label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(title=title, xlabel=x_label, ylabel="held-out pairs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
