"""Draw the figures of the report as PNG files on white, so that they can be read in grey print too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logoeval.compare.wrong_answers import OUTCOMES
from logoeval.intervals import Estimate
from study.outcome import (
    F1,
    MARGIN,
    PERPLEXITY,
    RECALL,
    Measure,
    Outcomes,
    outcome_measure,
    perplexity,
    validation_score,
)
from study.rows import BASE, LOGO, LOGO_LONG, LOGO_SAME_RATE, OURS, SFT, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _RULE = "#24211c", "#77706a", "#d9d3c8"
_COLOURS = {BASE: "#77706a", "yarn": "#b9a36b", "randpos": "#8d7bb0", "sft-full": "#c98a5a", SFT: "#b0493f"}
_COLOURS |= {"simpo": "#5f98a0", LOGO: "#1d5a70", "dpo": "#9a7f3c", "solopo": "#6d8f52"}
_COLOURS |= {"logo-lambda0.5": "#3f7f97", LOGO_LONG: "#7aa6b5", LOGO_SAME_RATE: "#5b6fa8", OURS: "#0e3542"}
_MARKS = {BASE: "o", "yarn": "v", "randpos": "P", "sft-full": "s", SFT: "D", "simpo": "^", LOGO: "*"}
_MARKS |= {"dpo": "<", "solopo": ">", "logo-lambda0.5": "p", LOGO_LONG: "h", LOGO_SAME_RATE: "d", OURS: "X"}
_PARTS = ("#1d5a70", "#b9a36b", "#b0493f", "#e6e0d4")


def draw_all(outcomes: Outcomes, folder: Path) -> dict[str, Path]:
    """Draw all figures of which there are measurements into ``folder``, and return their files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "needles": _needles,
        "perplexity": _perplexity,
        "tradeoff": _tradeoff,
        "margins": _margins,
        "errors": _errors,
        "rates": _rates,
    }
    if outcomes.curves():
        drawn["training"] = _training
    paths = {}
    for name, draw in drawn.items():
        paths[name] = folder / f"{name}.png"
        draw(outcomes, paths[name])
    return paths


def _main(outcomes: Outcomes, measure: Measure) -> list[Row]:
    return [found for found in outcomes.rows if found.main and outcomes.has(found, measure)]


@contextmanager
def _figure(path: Path, columns: int = 1, *, width: float = 4.6, height: float = 3.2) -> Iterator[Sequence[Axes]]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.edgecolor": _RULE,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "legend.frameon": False,
    }
    style |= {"xtick.color": _MUTED, "ytick.color": _MUTED, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure, axes = pyplot.subplots(
            1, columns, figsize=(width * columns, height), layout="constrained", squeeze=False
        )
        yield list(axes[0])
        figure.savefig(path, dpi=150, metadata={"Software": None})
        pyplot.close(figure)


def _error(found: Estimate) -> tuple[float, float]:
    low, high = found.interval or (found.value, found.value)
    return found.value - low, high - found.value


def _needles(outcomes: Outcomes, path: Path) -> None:
    """Draw recall as a map of rows by lengths, in the form of Figure 3."""
    rows = _main(outcomes, RECALL)
    samples = outcomes.results(rows[0])[0].tasks["niah"].samples
    lengths = sorted({int(str(sample.facts["length"])) for sample in samples})
    cells = [[Measure("niah", "recall", "", "share", 1, (("length", length),)) for length in lengths] for _ in rows]
    grid = np.asarray(
        [[outcomes.level(one, cell).value for cell in line] for one, line in zip(rows, cells, strict=True)]
    )
    with _figure(path, width=5.4, height=0.9 + 0.34 * len(rows)) as (axes,):
        axes.imshow(grid, cmap="GnBu", vmin=0, vmax=1, aspect="auto")
        for (i, j), share in np.ndenumerate(grid):
            axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color="white" if share > 0.6 else _INK)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(rows)), [one.label for one in rows])
        axes.tick_params(length=0)
        axes.set_xlabel("prompt length, tokens")
        axes.set_title("needle recall, %")


