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
    Choice,
    data_option,
    dry_run_option,
    model_option,
    option,
    output_option,
    overrides_argument,
    recipe_argument,
)

if TYPE_CHECKING:
    from logoeval.recipe.settings import EvalRecipe

_EXAMPLES = """
logoeval longbench --model embedded --data data.zip --tasks qasper,hotpotqa -o runs/before
logoeval niah --model embedded -o runs/before niah.lengths=[1024,2048] niah.num_samples=10
logoeval qa --model embedded --adapter runs/logo/final --with-base --data runs/questions -o runs/qa
logoeval run embedded --data runs/heldout -o runs/before
logoeval compare runs/before runs/after -o report.html --data runs/data --run runs/logo

Tasks accumulate in one folder. The same command continues one that was interrupted.
"""


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


@program.command(examples="logoeval longbench --model embedded --data data.zip --tasks qasper,hotpotqa -o runs/before")
@_measures("engine.max_model_len=8192")
@data_option("data.zip, folder or file of rows; same as longbench.data=PATH", "PATH")
@option("--tasks A,B", "same as longbench.tasks=[A,B]")
@option("-e", "LongBench-E; same as longbench.e=true")
def longbench(shared: _Shared, data: str | None, tasks: str | None, e: bool) -> None:
    """Measure LongBench, or LongBench-E: 21 tasks on long texts, with the official prompts and scores."""
    given = {"longbench.data": data, "longbench.tasks": _names(tasks), "longbench.e": e or None}
    _evaluate(shared, "longbench", given)


@program.command(
    examples="""
    logoeval niah --model embedded -o runs/before niah.lengths=[1024,2048] niah.num_samples=10
    logoeval niah --model embedded -o runs/map niah.variant=single niah.lengths=512-1536/256 niah.depths=[0,22,44,66,88]
    logoeval niah --model embedded --retrieval -o runs/heads
    """
)
@_measures("niah.num_samples=10")
@option("--retrieval", "also what the heads find (LOGO, Eq. 5); same as niah.retrieval={}")
@option("--heads FILE", "with --retrieval: heads.json of another run; same as niah.retrieval.heads=FILE", type=FILE)
@option("--checkpoints DIR", "measure the base model and every adapter of DIR, for compare --curve", type=FILE)
def niah(shared: _Shared, retrieval: bool, heads: Path | None, checkpoints: Path | None) -> None:
    """Have the model find numbers hidden in a long text, by length and depth: needle in a haystack."""
    if heads is not None and not retrieval:
        raise UserError("--heads without --retrieval", where=str(heads), mend="add --retrieval")
    given: dict[str, object] = {
        "niah.retrieval": {} if retrieval else None,
        "niah.retrieval.heads": heads and str(heads),
    }
    _evaluate(shared, "niah", given, checkpoints)


@program.command(
    examples="logoeval qa --model embedded --adapter runs/logo/final --with-base --data runs/questions -o runs/qa"
)
@_measures("qa.max_samples=100")
@data_option("folder that logodata build wrote; same as qa.data=DIR")
def qa(shared: _Shared, data: str | None) -> None:
    """Measure the model's own answers to questions on held-out documents."""
    _evaluate(shared, "qa", {"qa.data": data})


@program.command(examples="logoeval pairs --model embedded --adapter runs/logo/final --data runs/heldout -o runs/after")
@_measures("pairs.max_samples=16")
@data_option("folder that logodata build wrote; same as pairs.data=DIR")
def pairs(shared: _Shared, data: str | None) -> None:
    """Measure held-out preference pairs: the reward margin, and the model's own answers."""
    _evaluate(shared, "pairs", {"pairs.data": data})


@program.command(
    examples="logoeval ppl --model embedded --adapter runs/logo/final --with-base -o runs/ppl ppl.protocol=sliding"
)
@_measures("ppl.lengths=[1024,2048]")
def ppl(shared: _Shared) -> None:
    """Measure the perplexity of long texts by the number of tokens read."""
    _evaluate(shared, "ppl", {})


