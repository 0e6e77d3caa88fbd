"""What a run refuses of its samples, and what it only warns of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.contract import Manifest, PreferenceSample
from logodata.dataset.files import read_recipe
from logodata.engines.settings import EngineSettings, asked_fingerprint, asked_model
from logodata.models.vocabulary import check_ids
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import row_length, row_responses


def check_sample(
    sample: PreferenceSample, recipe: TrainRecipe, target_length: int, vocab_size: int, where: str
) -> None:
    """Check that a sample can be trained on. Responses that the objective does not compute are not checked.

    Raises:
        UserError: prompt or response is empty or too long, or a chunk lies outside of its prompt; ``where`` names it.
    """
    responses = row_responses(sample, rejected=recipe.objective.uses_rejected)

    def fault(what: str, mend: str = "build the data set again") -> UserError:
        return UserError(what, where=where, mend=mend)

    if not sample.prompt_ids:
        raise fault("empty prompt")
    following = 0
    for chunk in sample.chunks:  # draw_positions needs them in order and without overlap
        start, end = chunk.token_start, chunk.token_end
        if not following <= start < end <= len(sample.prompt_ids):
            raise fault(
                f"a chunk spans tokens {start} to {end}, the chunk before it ends at {following}, the prompt has "
                f"{len(sample.prompt_ids)} tokens"
            )
        following = end
    for number, response in enumerate(responses):
        if not response:  # the mean log-probability of an empty response is 0/0
            which = "preferred" if number == 0 else f"dis-preferred {number}"
            raise fault(f"empty {which} response", "build the data set again; the judge drops empty responses")
    prompt, longest = len(sample.prompt_ids), max(map(len, responses))
    if prompt + longest > target_length:
        raise fault(
            f"prompt of {prompt} tokens and response of {longest} do not fit under {target_length} positions",
            "raise positions.target_length or build shorter contexts",
        )
    check_ids(vocab_size, sample.prompt_ids, *responses, where=where, mend="build the data set again with this model")
    row = row_length(sample, recipe.objective.parts)
    if recipe.row_tokens is not None and row > recipe.row_tokens:
        raise fault(f"{row} tokens exceed row_tokens={recipe.row_tokens}", f"set row_tokens={row} or more, or null")


def warn_of_other_writer(recipe: TrainRecipe, manifest: Manifest, path: Path) -> None:
    """Say whose the responses are, if they are not those of the model that is trained, with its adapter."""
    start = recipe.lora.init_adapter
    if manifest.model_fingerprint == asked_fingerprint(EngineSettings(), recipe.model, start):
        return
    build = read_recipe(path)
    writer = _named(asked_model(build.engine, manifest.model), build.adapter)
    note(f"the responses are of {writer}, not of {_named(recipe.model, start)}: LOGO expects the model's own")


def _named(model: str, adapter: Path | None) -> str:
    return repr(model) if adapter is None else f"{model!r} with the adapter {adapter}"


def warn_of_trained_documents(
    samples: Sequence[PreferenceSample], held_out: Sequence[PreferenceSample], where: str
) -> None:
    """Say that held-out samples are of documents that are trained on."""
    trained = {sample.cluster for sample in samples}
    common = sum(sample.cluster in trained for sample in held_out)
    if common:
        note(
            f"warning: {common} of {len(held_out)} samples in {where} are of documents that are trained on too: their "
            "figures look better than those of new documents"
        )


def warn_of_equal_responses(samples: Sequence[PreferenceSample]) -> None:
    """Say that a dis-preferred response is the preferred one."""
    equal = [
        sample.id for sample in samples if sample.chosen.token_ids in [found.token_ids for found in sample.rejected]
    ]
    if equal:
        note(
            f"warning: {len(equal)} of {len(samples)} samples, the first is {equal[0]}, have a dis-preferred response "
            "equal to the preferred one: there is no preference to learn; build or import the data again"
        )
