"""``logoeval``: measure a model, compare two measurements."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logodata import __version__
from logodata.common.arguments import parse_arguments
from logodata.common.errors import run_command
from logoeval import commands
from logoeval.tasks.table import TASKS, Option

_EXAMPLES = """\
examples:
{tasks}
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
        epilog=_EXAMPLES.format(tasks="\n".join(f"  {line}" for task in TASKS for line in task.examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"logo-align {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for task in TASKS:
        command = subparsers.add_parser(task.name, help=task.help.removesuffix("."), description=task.help)
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"recipe fields, e.g. {task.override}")
        command.add_argument("--recipe", type=Path, help="recipe (default: recipes/embedded.yaml for --model embedded)")
        for option in task.options:
            _add_option(command, option, task.name)
        if task.over_checkpoints:
            command.add_argument(
                "--checkpoints",
                type=Path,
                metavar="DIR",
                help="the base model and every adapter of RUN/checkpoints; the curve goes to compare --curve",
            )
        _add_common(command)
        command.set_defaults(command=commands.evaluate_command, task=task)
    run = subparsers.add_parser("run", help="all tasks of a recipe", description="Run all tasks of a recipe.")
    run.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe.yaml")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe fields to override, e.g. niah=null")
    run.add_argument("--data", dest="pairs.data", help="folder of held-out pairs; same as pairs.data=DIR")
    _add_common(run)
    run.set_defaults(command=commands.evaluate_command, task=None)

    score = subparsers.add_parser(
        "score",
        help="score prediction files of LongBench",
        description="Score prediction files of LongBench: ours, or in the official format (a file a task).",
    )
    score.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="file, folder, or folder of a run")
    score.add_argument("-e", action="store_true", help="they are LongBench-E's, though their names do not end in _e")
    score.add_argument("--code-sim", choices=("rapidfuzz", "difflib"), default="rapidfuzz", help="ratio of code tasks")
    score.add_argument("-o", "--out", type=Path, help="write the scores here too, as JSON")
    score.set_defaults(command=commands.score_command)

    errors = subparsers.add_parser(
        "errors",
        help="how wrong answers go wrong: hallucination, instruction unfollowing, empty",
        description="Over the answers to questions (held-out documents and pairs, LongBench's English QA) of finished "
        "runs: how many are right, and how the others go wrong (LOGO, Figure 9).",
    )
    errors.add_argument("runs", nargs="+", metavar="[LABEL=]DIR", help="folders of results; each with the first")
    errors.add_argument("-o", "--out", type=Path, help="write the counts and examples here too, as JSON")
    errors.add_argument("--examples", type=int, default=3, metavar="N", help="examples of each kind and run (3)")
    errors.add_argument(
        "--wrong-below",
        type=float,
        metavar="SHARE",
        help="an answer is wrong below this share of a reference's content words (the judge's 0.6)",
    )
    errors.set_defaults(command=commands.errors_command)

    compare = subparsers.add_parser(
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
    compare.set_defaults(command=commands.compare_command)
    return parser


def _add_option(command: argparse.ArgumentParser, option: Option, task: str) -> None:
    kind: dict[str, Any] = {"type": int} if option.kind == "number" else {}
    shown = {"action": "store_true"} if option.kind == "switch" else {"metavar": option.metavar, **kind}
    command.add_argument(option.flag, dest=option.field, help=option.describe(task), **shown)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="model folder, hub name or 'embedded'; same as model=NAME")
    command.add_argument("--adapter", help="folder of a LoRA adapter, such as RUN/final; same as adapter=DIR")
    command.add_argument(
        "--with-base", action="store_true", help="with --adapter: the model without it too; into DIR/base, DIR/adapter"
    )
    command.add_argument("-o", "--out", type=Path, help="folder of the results")
    command.add_argument("--dry-run", action="store_true", help="print the resolved recipe, touch nothing")
    command.add_argument("--schema", action="store_true", help="print the recipe section's JSON schema")
