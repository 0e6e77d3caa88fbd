"""``logoeval``: the tasks, run, score, errors, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logodata.common.command_line import Program, print_recipe, run_program
from logodata.common.errors import UserError
from logodata.common.options import (
    FILE,
    INPUT,
    PATH_OR_NAME,
    POSITIVE,
    Choice,
    data_option,
    dry_run_option,
    model_option,
    option,
    output_option,
    overrides_argument,
    recipe_argument,
)
from logoeval.tasks.table import TASKS, Task, task_names

if TYPE_CHECKING:
    from logoeval.recipe.settings import EvalRecipe
    from logoeval.rounds.plan import AllSections

_EXAMPLES = "\n".join(
    [
        *(line for task in TASKS for line in task.examples[:1]),
        "logoeval run embedded --data runs/heldout -o runs/before",
        "logoeval compare runs/before runs/after -o report.html --data runs/data --run runs/logo",
        "",
        "Results of several tasks accumulate in one folder. The same command continues one that was interrupted.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process, and return the exit code."""
    return run_program(program, argv)


@click.group("logoeval", cls=Program, examples=_EXAMPLES)
def program() -> None:
    """Measure a long-context model before and after training, with intervals."""


def _section() -> type[EvalRecipe]:
    from logoeval.recipe.settings import EvalRecipe

    return EvalRecipe


@dataclass(frozen=True)
class _Shared:
    """The options of all commands that measure a model."""

    recipe: Path | None
    overrides: Sequence[str]
    model: str | None
    adapter: str | None
    with_base: bool
    output: Path | None
    dry_run: bool


