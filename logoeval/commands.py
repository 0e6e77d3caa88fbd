"""What the commands of ``logoeval`` do with their options; modules are loaded when a command needs them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.errors import UserError

if TYPE_CHECKING:
    from logoeval.compare.compare import Comparison, Row
    from logoeval.recipe.settings import EvalRecipe
    from logoeval.records import Metric, Results, SummaryRow
    from logoeval.tasks.table import Task


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Measure tasks of a recipe, or print the recipe or its schema."""
    from logoeval.recipe.settings import EvalRecipe

    if arguments.schema:
        from logodata.common.recipes.reading import recipe_schema

        print(recipe_schema(EvalRecipe))
        return
    recipe = _load_recipe(arguments)
    tasks = recipe.tasks
    if not tasks:
        from logoeval.tasks.table import task_names

        raise UserError("the recipe has no task", where=str(arguments.recipe), mend=f"add {', '.join(task_names())}")
    if arguments.with_base and recipe.adapter is None:
        curve = getattr(arguments, "checkpoints", None) is not None
        mend = "--checkpoints measures the base too: leave it out" if curve else "give --adapter DIR, such as RUN/final"
        raise UserError("--with-base without an adapter", mend=mend)
    if arguments.dry_run:
        import yaml

        print(yaml.safe_dump({"eval": recipe.model_dump(mode="json")}, sort_keys=False), end="")
        return
    if arguments.out is None:
        raise UserError("no folder for the results", mend="give -o DIR")
    from logoeval.inputs import check_inputs

    check_inputs(recipe, arguments.out, getattr(arguments, "checkpoints", None))
    if getattr(arguments, "checkpoints", None) is not None:
        from logoeval.checkpoints import evaluate_checkpoints

        _show_curve(evaluate_checkpoints(recipe, arguments.checkpoints, arguments.out), arguments.out)
        return
    if arguments.with_base:
        from logoeval.with_base import evaluate_with_base

        _show_change(*evaluate_with_base(recipe, tasks, arguments.out), tasks)
        return
    from logoeval.run import evaluate

    _show(evaluate(recipe, tasks, arguments.out), tasks, arguments.out)


def _load_recipe(arguments: argparse.Namespace) -> EvalRecipe:
    from logodata.common.recipes.reading import load_recipe, shipped_recipes
    from logodata.models.loading import EMBEDDED
    from logoeval.recipe.settings import EvalRecipe
    from logoeval.tasks.table import task_names

    task: Task | None = arguments.task
    given: dict[str, object] = {"model": arguments.model, "adapter": arguments.adapter}
    given |= {"pairs.data": getattr(arguments, "pairs.data")} if task is None else _given(task, vars(arguments))
    overrides = [
        *arguments.overrides,
        *(f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None),
    ]
    path: Path | None = arguments.recipe
    if path is None and arguments.model == EMBEDDED:
        path = shipped_recipes() / "embedded.yaml"
    if task is None:
        return load_recipe(EvalRecipe, "eval", path, overrides)
    # One task: the recipe's others are dropped, and its defaults serve where the recipe does not have it.
    others = [f"{other}=null" for other in task_names() if other != task.name]
    recipe = load_recipe(EvalRecipe, "eval", path, [*overrides, *others])
    if recipe.section(task.name) is None:
        recipe = load_recipe(EvalRecipe, "eval", path, [f"{task.name}={{}}", *overrides, *others])
    return recipe


def _given(task: Task, values: Mapping[str, Any]) -> dict[str, object]:
    """What a task's own options set: values by dotted field of the recipe.

    Raises:
        UserError: an option without the one that it needs.
    """
    given: dict[str, object] = {}
    fields = {option.flag: option.field for option in task.options}
    for option in task.options:
        value = values[option.field]
        if value is None or value is False:
            continue
        if option.needs and not values[fields[option.needs]]:
            raise UserError(f"{option.flag} without {option.needs}", where=str(value), mend=f"add {option.needs}")
        if option.kind == "names":
            value = [name.strip() for name in value.split(",")]
        given[f"{task.name}.{option.field}"] = option.value if option.kind == "switch" else value
    return given


def _show(results: Results, tasks: Sequence[str], folder: Path) -> None:
    """The means with their intervals."""
    from logodata.common.console import console

    _print_table([(results.tasks[task].metrics, results.tasks[task].summary) for task in tasks])
    for task in tasks:
        for text in results.tasks[task].notes:
            console.print(f"{task}: {text}", markup=False, soft_wrap=True)
    console.print(f"wrote {folder / 'results.json'}", markup=False, soft_wrap=True)


def _show_change(base: Path, adapter: Path, tasks: Sequence[str]) -> None:
    """What the adapter changes, sample by sample, and how to make a page of it."""
    import shlex

    from logodata.common.console import console
    from logoeval.compare.compare import compare

    comparison = compare([base, adapter])
    _print_changes(comparison, [row for row in comparison.rows if row.task in tasks and not row.slice])
    for task in tasks:
        notes = {run.label: run.results.tasks[task].notes for run in comparison.runs}
        for text in dict.fromkeys(text for texts in notes.values() for text in texts):
            whose = [label for label, texts in notes.items() if text in texts]
            of = "" if len(whose) == len(notes) else f", {whose[0]}"
            console.print(f"{task}{of}: {text}", markup=False, soft_wrap=True)
    report = shlex.join(["logoeval", "compare", str(base), str(adapter), "-o", str(base.parent / "report.html")])
    console.print(f"wrote {base / 'results.json'} and {adapter / 'results.json'}", markup=False, soft_wrap=True)
    console.print(f"for a page: {report}", markup=False, soft_wrap=True)


