"""``logotrain``: run, plan, merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logodata.common.command_line import Program, print_recipe, run_program
from logodata.common.errors import UserError
from logodata.common.options import (
    FILE,
    OUTPUT,
    POSITIVE,
    TokenCount,
    data_option,
    dry_run_option,
    dtype_option,
    model_option,
    option,
    output_option,
    overrides_argument,
    recipe_argument,
)
from logodata.common.verbosity import quiet_transformers

if TYPE_CHECKING:
    from logotrain.recipe.settings import TrainRecipe

_CARD, _GPUS = "h100-80gb", 8
_WITHOUT_DATA = "Lengths, without data"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process, and return the exit code."""
    return run_program(program, argv)


@click.group("logotrain", cls=Program)
def program() -> None:
    """Train with LOGO: one shared prompt a sample, exact gradients."""


def _section() -> type[TrainRecipe]:
    from logotrain.recipe.settings import TrainRecipe

    return TrainRecipe


_recipe = recipe_argument("without one a model takes the paper's settings")
_model = model_option(
    "model folder, hub name or 'embedded'; same as model=NAME, but that 'embedded' without a RECIPE takes the settings "
    "of recipes/embedded.yaml too"
)


@program.command(
    examples="""
    logotrain run --model org/model --data runs/data -o runs/logo
    logotrain run --model org/model --data runs/data -o runs/logo optimizer.lr=2e-5 epochs=1
    logotrain run llama3-80k --data runs/data -o runs/logo --dry-run
    """
)
@_recipe
@overrides_argument(_section, "optimizer.lr=1e-5")
@_model
@data_option("folder that logodata build wrote, or pairs of your own; same as data.path=DIR", "DIR|PAIRS")
@option("--max-steps N", "stop after N steps; same as max_steps=N", type=POSITIVE)
@option("--init-adapter DIR", "start from this adapter; same as lora.init_adapter=DIR", type=FILE)
@output_option("folder of the run: checkpoints, metrics, final/")
@dry_run_option("print the resolved recipe, the data's lengths and the plan, and touch nothing")
def run(
    recipe: Path | None,
    overrides: Sequence[str],
    model: str | None,
    data: str | None,
    max_steps: int | None,
    init_adapter: Path | None,
    output: Path | None,
    dry_run: bool,
) -> None:
    """Train as a recipe's 'train' section says, or go on with a run that was stopped.

    The same command continues a run that was stopped. RUN/final is an adapter for PEFT and vLLM.
    """
    from logotrain.recipe.defaults import load_train_recipe

    settings, file = load_train_recipe(
        recipe, model, overrides, **{"data.path": data, "max_steps": max_steps, "lora.init_adapter": init_adapter}
    )
    if dry_run:
        _describe(settings, file, output)
        return
    if output is None:
        raise UserError("no folder for the run", mend="give -o DIR")
    from logodata.common.console import result
    from logotrain.run import run

    result(run(settings, output))


def _describe(recipe: TrainRecipe, path: Path | None, output: Path | None) -> None:
    """Print the resolved recipe, which can be run again, on stdout, the data's lengths and the plan on stderr."""
    from logodata.common.console import note, show
    from logotrain.inputs import check_inputs
    from logotrain.plan.choices import check_strategy
    from logotrain.plan.cost import this_machine
    from logotrain.recipe.defaults import computes_bfloat16, with_dtype, with_positions

    check_inputs(recipe, output)
    card, num_processes = this_machine()
    recipe = with_dtype(recipe, gpu=computes_bfloat16())
    check_strategy(recipe, num_processes)
    quiet_transformers()  # before PEFT is imported

    from logotrain.pairs import imported_for_now
    from logotrain.plan.assumed import planned_data
    from logotrain.plan.table import make_plan, render

    with imported_for_now(recipe) as found:
        settled = with_positions(found)
        recipe = recipe.model_copy(update={"positions": settled.positions})
        print_recipe({"train": recipe.model_dump(mode="json")})
        planned = planned_data(settled, path)
    if not planned.assumption:
        show(planned.data.lengths())
    show(render(make_plan(recipe, planned, card=card, num_gpus=num_processes)))
    note(f"planned for this machine; for another: logotrain plan, the same and --card {_CARD} --gpus {_GPUS}")


