"""``logoeval``: measure a model, compare two measurements."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logodata import __version__
from logodata.common.arguments import parse_arguments
from logodata.common.errors import UserError, run_command

if TYPE_CHECKING:
    from logoeval.compare import Comparison, Row
    from logoeval.recipe import EvalRecipe
    from logoeval.records import Metric, Results, SummaryRow, TaskName

_TASKS = {
    "longbench": "LongBench, or LongBench-E: 21 tasks on long texts, with the official prompts and scores",
    "niah": "needle in a haystack: numbers hidden in a long text, by length and depth",
    "pairs": "held-out preference pairs: reward margin, and the model's own answers",
    "ppl": "perplexity of long texts by the number of tokens read",
    "short": "MMLU, ARC and TruthfulQA through lm-evaluation-harness, or any other of its tasks",
}

_EXAMPLE = {
    "longbench": "engine.max_model_len=8192",
    "niah": "niah.num_samples=10",
    "pairs": "pairs.max_samples=16",
    "ppl": "ppl.lengths=[1024,2048]",
    "short": "short.batch_size=32",
}

_EXAMPLES = """\
examples:
  logoeval longbench --model embedded --data data.zip --tasks qasper,hotpotqa -o runs/before
  logoeval niah --model embedded -o runs/before niah.lengths=[1024,2048] niah.num_samples=10
  logoeval niah --model embedded -o runs/map niah.variant=single niah.lengths=512-1536/256 niah.depths=[0,22,44,66,88]
  logoeval pairs --model embedded --adapter runs/logo/final --data runs/heldout -o runs/after
  logoeval ppl --model embedded --adapter runs/logo/final --with-base -o runs/ppl ppl.protocol=sliding
  logoeval short --model embedded --adapter runs/logo/final -o runs/after --tasks arc_easy,truthfulqa_mc1
  logoeval run recipes/embedded.yaml --data runs/heldout -o runs/before
  logoeval score predictions/ -o scores.json
  logoeval errors runs/before runs/after
  logoeval compare runs/before runs/after -o report.html --data runs/data --run runs/logo
  logoeval compare base=runs/1/eval sft=runs/2/eval logo=runs/3/eval -o report.html

