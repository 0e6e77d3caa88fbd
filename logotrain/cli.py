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
from logodata.common.recipes.types import token_count

if TYPE_CHECKING:
    from logotrain.recipe.settings import TrainRecipe

_EXAMPLES = """\
examples:
  logotrain run --model org/model --data runs/data -o runs/logo
  logotrain run --model org/model --data runs/data -o runs/logo optimizer.lr=2e-5 epochs=1
  logotrain run llama3-80k --data runs/data -o runs/logo --dry-run

The same command continues a run that was stopped. RUN/final is an adapter for PEFT and vLLM."""

_PLAN_EXAMPLES = """\
examples:
  logotrain plan llama3-80k
  logotrain plan llama3-80k --card a100-80gb --gpus 1 --num-rejected 8 recompute=full
  logotrain plan --model org/model --data runs/data --card cpu --gpus 1 --plot coverage.png"""

_MODEL_HELP = (
    "model folder, hub name or 'embedded'; same as model=NAME, but that 'embedded' without a RECIPE takes the settings "
    "of recipes/embedded.yaml too; without a RECIPE other models take the paper's"
)

_CARD, _GPUS = "h100-80gb", 8


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
        "overrides",
        nargs="*",
        metavar="RECIPE | KEY=VALUE",
        help="a recipe (a file, or a shipped one's name) and overrides, e.g. optimizer.lr=1e-5",
    )
    run.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the run: checkpoints, metrics, final/")
    run.add_argument("--model", metavar="NAME", help=_MODEL_HELP)
    run.add_argument("--data", metavar="DIR", help="folder that logodata build wrote; same as data.path=DIR")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, the data's lengths and the plan, touch nothing",
    )
    run.add_argument(
        "--schema", action="store_true", help="print the recipe section's JSON schema, with every field's description"
    )
    run.set_defaults(command=_run)

    plan = commands.add_parser(
        "plan",
        help="estimate memory, work and time of a run",
        description="Estimate a run before it runs: no weights are read. Memory, work, time, and what fits a card.",
        epilog=_PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument(
        "overrides",
        nargs="*",
        metavar="RECIPE | KEY=VALUE",
        help="a recipe (a file, or a shipped one's name) and overrides",
    )
    plan.add_argument("--model", metavar="NAME", help=_MODEL_HELP)
    plan.add_argument("--data", metavar="DIR", help="plan for these data; without them lengths are assumed")
    plan.add_argument("--card", default=_CARD, metavar="NAME", help=f"kind of GPU, or cpu (default {_CARD})")
    plan.add_argument("--gpus", type=_positive, default=_GPUS, metavar="N", help=f"how many (default {_GPUS})")
    plan.add_argument("--prompt-tokens", type=_tokens, metavar="N", help="length of prompts, without data (8K: 8192)")
    plan.add_argument("--response-tokens", type=_tokens, metavar="N", help="length of responses, without data")
    plan.add_argument("--num-rejected", type=_positive, metavar="M", help="dis-preferred responses, without data")
    plan.add_argument("--num-samples", type=_positive, metavar="N", help="samples, without data")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    plan.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG of the positions that training will draw")
    plan.set_defaults(command=_plan)

    merge = commands.add_parser(
        "merge",
        help="write the model with an adapter merged into its weights",
        description="Merge an adapter into its model and write a plain Hugging Face folder, tokenizer included.",
    )
    merge.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of the adapter, such as RUN/final")
    merge.add_argument("--model", required=True, metavar="NAME", help="the model that the adapter was trained on")
    merge.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights written (default the model's own)"
    )
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    merge.set_defaults(command=_merge)
    return parser


def _merge(arguments: argparse.Namespace) -> None:
    from logotrain.inputs import check_merge

    check_merge(arguments.model, arguments.adapter, arguments.output)  # torch takes seconds to import
    from logodata.common.console import quiet_transformers

    quiet_transformers()  # before PEFT is imported
    from logotrain.checkpoints.merge import merge

    result(merge(arguments.model, arguments.adapter, arguments.output, arguments.dtype))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.schema:
        from logodata.common.recipes.reading import recipe_schema
        from logotrain.recipe.settings import TrainRecipe

        print(recipe_schema(TrainRecipe))
        return
    recipe, path = _recipe(arguments)
    if arguments.dry_run:
        _describe(recipe, path, arguments.output)
        return
    if arguments.output is None:
        raise UserError("no folder for the run", mend="give -o DIR")
    from logotrain.run import run

    result(run(recipe, arguments.output))


def _recipe(arguments: argparse.Namespace) -> tuple[TrainRecipe, Path | None]:
    """The recipe that files, options and overrides make together, and the file."""
    from logodata.common.console import note
    from logodata.common.recipes.reading import load_recipe, shipped_recipes
    from logodata.models.loading import EMBEDDED
    from logotrain.recipe.defaults import without_recipe
    from logotrain.recipe.settings import TrainRecipe

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
        note("--model embedded: settings of recipes/embedded.yaml (model=embedded alone takes the defaults)")
    recipe = load_recipe(TrainRecipe, "train", path, overrides)
    if path is None:
        recipe = without_recipe(recipe)
        rate = f"optimizer.lr={recipe.optimizer.lr:g} for tuning={recipe.tuning}"
        note(f"no recipe: the paper's settings for Llama-3-8B, and {rate}; --dry-run shows them all")
    return recipe, path


def _plan(arguments: argparse.Namespace) -> None:
    from logodata.common.console import console
    from logodata.common.files import write_json
    from logotrain.inputs import check_inputs
    from logotrain.plan.choices import CARDS, check_strategy
    from logotrain.recipe.defaults import with_dtype

    if arguments.card not in CARDS:
        raise UserError(f"unknown card {arguments.card!r}", where="--card", mend=f"one of {', '.join(CARDS)}")
    recipe, path = _recipe(arguments)
    recipe = with_dtype(recipe, gpu=arguments.card != "cpu")
    check_strategy(recipe, arguments.gpus)
    check_inputs(recipe, arguments.json, arguments.plot)

    from logotrain.plan.assumed import planned_data
    from logotrain.plan.coverage import plot_coverage
    from logotrain.plan.table import make_plan, render

    planned = planned_data(
        recipe,
        path,
        prompt_tokens=arguments.prompt_tokens,
        response_tokens=arguments.response_tokens,
        num_rejected=arguments.num_rejected,
        num_samples=arguments.num_samples,
    )
    plan = make_plan(recipe, planned, card=arguments.card, num_gpus=arguments.gpus)
    console.print(render(plan))
    if arguments.json is not None:
        write_json(arguments.json, plan.to_json())
    if arguments.plot is not None:
        plot_coverage(recipe, planned, arguments.plot)
    plan.check_fits()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _tokens(text: str) -> int:
    try:
        return _positive(str(token_count(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _describe(recipe: TrainRecipe, path: Path | None, output: Path | None) -> None:
    """The resolved recipe on stdout, as a file that can be run again; the data's lengths and the plan on stderr."""
    import yaml

    from logodata.common.console import note, show
    from logotrain.inputs import check_inputs
    from logotrain.plan.choices import this_machine
    from logotrain.recipe.defaults import with_dtype

    check_inputs(recipe, output)
    card, num_processes = this_machine()
    recipe = with_dtype(recipe, gpu=card != "cpu")

    from logotrain.plan.assumed import planned_data
    from logotrain.plan.table import make_plan, render

    print(yaml.safe_dump({"train": recipe.model_dump(mode="json")}, sort_keys=False), end="")
    planned = planned_data(recipe, path)
    if not planned.assumption:
        show(planned.data.lengths())
    show(render(make_plan(recipe, planned, card=card, num_gpus=num_processes)))
    note(f"planned for this machine; for another: logotrain plan, the same and --card {_CARD} --gpus {_GPUS}")
