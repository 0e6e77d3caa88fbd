"""The report's sections on what training changed when: a task at each checkpoint (LOGO, Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.markup import join, tag
from logoeval.compare.compare import differing, read_runs
from logoeval.compare.labels import label_folders
from logoeval.records import Curve, read_results
from logoeval.report import figure_style, figures
from logoeval.report.tables import Cell, Section, Table, details, figure
from logoeval.tasks.table import curve_metrics, find_task


def read_curves(folders: Sequence[Path] | Mapping[str, Path]) -> dict[str, Curve]:
    """Return the curves in some folders, by label.

    Raises:
        UserError: a folder holds no curve, or two curves of a task were measured under other settings.
    """
    labelled = label_folders(folders)
    curves: dict[str, Curve] = {}
    for label, folder in labelled.items():
        curve = read_results(folder).curve
        if curve is None:
            raise UserError(
                "holds no curve over checkpoints",
                where=str(folder),
                mend="run: logoeval niah (or qa) --checkpoints RUN/checkpoints -o DIR",
            )
        curves[label] = curve
    first_of: dict[str, str] = {}
    for other, curve in curves.items():
        first = first_of.setdefault(curve.task, other)
        for key, old, new in differing(curves[first].settings, curve.settings):
            raise UserError(
                f"{curve.task}: {key} is {old!r} in one curve and {new!r} in the other",
                where=f"{labelled[first]} and {labelled[other]}",
                mend="measure both with the same recipe",
            )
        steps = [labelled[label] / "step-0" for label in (first, other)]
        if first != other and all(map(Path.is_dir, steps)):
            read_runs(steps, [curve.task])  # engine, tokenizer and prompts, too
    return curves


def curve_sections(curves: Mapping[str, Curve]) -> list[Section]:
    """Return a section for each task that was measured over training."""
    tasks = dict.fromkeys(curve.task for curve in curves.values())
    return [_section(task, {label: curve for label, curve in curves.items() if curve.task == task}) for task in tasks]


def _section(task: str, curves: Mapping[str, Curve]) -> Section:
    """Return the section of a task: a panel for each metric, with a line for each run, and the numbers."""
    drawn = []
    for metric in curve_metrics(next(iter(curves.values()))):
        lines = [[(point.step, point.of(metric)) for point in curve.points] for curve in curves.values()]
        drawn.append(figures.step_intervals(metric.label, list(curves), lines))
    tables = [_table(label, curve) for label, curve in curves.items()]
    body = join(
        tag(
            "p",
            "The same prompts at each checkpoint, step 0 being the base model. Bars are 95 % intervals; since every "
            "step answers the same prompts, changes are told by the table, which pairs them.",
        ),
        figure(drawn, key=figure_style.key(list(curves), first=1)),
        *(details(table, table.title) for table in tables),
    )
    return Section(f"{find_task(task).title} over training", body, tables)


def _table(label: str, curve: Curve) -> Table:
    body, shown = [], curve_metrics(curve)
    for point in curve.points:
        cells: list[str | Cell] = [str(point.step)]
        for metric in shown:
            value = point.of(metric)
            change = metric.show_change(value.change, value.change_low, value.change_high) if point.step else ""
            cells.append(Cell(metric.show(value.value), change))
        body.append(cells)
    title = f"{label}: every step, and below or in brackets its change from the base model in points"
    return Table(title, ["step", *(metric.label for metric in shown)], body)