def _perplexity(outcomes: Outcomes, path: Path) -> None:
    """Draw perplexity by length, untrained rows dashed and trained ones solid, in the form of Figure 4."""
    lengths = outcomes.lengths
    rows = _main(outcomes, perplexity(lengths[0]))
    with _figure(path, 2) as (axes, change):
        for one in rows:
            look: dict[str, Any] = {
                "color": _COLOURS[one.name],
                "marker": _MARKS[one.name],
                "markersize": 4,
                "linewidth": 1.3,
            }
            values = [outcomes.level(one, perplexity(length)).value for length in lengths]
            axes.plot(lengths, values, label=one.label, linestyle="--" if one.is_untrained else "-", **look)
            if one.name not in (BASE, "yarn"):  # scaling alone changes perplexity more than any training
                moved = [outcomes.change(one, outcomes.row(BASE), perplexity(length)).value for length in lengths]
                change.plot(lengths, moved, label=one.label, **look)
        change.axhline(0, color=_RULE)
        for plot, title in ((axes, "perplexity of the first L tokens"), (change, "change from the base model")):
            plot.set_xscale("log", base=2)
            plot.set_xticks(lengths, [f"{length:,}" for length in lengths])
            plot.minorticks_off()
            plot.set_xlabel("L, tokens")
            plot.set_title(title)
        change.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _tradeoff(outcomes: Outcomes, path: Path) -> None:
    """Draw answers against perplexity for the first seed, in the form of Figure 6: rows of Table 1 as marks, settings
    as numbered points."""
    with _figure(path, width=7.6, height=4.4) as (axes,):

        def place(one: Row) -> tuple[float, float]:
            return outcomes.by_seed(one, PERPLEXITY)[0], 100 * outcomes.by_seed(one, F1)[0]

        marked = [
            one for one in outcomes.rows if one.main and one.name != "yarn"
        ]  # without the row that only scales positions
        settings = [one for one in outcomes.rows if not one.main]
        for one in marked:
            axes.plot(
                *place(one),
                linestyle="none",
                label=one.label,
                marker=_MARKS[one.name],
                color=_COLOURS[one.name],
                markersize=8,
            )
        for number, one in enumerate(settings, 1):
            axes.plot(*place(one), marker=".", color=_MUTED, markersize=4)
            size = 5 if number < 10 else 8  # for one digit or two
            key: dict[str, Any] = {"marker": f"${number}$", "color": _INK, "markersize": size, "markeredgewidth": 0.2}
            axes.plot([], [], linestyle="none", label=one.label, **key)
        axes.margins(0.08)
        axes.set_xlabel(f"{PERPLEXITY.label} tokens")
        axes.set_ylabel("word F1 of held-out answers, %")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        _number(axes, [place(one) for one in settings], [place(one) for one in marked])


