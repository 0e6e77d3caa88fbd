"""What of a sample a recipe trains on: its responses, and whether it has a short prompt."""

from __future__ import annotations

from collections.abc import Collection

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logodata.models.loading import load_config
from logodata.models.text_config import config_window
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import row_responses, short_prompt


def with_strategies(sample: PreferenceSample, wanted: Collection[str], where: str) -> PreferenceSample:
    """Return the sample with the dis-preferred responses of these strategies, all of which it must have."""
    there = [response.strategy for response in sample.rejected]
    missing = [strategy for strategy in wanted if strategy not in there]
    if missing:
        raise UserError(
            f"sample {sample.id} has no dis-preferred response {missing[0]!r}, data.rejected_strategies asks for it",
            where=where,
            mend=f"it has {', '.join(there) or 'none'}",
        )
    return sample.model_copy(update={"rejected": [found for found in sample.rejected if found.strategy in wanted]})


def with_first_rejected(sample: PreferenceSample, number: int, where: str) -> PreferenceSample:
    """Return the sample with its first dis-preferred responses, of which it must have as many."""
    found = len(sample.rejected)
    if found < number:
        raise UserError(
            f"sample {sample.id} has {found} dis-preferred responses, data.num_rejected asks for {number}",
            where=where,
            mend="lower it, or make more: contexts.mixed_ratios of a build, group=true of an import"
            if found
            else "set data.num_rejected=null",
        )
    return sample.model_copy(update={"rejected": sample.rejected[:number]})


def with_short_prompts(samples: list[PreferenceSample], recipe: TrainRecipe, where: str) -> list[PreferenceSample]:
    """Return the samples whose short prompt is shorter than the whole one."""
    name = recipe.objective.name
    without = next((sample for sample in samples if not any(chunk.critical for chunk in sample.chunks)), None)
    if without is not None:
        raise UserError(
            f"objective.name={name} needs prompts of critical chunks, and sample {without.id} has no critical chunk",
            where=where,
            mend="give --data a folder that logodata build wrote (pairs have no critical chunks), or another objective",
        )
    kept = [sample for sample in samples if not all(chunk.critical for chunk in sample.chunks)]
    if not kept:
        raise UserError(
            f"objective.name={name} compares prompts with and without uncritical chunks, and every one is critical",
            where=where,
            mend="build with a lower contexts.critical_top, a higher contexts.critical_threshold or more chunks",
        )
    if len(kept) < len(samples):
        note(
            f"{len(samples) - len(kept)} of {len(samples)} samples in {where} are left out: all their chunks are "
            f"critical, and objective.name={name} compares prompts with and without the others"
        )
    if recipe.objective.reference_has_own_rope and recipe.rope is not None:
        window = config_window(load_config(recipe.model, shapes_only=True))
        for sample in kept:
            needed = len(short_prompt(sample)) + max(map(len, row_responses(sample, rejected=True)))
            if needed > window:
                raise UserError(
                    f"short prompt and response of {needed} tokens do not fit under the {window} positions that the "
                    "model has without rope, and LongPO's reference is that model",
                    where=f"{where}: sample {sample.id}",
                    mend="build with a lower contexts.critical_top or shorter chunks",
                )
    return kept
