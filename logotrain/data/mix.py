"""The short samples that ``data.mix`` adds to an epoch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.contract import ImportManifest, PreferenceSample
from logodata.dataset.samples import read_manifest
from logotrain.recipe.settings import MixSettings, TrainRecipe


def recipe_for_mix(recipe: TrainRecipe) -> TrainRecipe:
    """Return the recipe by which samples of ``data.mix`` are checked.

    Raises:
        UserError: the objective reads critical chunks, which imported pairs do not have.
    """
    mix = recipe.data.mix
    assert mix is not None
    if recipe.objective.uses_short_prompt and isinstance(read_manifest(mix.path), ImportManifest):
        raise UserError(
            f"objective.name={recipe.objective.name} needs critical chunks, which the pairs of data.mix do not have",
            where=str(mix.path),
            mend="leave data.mix out, give it a folder that logodata build wrote, or choose another objective",
        )
    whole = recipe.data.model_copy(update={"num_rejected": None, "rejected_strategies": None})
    natural = recipe.positions.model_copy(update={"mode": "natural"})
    return recipe.model_copy(update={"data": whole, "positions": natural})


def drawn_per_epoch(settings: MixSettings, num_samples: int, num_mixed: int) -> int:
    """Return how many samples of ``data.mix`` an epoch takes beside ``num_samples``, and say how often each is drawn.

    Raises:
        UserError: it takes none.
    """
    count = round(settings.share / (1 - settings.share) * num_samples)
    if count == 0:
        raise UserError(
            f"data.mix.share={settings.share:g} beside {num_samples} samples is not one sample",
            where=str(settings.path),
            mend=f"raise it above {0.5 / (num_samples + 0.5):.3g}, or leave data.mix out",
        )
    share = count / (num_samples + count)
    note(f"an epoch: {num_samples} long + {count} short samples (data.mix, {share:.1%} of the samples)")
    if count > num_mixed:
        note(
            f"warning: data.mix has {num_mixed} samples, and an epoch takes {count}: each is drawn "
            f"{count / num_mixed:.1f} times an epoch"
        )
    else:
        note(f"the {num_mixed} samples of data.mix last for {num_mixed / count:.1f} epochs; then they are drawn again")
    return count


def apart_from(samples: Sequence[PreferenceSample], taken: Collection[str]) -> list[PreferenceSample]:
    """Return samples of ``data.mix`` under ids that no other sample has: reference values and messages go by ids."""
    mark = "mix:"
    while any(f"{mark}{sample.id}" in taken for sample in samples):
        mark = f"mix:{mark}"
    return [sample.model_copy(update={"id": f"{mark}{sample.id}"}) for sample in samples]