def _measures(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of :class:`_Shared`, as its first parameter."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**options: Any) -> None:
            shared = _Shared(**{field.name: options.pop(field.name) for field in fields(_Shared)})
            function(shared, **options)

        both = "with --adapter: the model without it too; into DIR/base and DIR/adapter"
        adapter = "folder of a LoRA adapter, such as RUN/final; same as adapter=DIR"
        for decorator in (
            dry_run_option(),
            output_option("folder of the results"),
            option("--with-base", both, INPUT),
            option("--adapter DIR", adapter, INPUT, type=PATH_OR_NAME),
            model_option(),
            overrides_argument(_section, example),
            recipe_argument("--model embedded takes recipes/embedded.yaml without one"),
        ):
            command = decorator(command)
        return command

    return decorate


def _add(task: Task) -> None:
    """Give the program the command of a task."""
    names = {entry.flag: f"option_{number}" for number, entry in enumerate(task.options)}

    def command(shared: _Shared, checkpoints: Path | None = None, **values: Any) -> None:
        given: dict[str, object] = {}
        for entry in task.options:
            value = values[names[entry.flag]]
            if value is None or value is False:
                continue
            if entry.needs and not values[names[entry.needs]]:
                raise UserError(f"{entry.flag} without {entry.needs}", where=str(value), mend=f"add {entry.needs}")
            given[f"{task.name}.{entry.field}"] = entry.setting(value)
        _evaluate(shared, task.name, given, checkpoints)

    decorators = [_measures(task.override)]
    for entry in task.options:
        spelling, attributes = entry.flag, dict[str, Any]()
        if entry.kind != "switch":
            spelling += f" {entry.metavar}"
            attributes["type"] = {"path": PATH_OR_NAME, "number": int}.get(entry.kind, str)
        decorators.append(option(spelling, entry.describe(task.name), name=names[entry.flag], **attributes))
    if task.over_checkpoints:
        text = "measure the base model and every adapter of DIR, for compare --curve"
        decorators.append(option("--checkpoints DIR", text, type=FILE))
    for decorate in reversed(decorators):
        command = decorate(command)
    program.command(task.name, help=task.help, examples="\n".join(task.examples))(command)


for _task in TASKS:
    _add(_task)


@program.command(examples="logoeval run embedded --data runs/heldout -o runs/before")
@_measures("niah=null")
@data_option("folder of held-out pairs; same as pairs.data=DIR")
def run(shared: _Shared, data: str | None) -> None:
    """Measure all tasks of a recipe, with one loading of the model."""
    _evaluate(shared, None, {"pairs.data": data})


def _evaluate(shared: _Shared, task: str | None, given: Mapping[str, object], checkpoints: Path | None = None) -> None:
    """Measure a task, or all of the recipe, or print the recipe."""
    from logoeval.recipe.settings import load_eval_recipe, with_begun_dtype

    given = {"model": shared.model, "adapter": shared.adapter, **given}
    recipe = load_eval_recipe(shared.recipe, task, given, shared.overrides)
    tasks = recipe.tasks
    if not tasks:
        where = str(shared.recipe or "command line")
        raise UserError("the recipe has no task", where=where, mend=f"add {', '.join(task_names())}")
    if shared.with_base and recipe.adapter is None:
        mend = "give --adapter DIR, such as RUN/final"
        if checkpoints is not None:
            mend = "--checkpoints measures the base too: leave it out"
        raise UserError("--with-base without an adapter", mend=mend)
    if shared.dry_run:
        print_recipe({"eval": recipe.model_dump(mode="json")})
        return
    if shared.output is None:
        raise UserError("no folder for the results", mend="give -o DIR")
    from logoeval.inputs import check_inputs

    check_inputs(recipe, shared.output, checkpoints)
    from logoeval.report import terminal

    recipe = with_begun_dtype(recipe, shared.output)
    if checkpoints is not None:
        from logoeval.checkpoints import evaluate_checkpoints

        assert task is not None  # run has no --checkpoints
        terminal.show_curve(evaluate_checkpoints(recipe, task, checkpoints, shared.output), shared.output)
    elif shared.with_base:
        from logoeval.with_base import evaluate_with_base

        terminal.show_change(*evaluate_with_base(recipe, tasks, shared.output), tasks)
    else:
        from logoeval.run import evaluate

        terminal.show_results(evaluate(recipe, tasks, shared.output), tasks, shared.output)


def _all_sections() -> type[AllSections]:
    from logoeval.rounds.plan import AllSections

    return AllSections


@program.command(
    examples="""
    logoeval rounds my.yaml --held-out heldout.jsonl -o runs/rounds
    logoeval rounds my.yaml --held-out runs/heldout -o runs/rounds --rounds 4 --gpus 8 train.epochs=2
    """
)
@recipe_argument("required: it has the sections build, train and eval")
@overrides_argument(_all_sections, "train.epochs=2")
@model_option("the model that is trained, where it is not the recipe's")
@option("--held-out DATA", "documents with questions that no round trains on, or a data set built of them", INPUT)
@option("--rounds N", "the most rounds (default 3); the documents are dealt out to them", type=POSITIVE)
@option("--control", "then one round with as many updates on the same documents, to compare the last one with")
@option("--keep-going", "run all rounds, also where nothing rises any more")
@option("--gpus N", "processes of a training run, under torchrun (default 1)", type=POSITIVE)
@output_option("folder of all rounds")
@dry_run_option("print the commands and touch nothing")
def rounds(
    recipe: Path | None,
    overrides: Sequence[str],
    model: str | None,
    held_out: str | None,
    rounds: int | None,
    control: bool,
    keep_going: bool,
    gpus: int | None,
    output: Path | None,
    dry_run: bool,
) -> None:
    """Build, train and measure in rounds, each with the last round's adapter, until no measure rises.

    Each round builds data of its own documents, answered by the adapter so far, trains this adapter on, and measures
    it on the held-out data. An interrupted command goes on when it is run again.
    """
    if recipe is None:
        raise UserError("no recipe given", mend="give one with the sections build, train and eval")
    if held_out is None:
        raise UserError("no held-out data given", mend="give --held-out DATA: documents that no round trains on")
    from logoeval.rounds.plan import Rounds, by_section, check_recipe

    folder = output or Path("ROUNDS")
    plan = Rounds(
        str(recipe),
        folder,
        rounds or 3,
        held_out,
        model,
        gpus or 1,
        by_section(overrides),
        control=control,
        keep_going=keep_going,
    )
    check_recipe(plan)
    if dry_run:
        steps = [*plan.first_steps(), *(step for n in range(1, plan.count + 1) for step in plan.steps(n))]
        if plan.control and plan.count > 1:
            steps += plan.control_steps(plan.count, "THE_ROUNDS_UPDATES", epochs="ENOUGH")
        for step in steps:
            print(step)
        return
    if output is None:
        raise UserError("no folder for the rounds", mend="give -o DIR")
    from logoeval.rounds.driver import run_rounds
    from logoeval.rounds.table import show_rounds

    show_rounds(run_rounds(plan), plan.report, plan.control_report)


@program.command(examples="logoeval score predictions/ -o scores.json")
@click.argument("predictions", type=FILE, help="file, folder, or folder of a run")
@option("-e", "they are LongBench-E's, though their names do not end in _e")
@option("--code-sim", "ratio of code tasks", type=Choice(("rapidfuzz", "difflib")), default="rapidfuzz")
@output_option("write the scores here too, as JSON", "FILE")
def score(predictions: Path, e: bool, code_sim: Any, output: Path | None) -> None:
    """Score prediction files of LongBench (a file a task) or LongBench v2: ours, official, or of other tools."""
    from logodata.common.files import check_apart, make_folder_of, write_json
    from logoeval.report.terminal import say, show_scores
    from logoeval.tasks.longbench.score_files import record, score_predictions
    from logoeval.tasks.longbench2 import score_files as longbench2

    if output is not None:
        check_apart(output, ("the predictions", predictions))
        make_folder_of(output)  # all of LongBench takes minutes to score: a name that cannot be is told first
    if (choices := longbench2.find_predictions(predictions)) is not None:
        outcome = longbench2.score_predictions(choices)
        scored = record(outcome, "LongBench v2")
    else:
        outcome, e = score_predictions(predictions, e=e, code_sim=code_sim)
        scored = record(outcome, "LongBench-E" if e else "LongBench", code_sim)
    show_scores(outcome)
    if output is not None:
        write_json(output, scored.to_json())
        say(f"wrote {output}")


@program.command(examples="logoeval errors runs/before runs/after")
@click.argument("runs", nargs=-1, required=True, metavar="[LABEL=]DIR...", help="results; each against the first")
@option("--examples N", "examples of each kind and run (default 3)", type=int, default=3)
@option("--wrong-below SHARE", "least share of a reference's words in a right answer (default 0.6)", type=float)
@output_option("write the counts and examples here too, as JSON", "FILE")
def errors(runs: Sequence[str], examples: int, wrong_below: float | None, output: Path | None) -> None:
    """Count how wrong answers go wrong: hallucination, instruction unfollowing, empty.

    It takes the answers to questions (held-out documents and pairs, LongBench's English QA) of finished runs, and says
    how many are right and how the others go wrong (LOGO, Figure 9).
    """
    from logodata.common.files import check_apart
    from logodata.judge.settings import RIGHT_AT
    from logoeval.compare.labels import parse_folders
    from logoeval.report.terminal import show_errors

    folders = parse_folders(runs)
    if output is not None:
        check_apart(output, *(("a run", folder) for folder in folders.values()))
    below = RIGHT_AT if wrong_below is None else wrong_below
    show_errors(folders, wrong_below=below, num_examples=examples, out=output)


@program.command(
    examples="""
    logoeval compare runs/before runs/after -o report.html --data runs/data --run runs/logo
    logoeval compare base=runs/1/eval sft=runs/2/eval logo=runs/3/eval -o report.html
    logoeval compare runs/before runs/after -o report.html --curve runs/curve-1 runs/curve-2
    """
)
@click.argument("runs", nargs=-1, required=True, metavar="[LABEL=]DIR...", help="folders of results: BEFORE AFTER ...")
@option("--data DIR", "folder of the training data, to tell how they were built", INPUT, type=FILE)
@option("--run DIR", "folder of the training run, for its curve", INPUT, type=FILE)
@option(
    "--curve [LABEL=]DIR...", "folders of niah or qa --checkpoints, for what training changed when", INPUT, several=True
)
@output_option("report.html; .md and .json beside it", "FILE", required=True)
def compare(runs: Sequence[str], data: Path | None, run: Path | None, curve: Sequence[str], output: Path) -> None:
    """Compare measurements sample by sample, each with the first, and write a report."""
    if len(runs) < 2:
        raise UserError("only one folder to compare", where=runs[0], mend="give BEFORE and AFTER")
    if output.suffix != ".html":
        raise UserError("the report is an .html file", where=str(output), mend="give -o report.html")
    from logodata.common.files import check_apart
    from logoeval.compare.compare import compare
    from logoeval.compare.labels import parse_folders
    from logoeval.report.headline import unfinished
    from logoeval.report.measures import headline_rows
    from logoeval.report.page import write_report
    from logoeval.report.terminal import say, show_rows

    folders, curves = parse_folders(runs), parse_folders(curve)
    read = [*folders.values(), *curves.values(), data, run]
    check_apart(output, *(("what is compared", folder) for folder in read))
    comparison = compare(folders)
    write_report(comparison, output, data=data, run=run, curves=curves)
    show_rows(comparison, headline_rows(comparison))
    for text in unfinished(comparison):
        say(text)
    say(f"wrote {output}, and .md and .json beside it")