@program.command(
    examples="logoeval short --model embedded --adapter runs/logo/final -o runs/after --tasks arc_easy,truthfulqa_mc1"
)
@_measures("short.batch_size=32")
@option("--tasks A,B", "same as short.tasks=[A,B]")
@option("--include-path DIR", "task files (YAML) of your own; same as short.include_path=DIR", type=PATH_OR_NAME)
@option("--limit N", "first N samples of each task; same as short.limit=N", type=int)
def short(shared: _Shared, tasks: str | None, include_path: str | None, limit: int | None) -> None:
    """Measure MMLU, ARC and TruthfulQA through lm-evaluation-harness, or any other of its tasks."""
    given = {"short.tasks": _names(tasks), "short.include_path": include_path, "short.limit": limit}
    _evaluate(shared, "short", given)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


@program.command(examples="logoeval run embedded --data runs/heldout -o runs/before")
@_measures("niah=null")
@data_option("folder of held-out pairs; same as pairs.data=DIR")
def run(shared: _Shared, data: str | None) -> None:
    """Measure all tasks of a recipe, with one loading of the model."""
    _evaluate(shared, None, {"pairs.data": data})


def _evaluate(shared: _Shared, task: str | None, given: Mapping[str, object], checkpoints: Path | None = None) -> None:
    """Measure a task, or all of the recipe, or print the recipe."""
    from logoeval.recipe.settings import load_eval_recipe
    from logoeval.records import TASK_NAMES

    given = {"model": shared.model, "adapter": shared.adapter, **given}
    recipe = load_eval_recipe(shared.recipe, task, given, shared.overrides)
    tasks = [name for name in TASK_NAMES if getattr(recipe, name) is not None]
    if not tasks:
        where = str(shared.recipe or "command line")
        raise UserError("the recipe has no task", where=where, mend=f"add {', '.join(TASK_NAMES)}")
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

    if checkpoints is not None:
        from logoeval.checkpoints import evaluate_checkpoints

        terminal.show_curve(evaluate_checkpoints(recipe, checkpoints, shared.output), shared.output)
    elif shared.with_base:
        from logoeval.with_base import evaluate_with_base

        terminal.show_change(*evaluate_with_base(recipe, tasks, shared.output), tasks)
    else:
        from logoeval.run import evaluate

        terminal.show_results(evaluate(recipe, tasks, shared.output), tasks, shared.output)


@program.command(examples="logoeval score predictions/ -o scores.json")
@click.argument("predictions", type=FILE, help="file, folder, or folder of a run")
@option("-e", "they are LongBench-E's, though their names do not end in _e")
@option("--code-sim", "ratio of code tasks", type=Choice(("rapidfuzz", "difflib")), default="rapidfuzz")
@output_option("write the scores here too, as JSON", "FILE")
def score(predictions: Path, e: bool, code_sim: Any, output: Path | None) -> None:
    """Score prediction files of LongBench: ours, or in the official format (a file a task)."""
    from logodata.common.files import check_apart, make_folder_of, write_json
    from logoeval.report.terminal import say, show_scores
    from logoeval.tasks.longbench.score_files import record, score_predictions

    if output is not None:
        check_apart(output, ("the predictions", predictions))
        make_folder_of(output)  # all of LongBench takes minutes to score: a name that cannot be is told first
    outcome, e = score_predictions(predictions, e=e, code_sim=code_sim)
    show_scores(outcome)
    if output is not None:
        write_json(output, record(outcome, e=e, code_sim=code_sim))
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
    from logoeval.report.wrong_answers_terminal import show_errors

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
@option("--curve [LABEL=]DIR...", "folders of niah --checkpoints, for needles over training", INPUT, several=True)
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
    from logoeval.report.frame import unfinished
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