@program.command(
    examples="""
    logotrain plan llama3-80k
    logotrain plan llama3-80k --card a100-80gb --gpus 1 --num-rejected 8 recompute=full
    logotrain plan --model org/model --data runs/data --card cpu --gpus 1 --plot coverage.png
    """
)
@_recipe
@overrides_argument(_section, "recompute=full")
@_model
@data_option("plan for these data or pairs; without them lengths are assumed", "DIR|PAIRS")
@option("--card NAME", f"kind of GPU, or cpu (default {_CARD})", default=_CARD)
@option("--gpus N", f"how many (default {_GPUS})", type=POSITIVE, default=_GPUS)
@option("--prompt-tokens N", "of prompts (8K is 8192)", _WITHOUT_DATA, type=TokenCount())
@option("--response-tokens N", "of responses", _WITHOUT_DATA, type=TokenCount())
@option("--num-rejected M", "dis-preferred responses of a sample", _WITHOUT_DATA, type=POSITIVE)
@option("--num-samples N", "how many samples", _WITHOUT_DATA, type=POSITIVE)
@option("--json FILE", "write all figures as JSON", OUTPUT, name="json_file", type=FILE)
@option("--plot FILE", "write a PNG of the positions that training will draw", OUTPUT, type=FILE)
def plan(
    recipe: Path | None,
    overrides: Sequence[str],
    model: str | None,
    data: str | None,
    card: str,
    gpus: int,
    json_file: Path | None,
    plot: Path | None,
    **lengths: Any,
) -> None:
    """Estimate memory, work and time of a run before it runs.

    No weights are read. The plan also says what fits a card.
    """
    from logodata.common.console import console
    from logodata.common.files import write_json
    from logotrain.inputs import check_inputs
    from logotrain.plan.choices import check_strategy
    from logotrain.plan.cost import CARDS
    from logotrain.recipe.defaults import load_train_recipe, with_dtype, with_positions

    if card not in CARDS:
        raise UserError(f"unknown card {card!r}", where="--card", mend=f"one of {', '.join(CARDS)}")
    settings, file = load_train_recipe(recipe, model, overrides, **{"data.path": data})
    settings = with_dtype(settings, gpu=card != "cpu")
    check_strategy(settings, gpus)
    check_inputs(settings, json_file, plot)
    quiet_transformers()  # before PEFT is imported

    from logotrain.pairs import imported_for_now
    from logotrain.plan.assumed import planned_data
    from logotrain.plan.coverage import plot_coverage
    from logotrain.plan.table import make_plan, render

    with imported_for_now(settings) as found:
        settings = with_positions(found)
        planned = planned_data(settings, file, **lengths)
    made = make_plan(settings, planned, card=card, num_gpus=gpus)
    console.print(render(made))
    if json_file is not None:
        write_json(json_file, made.to_json())
    if plot is not None:
        plot_coverage(settings, planned, plot)
    made.check_fits()


@program.command(examples="logotrain merge runs/logo/final --model org/model -o runs/merged")
@click.argument("adapter", type=FILE, metavar="ADAPTER", help="folder of the adapter, such as RUN/final")
@model_option("the model that the adapter was trained on", required=True)
@dtype_option("of the weights written (default: the model's own)", group=OUTPUT)
@output_option("folder to write", required=True)
def merge(adapter: Path, model: str, dtype: Any, output: Path) -> None:
    """Write the model with an adapter merged into its weights.

    The result is a plain Hugging Face folder, tokenizer included.
    """
    from logotrain.inputs import check_merge

    check_merge(model, adapter, output)  # torch takes seconds to import
    quiet_transformers()  # before PEFT is imported
    from logodata.common.console import result
    from logotrain.checkpoints.merged_model import merge

    result(merge(model, adapter, output, dtype))
