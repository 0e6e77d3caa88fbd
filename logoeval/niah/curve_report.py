"""The report's section on training runs: recall and retrieval at each checkpoint (LOGO, Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.markup import Html, join, number_cell, tag
from logoeval import figures
from logoeval.records import Curve, Metric, read_results


def curve_section(folders: Sequence[Path]) -> Html:
    """A panel a metric with a line a run, and the numbers.

    Raises:
        UserError: a folder holds no curve, or the curves were measured under other settings.
    """
    curves = [_read(folder) for folder in folders]
    for folder, curve in zip(folders[1:], curves[1:], strict=True):
        for key in sorted(curves[0].settings.keys() | curve.settings.keys()):
            if (old := curves[0].settings.get(key)) != (new := curve.settings.get(key)):
                raise UserError(
                    f"niah: {key} is {old!r} in one curve and {new!r} in the other",
                    where=f"{folders[0]} and {folder}",
                    mend="measure both with the same recipe",
                )
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    panels = [_panel(metric, labels, curves) for metric in curves[0].shown]
    return join(
        tag("h2", "Needles over training"),
        tag(
            "p",
            "The same needle test at each checkpoint, step 0 being the base model. Bars are 95 % intervals over the "
            "prompts; since every step answers the same prompts, changes are told by the table, which pairs them.",
        ),
        tag("figure", tag("div", *panels, class_="panels")),
        *(_table(label, curve) for label, curve in zip(labels, curves, strict=True)),
    )


def _read(folder: Path) -> Curve:
    curve = read_results(folder).curve
    if curve is None:
        raise UserError(
            "holds no curve over checkpoints",
            where=str(folder),
            mend="run: logoeval niah --checkpoints RUN/checkpoints -o DIR",
        )
    return curve


def _panel(metric: Metric, labels: Sequence[str], curves: Sequence[Curve]) -> Html:
    lines = []
    for curve in curves:
        values = [next(value for value in point.values if value.metric == metric.key) for point in curve.points]
        lines.append(
            [
                (point.step, value.value, value.low, value.high)
                for point, value in zip(curve.points, values, strict=True)
            ]
        )
    return figures.step_intervals(metric.label, labels, lines)


def _table(label: str, curve: Curve) -> Html:
    head = tag("tr", tag("th", "step"), *(tag("th", metric.label, class_="n") for metric in curve.shown))
    body = []
    for point in curve.points:
        cells = []
        for metric in curve.shown:
            value = next(value for value in point.values if value.metric == metric.key)
            text = metric.show(value.value)
            if point.step:
                text += f" ({metric.show_difference(value.change)}"
                if value.change_low is not None and value.change_high is not None:
                    low, high = metric.show_difference(value.change_low), metric.show_difference(value.change_high)
                    text += f" [{low}, {high}]"
                text += ")"
            cells.append(number_cell(text))
        body.append(tag("tr", tag("td", str(point.step)), *cells))
    return tag(
        "details",
        tag("summary", f"{label}: every step, and in brackets its change from the base model in points"),
        tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll"),
    )