Tasks accumulate in one folder. The same command continues one that was interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 2 the input is at fault, 130 interrupted)."""
    arguments = parse_arguments(_parser(), argv)
    return run_command("logoeval", lambda: arguments.command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="logoeval",
        description="Measure a long-context model before and after training, with intervals.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"logo-align {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for task, text in _TASKS.items():
        command = commands.add_parser(task, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"recipe fields, e.g. {_EXAMPLE[task]}")
        command.add_argument("--recipe", type=Path, help="recipe (default: recipes/embedded.yaml for --model embedded)")
        if task == "pairs":
            command.add_argument("--data", help="folder of held-out pairs; same as pairs.data=DIR")
        if task == "longbench":
            _add_longbench(command)
        if task == "niah":
            _add_niah(command)
        if task == "short":
            _add_short(command)
        _add_common(command)
        command.set_defaults(command=_evaluate, tasks=(task,), data=None)
    run = commands.add_parser("run", help="all tasks of a recipe", description="Run all tasks of a recipe.")
    run.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe.yaml")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe fields to override, e.g. niah=null")
    run.add_argument("--data", help="folder of held-out pairs; same as pairs.data=DIR")
    _add_common(run)
    run.set_defaults(command=_evaluate, tasks=None)

    score = commands.add_parser(
        "score",
        help="score prediction files of LongBench",
        description="Score prediction files of LongBench: ours, or in the official format (a file a task).",
    )
    score.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="file, folder, or folder of a run")
    score.add_argument("-e", action="store_true", help="they are LongBench-E's, though their names do not end in _e")
    score.add_argument("--code-sim", choices=("rapidfuzz", "difflib"), default="rapidfuzz", help="ratio of code tasks")
    score.add_argument("-o", "--out", type=Path, help="write the scores here too, as JSON")
    score.set_defaults(command=_score)

    errors = commands.add_parser(
        "errors",
        help="how wrong answers go wrong: hallucination, instruction unfollowing, empty",
        description="Over the answers to questions (held-out pairs, LongBench's English QA) of finished runs: how many "
        "are right, and how the others go wrong (LOGO, Figure 9).",
    )
    errors.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of results; each with the first")
    errors.add_argument("-o", "--out", type=Path, help="write the counts and examples here too, as JSON")
    errors.add_argument("--examples", type=int, default=3, metavar="N", help="examples of each kind and run (3)")
    errors.add_argument(
        "--wrong-below",
        type=float,
        metavar="SHARE",
        help="an answer is wrong below this share of a reference's content words (the judge's 0.6)",
    )
    errors.set_defaults(command=_errors)

    compare = commands.add_parser(
        "compare",
        help="a report on two or more measurements",
        description="Compare measurements sample by sample, each with the first, and write a report.",
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]DIR",
        help="folders: BEFORE AFTER [MORE...], each under its own name or LABEL",
    )
    compare.add_argument("-o", "--out", required=True, type=Path, help="report.html; .md and .json beside it")
    compare.add_argument("--data", type=Path, help="folder of the training data, to tell how they were built")
    compare.add_argument("--run", type=Path, help="folder of the training run, for its curve")
    compare.add_argument(
        "--curve",
        nargs="+",
        default=(),
        metavar="[LABEL=]DIR",
        help="folders of logoeval niah --checkpoints, for needles over training",
    )
    compare.set_defaults(command=_compare)
    return parser


def _add_longbench(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", help="data.zip, folder or file of rows; same as longbench.data=PATH")
    command.add_argument("--tasks", dest="longbench_tasks", metavar="A,B", help="same as longbench.tasks=[A,B]")
    command.add_argument("-e", dest="longbench_e", action="store_true", help="LongBench-E; same as longbench.e=true")


def _add_niah(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--retrieval", action="store_true", help="also what the heads find (LOGO, Eq. 5); same as niah.retrieval={}"
    )
    command.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="the base model and every adapter of RUN/checkpoints; the curve goes to compare --curve",
    )
    command.add_argument(
        "--heads", help="with --retrieval: heads.json of the base model's run; same as niah.retrieval.heads=FILE"
    )


def _add_short(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tasks", dest="short_tasks", metavar="A,B", help="same as short.tasks=[A,B]")
    command.add_argument(
        "--include-path", metavar="DIR", help="task files (YAML) of your own; same as short.include_path=DIR"
    )
    command.add_argument("--limit", type=int, metavar="N", help="first N samples of each task; same as short.limit=N")


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="model folder, hub name or 'embedded'; same as model=NAME")
    command.add_argument("--adapter", help="folder of a LoRA adapter, such as RUN/final; same as adapter=DIR")
    command.add_argument(
        "--with-base", action="store_true", help="with --adapter: the model without it too; into DIR/base, DIR/adapter"
    )
    command.add_argument("-o", "--out", type=Path, help="folder of the results")
    command.add_argument("--dry-run", action="store_true", help="print the resolved recipe, touch nothing")
    command.add_argument("--schema", action="store_true", help="print the recipe section's JSON schema")


def _evaluate(arguments: argparse.Namespace) -> None:
    from logoeval.recipe import EvalRecipe
    from logoeval.records import TASK_NAMES

    if arguments.schema:
        from logodata.common.recipe_io import recipe_schema

        print(recipe_schema(EvalRecipe))
        return
    recipe = _load_recipe(arguments)
    tasks = [task for task in TASK_NAMES if getattr(recipe, task) is not None]
    if not tasks:
        raise UserError("the recipe has no task", where=str(arguments.recipe), mend=f"add {', '.join(TASK_NAMES)}")
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
    if tasks == ["niah"] and getattr(arguments, "checkpoints", None) is not None:
        from logoeval.checkpoints import evaluate_checkpoints

        _show_curve(evaluate_checkpoints(recipe, arguments.checkpoints, arguments.out), arguments.out)
        return
    if arguments.with_base:
        from logoeval.base_and_adapter import evaluate_with_base

        _show_change(*evaluate_with_base(recipe, tasks, arguments.out), tasks)
        return
    from logoeval.run import evaluate

    _show(evaluate(recipe, tasks, arguments.out), tasks, arguments.out)


def _load_recipe(arguments: argparse.Namespace) -> EvalRecipe:
    from logodata.common.recipe_io import load_recipe, shipped_recipes
    from logodata.models import EMBEDDED
    from logoeval.recipe import EvalRecipe

    overrides: list[str] = list(arguments.overrides)
    longbench = arguments.tasks == ("longbench",)
    given: dict[str, object] = {
        "model": arguments.model,
        "adapter": arguments.adapter,
        "longbench.data" if longbench else "pairs.data": arguments.data,
    }
    if longbench:
        names = arguments.longbench_tasks
        given["longbench.tasks"] = None if names is None else [name.strip() for name in names.split(",")]
        given["longbench.e"] = True if arguments.longbench_e else None
    if arguments.tasks == ("niah",):
        if arguments.heads is not None and not arguments.retrieval:
            raise UserError("--heads without --retrieval", where=arguments.heads, mend="add --retrieval")
        given["niah.retrieval"] = {} if arguments.retrieval else None
        given["niah.retrieval.heads"] = arguments.heads
    if arguments.tasks == ("short",):
        names = arguments.short_tasks
        given["short.tasks"] = None if names is None else [name.strip() for name in names.split(",")]
        given["short.include_path"] = arguments.include_path
        given["short.limit"] = arguments.limit
    overrides += [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    path: Path | None = arguments.recipe
    if path is None and arguments.model == EMBEDDED:
        path = shipped_recipes() / "embedded.yaml"
    if arguments.tasks is None:
        return load_recipe(EvalRecipe, "eval", path, overrides)
    # One task: the recipe's others are dropped, and its defaults serve where the recipe does not have it.
    (task,) = arguments.tasks
    others = [f"{other}=null" for other in _TASKS if other != task]
    recipe = load_recipe(EvalRecipe, "eval", path, [*overrides, *others])
    if getattr(recipe, task) is None:
        recipe = load_recipe(EvalRecipe, "eval", path, [f"{task}={{}}", *overrides, *others])
    return recipe


def _show(results: Results, tasks: Sequence[TaskName], folder: Path) -> None:
    """The means with their intervals."""
    from logodata.common.console import console

    _print_table([(results.tasks[task].metrics, results.tasks[task].summary) for task in tasks])
    for task in tasks:
        for text in results.tasks[task].notes:
            console.print(f"{task}: {text}", markup=False, soft_wrap=True)
    console.print(f"wrote {folder / 'results.json'}", markup=False, soft_wrap=True)


def _show_change(base: Path, adapter: Path, tasks: Sequence[TaskName]) -> None:
    """What the adapter changes, sample by sample, and how to make a page of it."""
    import shlex

    from logodata.common.console import console
    from logoeval.compare import compare

    comparison = compare([base, adapter])
    _print_changes(comparison, [row for row in comparison.rows if row.task in tasks and not row.slice])
    for task in tasks:
        for text in dict.fromkeys(text for run in comparison.runs for text in run.results.tasks[task].notes):
            console.print(f"{task}: {text}", markup=False, soft_wrap=True)
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
    from logoeval.records import is_cell, slice_label

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


def _score(arguments: argparse.Namespace) -> None:
    from logodata.common.console import console
    from logodata.common.run_dir import write_json
    from logoeval.longbench.score import record, score_predictions
    from logoeval.records import summarise

    outcome, e = score_predictions(arguments.predictions, e=arguments.e, code_sim=arguments.code_sim)
    _print_table([(outcome.metrics, summarise(outcome.metrics, outcome.samples))])
    for text in outcome.notes:
        console.print(text, markup=False, soft_wrap=True)
    if arguments.out is not None:
        write_json(arguments.out, record(outcome, e=e, code_sim=arguments.code_sim))
        console.print(f"wrote {arguments.out}", markup=False, soft_wrap=True)


def _errors(arguments: argparse.Namespace) -> None:
    from logodata.judge import RIGHT_AT
    from logoeval.errors_text import show_errors

    below = RIGHT_AT if arguments.wrong_below is None else arguments.wrong_below
    show_errors(arguments.runs, wrong_below=below, num_examples=arguments.examples, out=arguments.out)


def _compare(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) < 2:
        raise UserError("only one folder to compare", where=arguments.runs[0], mend="give BEFORE and AFTER")
    if arguments.out.suffix != ".html":
        raise UserError("the report is an .html file", where=str(arguments.out), mend="give -o report.html")
    from logodata.common.console import console
    from logoeval.compare import compare
    from logoeval.labels import parse_folders
    from logoeval.measures import headline_rows
    from logoeval.report import write_report
    from logoeval.report_frame import unfinished

    comparison = compare(parse_folders(arguments.runs))
    curves = parse_folders(arguments.curve)
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
    from logoeval.measures import terminal_table
    from logoeval.scope import all_limits

    shown = terminal_table(comparison, rows)
    table = Table(*shown.head, box=None, pad_edge=False)
    for row in shown.rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
    tasks = {row.task for row in rows}
    for task, limits in all_limits(comparison).items():
        if task in tasks:
            console.print(f"{task}: {'; '.join(limits)}", markup=False, soft_wrap=True)