def _show_curve(results: Results, folder: Path) -> None:
    """A row a step."""
    from rich.table import Table
    from rich.text import Text

    from logodata.common.console import console

    curve = results.curve
    assert curve is not None
    table = Table("step", *(f"{metric.label} [95 %]" for metric in curve.shown), box=None, pad_edge=False)
    for point in curve.points:
        values = {value.metric: value for value in point.values}
        shown = [(metric, values[metric.key]) for metric in curve.shown]
        table.add_row(
            str(point.step),
            *(
                Text(f"{metric.show(here.value)} [{metric.show_interval(here.low, here.high)}]")
                for metric, here in shown
            ),
        )
    console.print(table)
    console.print(f"wrote {folder / 'results.json'}", markup=False, soft_wrap=True)


def _print_table(parts: Sequence[tuple[Sequence[Metric], Sequence[SummaryRow]]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from logodata.common.console import console
    from logoeval.intervals import is_cell, slice_label

    table = Table("measure", "mean", "95 % interval", "samples", box=None, pad_edge=False)
    for metrics, summary in parts:
        by_key = {metric.key: metric for metric in metrics}
        for row in summary:
            if is_cell(row.slice):
                continue
            metric = by_key[row.metric]
            label = f"  {slice_label(row.slice)}" if row.slice else metric.label
            interval = metric.show_interval(row.low, row.high)
            table.add_row(Text(label), metric.show(row.value), interval, str(row.num_samples))
    console.print(table)


def score_command(arguments: argparse.Namespace) -> None:
    """Score prediction files that are there."""
    from logodata.common.console import console
    from logodata.common.files import check_apart, make_folder_of, write_json
    from logoeval.intervals import summarise
    from logoeval.tasks.longbench.score_files import record, score_predictions

    if arguments.out is not None:
        check_apart(arguments.out, ("the predictions", arguments.predictions))
        make_folder_of(arguments.out)  # all of LongBench takes minutes to score: a name that cannot be is told first
    outcome, e = score_predictions(arguments.predictions, e=arguments.e, code_sim=arguments.code_sim)
    _print_table([(outcome.metrics, summarise(outcome.metrics, outcome.samples))])
    for text in outcome.notes:
        console.print(text, markup=False, soft_wrap=True)
    if arguments.out is not None:
        write_json(arguments.out, record(outcome, e=e, code_sim=arguments.code_sim))
        console.print(f"wrote {arguments.out}", markup=False, soft_wrap=True)


def errors_command(arguments: argparse.Namespace) -> None:
    """Count how the answers of finished runs go wrong."""
    from logodata.common.files import check_apart
    from logodata.judge.settings import RIGHT_AT
    from logoeval.compare.labels import parse_folders
    from logoeval.report.wrong_answers_terminal import show_errors

    below = RIGHT_AT if arguments.wrong_below is None else arguments.wrong_below
    runs = parse_folders(arguments.runs)
    if arguments.out is not None:
        check_apart(arguments.out, *(("a run", folder) for folder in runs.values()))
    show_errors(runs, wrong_below=below, num_examples=arguments.examples, out=arguments.out)


def compare_command(arguments: argparse.Namespace) -> None:
    """Compare runs and write a report."""
    if len(arguments.runs) < 2:
        raise UserError("only one folder to compare", where=arguments.runs[0], mend="give BEFORE and AFTER")
    if arguments.out.suffix != ".html":
        raise UserError("the report is an .html file", where=str(arguments.out), mend="give -o report.html")
    from logodata.common.console import console
    from logodata.common.files import check_apart
    from logoeval.compare.compare import compare
    from logoeval.compare.labels import parse_folders
    from logoeval.report.frame import unfinished
    from logoeval.report.measures import headline_rows
    from logoeval.report.page import write_report

    runs, curves = parse_folders(arguments.runs), parse_folders(arguments.curve)
    read = [*runs.values(), *curves.values(), arguments.data, arguments.run]
    check_apart(arguments.out, *(("what is compared", folder) for folder in read))
    comparison = compare(runs)
    write_report(comparison, arguments.out, data=arguments.data, run=arguments.run, curves=curves)
    _print_changes(comparison, headline_rows(comparison))
    for text in unfinished(comparison):
        console.print(text, markup=False, soft_wrap=True)
    console.print(f"wrote {arguments.out}, and .md and .json beside it", markup=False, soft_wrap=True)


def _print_changes(comparison: Comparison, rows: Sequence[Row]) -> None:
    """Some rows of a comparison, and what of a task they leave out."""
    from rich.table import Table
    from rich.text import Text

    from logodata.common.console import console
    from logoeval.compare.limits import all_limits
    from logoeval.report.measures import terminal_table

    shown = terminal_table(comparison, rows)
    table = Table(*shown.head, box=None, pad_edge=False)
    for row in shown.rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
    tasks = {row.task for row in rows}
    for task, limits in all_limits(comparison).items():
        if task in tasks:
            console.print(f"{task}: {'; '.join(limits)}", markup=False, soft_wrap=True)