def _number(axes: Axes, points: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> None:
    """Write a number beside each point, on the side that is farthest from all other points and numbers."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout decides the places of points
    taken = axes.transData.transform([*points, *others])  # in pixels
    reach = 8 * figure.dpi / 72  # pixels from a point to the middle of its number, which are 8 pt
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    sides = reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for number, point in enumerate(taken[: len(points)], 1):
        rest = np.delete(taken, number - 1, axis=0)
        distances = np.linalg.norm((point + sides)[:, None] - rest[None], axis=2).min(1)  # [sides]
        chosen = point + sides[distances.argmax()]
        taken = np.concatenate([taken, chosen[None]])
        x, y = axes.transData.inverted().transform(chosen)
        axes.text(x, y, str(number), ha="center", va="center", fontsize=7)


def _margins(outcomes: Outcomes, path: Path) -> None:
    """Draw the distribution of the reward margin of the base model, instruct tuning and LOGO (Figure 6)."""
    shown = [one for one in outcomes.rows if one.name in (BASE, SFT, LOGO)]
    margins = {one.name: outcomes.scores(one, MARGIN)[0].mean(0) for one in shown}
    edges = np.histogram_bin_edges(np.concatenate(list(margins.values())), bins=14).tolist()
    with _figure(path, len(shown), width=3.1, height=2.6) as plots:
        for one, axes in zip(shown, plots, strict=True):
            axes.hist(margins[one.name], bins=edges, color=_COLOURS[one.name], alpha=0.75)
            axes.axvline(0, color=_INK, linewidth=0.8)
            axes.set_title(f"{one.label}\nmean {margins[one.name].mean():+.2f}", fontsize=8)
            axes.set_xlabel("margin, nats a token")
        plots[0].set_ylabel("held-out pairs")


def _training(outcomes: Outcomes, path: Path) -> None:
    """Draw what was measured over training: recall and retrieval score in the form of Figure 7, or answers."""
    curves = outcomes.curves()
    metrics = {metric.key: metric for curve in curves.values() for metric in curve.metrics}
    keys = [key for key in ("recall", "retrieval_forced", F1.key) if key in metrics]
    with _figure(path, len(keys)) as plots:
        for key, axes in zip(keys, plots, strict=True):
            for name, curve in curves.items():
                points = [
                    (point.step, found) for point in curve.points for found in point.values if found.metric == key
                ]
                steps = [step for step, _ in points]
                axes.plot(
                    steps,
                    [100 * found.value for _, found in points],
                    color=_COLOURS[name],
                    marker=_MARKS[name],
                    label=outcomes.row(name).label,
                )
            axes.set_title(f"{metrics[key].label}, %")
            axes.set_xlabel("training step")
            axes.set_xticks(steps)
        plots[0].legend(fontsize=7)


def _errors(outcomes: Outcomes, path: Path) -> None:
    """Draw the shares of right answers and of kinds of wrong ones, in the form of Figure 9."""
    rows = _main(outcomes, F1)
    with _figure(path, width=6.4, height=0.9 + 0.36 * len(rows)) as (axes,):
        left = np.zeros(len(rows))
        for (outcome, label), colour in zip(OUTCOMES.items(), _PARTS, strict=True):
            shares = np.asarray([100 * outcomes.level(one, outcome_measure(outcome)).value for one in rows])
            axes.barh(range(len(rows)), shares, left=left, color=colour, edgecolor="white", label=label)
            for number, (start, share) in enumerate(zip(left, shares, strict=True)):
                if share >= 6:
                    ink = _INK if colour in _PARTS[1::2] else "white"
                    axes.text(
                        start + share / 2, number, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink
                    )
            left += shares
        axes.set_yticks(range(len(rows)), [one.label for one in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("percent of held-out answers")
        axes.legend(ncols=4, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.0))
        axes.tick_params(axis="y", length=0)


def _rates(outcomes: Outcomes, path: Path) -> None:
    """Draw word F1 of the validation answers by learning rate."""
    found = outcomes.validation_f1
    with _figure(path, width=5.4) as (axes,):
        for name, scores in found.items():
            rates = sorted(scores)
            values = [100 * scores[rate] for rate in rates]
            axes.plot(rates, values, color=_COLOURS[name], marker=_MARKS[name], label=outcomes.row(name).label)
        base = validation_score(outcomes.study, outcomes.row(BASE), None)
        assert base is not None  # it is asked before the others
        axes.axhline(100 * base, color=_COLOURS[BASE], linestyle="--", label=outcomes.row(BASE).label)
        every = sorted({rate for scores in found.values() for rate in scores})
        axes.set_xscale("log")
        axes.set_xticks(every, [f"{rate:g}" for rate in every])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("peak learning rate")
        axes.set_ylabel("word F1 of validation answers, %")
        axes.legend(fontsize=7)
