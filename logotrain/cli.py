"""``logotrain``: train a model with LOGO on a data set that ``logodata build`` wrote."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logodata import __version__
from logodata.common.arguments import parse_arguments
from logodata.common.console import result
from logodata.common.errors import UserError, run_command

if TYPE_CHECKING:
    from logotrain.recipe import TrainRecipe

_EXAMPLES = """\
examples:
  logotrain run recipes/embedded.yaml --data runs/data -o runs/logo
  logotrain run recipes/embedded.yaml --data runs/data -o runs/logo optimizer.lr=2e-4 epochs=1
  logotrain run --model embedded --data runs/data -o runs/logo --dry-run

The same command continues a run that was stopped. RUN/final is an adapter for PEFT and vLLM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 2 the input is at fault, 130 interrupted)."""
    arguments = parse_arguments(_parser(), argv)
    return run_command("logotrain", lambda: arguments.command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="logotrain", description="Train with LOGO: one shared prompt a sample, exact gradients."
    )
    parser.add_argument("--version", action="version", version=f"logo-align {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train, or continue a stopped run",
        description="Train as a recipe's 'train' section says; continues a run that was stopped.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "overrides", nargs="*", metavar="RECIPE | KEY=VALUE", help="a recipe file and overrides, e.g. optimizer.lr=1e-5"
    )
    run.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the run: checkpoints, metrics, final/")
    run.add_argument("--model", metavar="NAME", help="model folder, hub name or 'embedded'; same as model=NAME")
    run.add_argument("--data", metavar="DIR", help="folder that logodata build wrote; same as data.path=DIR")
    run.add_argument(
        "--dry-run", action="store_true", help="print the resolved recipe and the data's lengths, touch nothing"
    )
    run.add_argument(
        "--schema", action="store_true", help="print the recipe section's JSON schema, with every field's description"
    )
    run.set_defaults(command=_run)

    merge = commands.add_parser(
        "merge",
        help="write the model with an adapter merged into its weights",
        description="Merge an adapter into its model and write a plain Hugging Face folder, tokenizer included.",
    )
    merge.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of the adapter, such as RUN/final")
    merge.add_argument("--model", required=True, metavar="NAME", help="the model that the adapter was trained on")
    merge.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    merge.set_defaults(command=_merge)
    return parser


def _merge(arguments: argparse.Namespace) -> None:
    from logotrain.merge import merge

    print(merge(arguments.model, arguments.adapter, arguments.output, arguments.dtype))


def _run(arguments: argparse.Namespace) -> None:
    from logodata.common.recipe_io import load_recipe, recipe_schema, shipped_recipes
    from logodata.models import EMBEDDED
    from logotrain.recipe import TrainRecipe

    if arguments.schema:
        print(recipe_schema(TrainRecipe))
        return
    files = [text for text in arguments.overrides if "=" not in text]
    overrides = [text for text in arguments.overrides if "=" in text]
    for key, value in (("model", arguments.model), ("data.path", arguments.data)):
        if value is not None:
            overrides.append(f"{key}={json.dumps(value)}")
    if len(files) > 1:
        raise UserError(f"two recipes: {files[0]} and {files[1]}", mend="give one; overrides are written key=value")
    path = Path(files[0]) if files else None
    if path is None and arguments.model == EMBEDDED:
        path = shipped_recipes() / "embedded.yaml"
    recipe = load_recipe(TrainRecipe, "train", path, overrides)

    if arguments.dry_run:
        _describe(recipe)
        return
    if arguments.output is None:
        raise UserError("no folder for the run", mend="give -o DIR")
    from logotrain.run import run

    result(run(recipe, arguments.output))


def _describe(recipe: TrainRecipe) -> None:
    """The resolved recipe on stdout, as a file that can be run again; the data's lengths on stderr."""
    import yaml

    from logodata.common.console import stderr
    from logotrain.data import load_data

    print(yaml.safe_dump({"train": recipe.model_dump(mode="json")}, sort_keys=False), end="")
    stderr.print(load_data(recipe).lengths())
