"""The samples that a plan is made for: those of the data, or one of the lengths that the recipe leads to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from logodata.common.errors import UserError
from logodata.common.recipes.reading import RecipeModel, load_recipe
from logodata.contexts.settings import ChunkingSettings, ContextSettings
from logodata.contract import ContextChunk, PreferenceSample, Response
from logodata.models.loading import load_config
from logodata.models.text_config import config_window
from logodata.recipe.settings import GenerationSettings
from logotrain.data.loading import checked_target_length, load_data
from logotrain.data.training_data import TrainingData
from logotrain.model.rope import scaled_config
from logotrain.recipe.settings import RopeSettings, TrainRecipe
from logotrain.rows.collate import short_prompt
from logotrain.trainable import trainable_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PAPER_SAMPLES = 6000
"""Samples of the paper's training set."""


class _BuildLengths(RecipeModel):
    """The part of a recipe's ``build`` section that decides lengths; without a section the paper's values."""

    model_config = ConfigDict(extra="ignore")

    chunking: ChunkingSettings = ChunkingSettings()
    contexts: ContextSettings = ContextSettings()
    generation: GenerationSettings = GenerationSettings()


@dataclass(frozen=True, slots=True)
class PlannedData:
    """The data that a run would read.

    Attributes:
        data: the samples; if they are assumed, one stands for all.
        num_samples: number of samples of an epoch.
        assumption: what was assumed in place of data; empty if nothing was.
        config: config of the model, its window scaled as the recipe says.
    """

    data: TrainingData
    num_samples: int
    assumption: str
    config: PreTrainedConfig


def planned_data(
    recipe: TrainRecipe,
    path: Path | None,
    *,
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
    num_rejected: int | None = None,
    num_samples: int | None = None,
) -> PlannedData:
    """Return the samples of ``recipe.data.path``, or one that is as long as ``build`` makes samples at most.

    Args:
        recipe: the ``train`` section.
        path: the recipe file, whose ``build`` section is read; without one the paper's values are taken.
        prompt_tokens, response_tokens, num_rejected, num_samples: values to take instead of the recipe's.

    Raises:
        UserError: data and lengths are both given, the data cannot be trained on, or the lengths do not fit the model.
    """
    config = trainable_config(recipe, shapes_only=True)
    if recipe.data.path is not None:
        given = {
            "--prompt-tokens": prompt_tokens,
            "--response-tokens": response_tokens,
            "--num-rejected": num_rejected,
            "--num-samples": num_samples,
        }
        if options := [name for name, value in given.items() if value is not None]:
            raise UserError(
                f"{options[0]} with data, which have lengths of their own",
                where=str(recipe.data.path),
                mend="leave out the option, or data.path",
            )
        data = load_data(recipe)
        return PlannedData(data, data.per_epoch, "", config)
    build = load_recipe(_BuildLengths, "build", path)
    prompt_tokens = prompt_tokens or build.contexts.num_chunks * build.chunking.chunk_tokens
    response_tokens = response_tokens or build.generation.max_new_tokens
    # A run takes as many of the data as these say, and is refused if there are fewer.
    strategies = recipe.data.rejected_strategies and len(set(recipe.data.rejected_strategies))
    made = 1 + len(build.contexts.mixed_ratios) if build.generation.compares_contexts else 1
    num_rejected = num_rejected or recipe.data.num_rejected or strategies or made
    num_samples = num_samples or recipe.data.max_samples or PAPER_SAMPLES
    target = checked_target_length(recipe, config)
    if recipe.epochs and prompt_tokens + response_tokens > target:
        raise UserError(
            f"prompt of {prompt_tokens} tokens and response of {response_tokens} do not fit under {target} positions",
            where=recipe.model,
            mend=_longer(recipe, config, prompt_tokens + response_tokens),
        )
    # How many chunks exceed a threshold only a build can tell.
    critical = build.contexts.critical_top or ContextSettings().critical_top or 1
    sample = _sample(prompt_tokens, response_tokens, num_rejected, build.chunking.chunk_tokens, critical)
    short = f" ({len(short_prompt(sample))} of critical chunks)" if recipe.objective.uses_short_prompt else ""
    lengths = f"prompts of {prompt_tokens} tokens{short}, 1 + {num_rejected} responses of {response_tokens}"
    return PlannedData(
        TrainingData([sample], target, recipe.objective), num_samples, f"{num_samples} samples: {lengths}", config
    )


def _longer(recipe: TrainRecipe, config: PreTrainedConfig, needed: int) -> str:
    """Return how a target of positions becomes as long as needed."""
    window = config_window(config)
    length = f"positions.target_length={needed}" if recipe.positions.target_length else ""
    if needed <= window:
        return f"set {length or 'positions.target_length=null'}, or plan shorter contexts"
    kind = recipe.rope.type if recipe.rope else "yarn"
    unscaled = load_config(recipe.model, shapes_only=True)
    rope = RopeSettings(type=kind, factor=math.ceil(needed / config_window(unscaled)))
    try:
        scaled_config(unscaled, rope)
    except UserError as error:
        return f"its window has {window} and cannot be scaled: {error.what}; plan shorter contexts"
    return f"its window has {window}: rope.type={kind} rope.factor={rope.factor:g} {length}".rstrip() + (
        ", or plan shorter contexts"
    )


def _sample(
    prompt_tokens: int, response_tokens: int, num_rejected: int, chunk_tokens: int, critical: int
) -> PreferenceSample:
    """Return a sample of zeros of these lengths, with the fields that a plan reads; its chunks fill the prompt, and the
    first ``critical`` of them are critical."""
    ends = {start: min(start + chunk_tokens, prompt_tokens) for start in range(0, prompt_tokens, chunk_tokens)}
    response = Response.model_construct(strategy="assumed", token_ids=[0] * response_tokens)
    return PreferenceSample.model_construct(
        id="assumed",
        prompt_ids=[0] * prompt_tokens,
        chunks=[
            ContextChunk.model_construct(token_start=start, token_end=end, critical=number < critical)
            for number, (start, end) in enumerate(ends.items())
        ],
        chosen=response,
        rejected=[response] * num_rejected,
    )
