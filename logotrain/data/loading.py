"""Load the training data and check them before any weights are loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.contract import ImportManifest, Manifest, PreferenceSample
from logodata.dataset.samples import check_pairs, iterate_samples, read_manifest
from logodata.models.facts import tokenizer_fingerprint
from logodata.models.loading import load_tokenizer
from logodata.models.text_config import config_window
from logodata.models.vocabulary import vocabulary_size
from logotrain.data.checks import (
    check_sample,
    warn_of_equal_responses,
    warn_of_other_writer,
    warn_of_trained_documents,
)
from logotrain.data.mix import apart_from, drawn_per_epoch, recipe_for_mix
from logotrain.data.selection import with_first_rejected, with_short_prompts, with_strategies
from logotrain.data.training_data import TrainingData
from logotrain.recipe.settings import CHUNK_MODES, TrainRecipe
from logotrain.trainable import trainable_config


def load_data(recipe: TrainRecipe) -> TrainingData:
    """Read the folder of the data set and check it against the recipe and the model's tokenizer.

    Responses that the objective does not compute are not checked.

    Raises:
        UserError: the data hold token ids of another tokenizer, positions would leave the model's window, or a sample
            cannot be trained on (empty prompt or response, too long, chunks outside of its prompt).
    """
    config = trainable_config(recipe)
    target_length = checked_target_length(recipe, config)
    if recipe.data.path is None:
        return TrainingData([], target_length, recipe.objective)
    compares = recipe.objective.uses_rejected
    tokenizer = tokenizer_fingerprint(load_tokenizer(recipe.model, needs_template=False))  # prompts are token ids
    checked = partial(_checked_samples, recipe, tokenizer, target_length, vocabulary_size(config))
    samples, left_out = checked(recipe.data.path)
    if recipe.data.max_samples is not None and recipe.data.max_samples < len(samples):
        note(f"the first {recipe.data.max_samples} of {len(samples)} samples are used (data.max_samples)")
        samples = samples[: recipe.data.max_samples]
    held_out: list[PreferenceSample] = []
    match recipe.data.validation:
        case Path() as folder:
            held_out, more = checked(folder)
            left_out += more
        case float() as share:
            samples, held_out = _split(samples, share, recipe.seed, str(recipe.data.path))
    mix: list[PreferenceSample] = []
    mix_per_epoch = 0
    if recipe.data.mix is not None:
        mixed = partial(_checked_samples, recipe_for_mix(recipe), tokenizer, target_length, vocabulary_size(config))
        mix, more = mixed(recipe.data.mix.path)
        left_out += more
        if common := len({sample.id for sample in samples} & {sample.id for sample in mix}):
            note(f"warning: {common} samples of data.mix have ids of samples that are trained on: are they the same?")
        mix_per_epoch = drawn_per_epoch(recipe.data.mix, len(samples), len(mix))
        mix = apart_from(mix, {sample.id for sample in (*samples, *held_out)})
    if held_out:
        is_folder = isinstance(recipe.data.validation, Path)
        where = str(recipe.data.validation) if is_folder else f"data.validation={recipe.data.validation}"
        warn_of_trained_documents([*samples, *mix], held_out, where)
        groups = len({sample.cluster for sample in held_out})
        of = "documents" if held_out[0].doc_id else "prompts"
        note(f"held out: {len(held_out)} samples of {groups} {of} (data.validation={recipe.data.validation})")
    if compares:
        warn_of_equal_responses([*samples, *mix])
    return TrainingData(samples, target_length, recipe.objective, held_out, left_out, mix, mix_per_epoch)


def checked_target_length(recipe: TrainRecipe, config: PreTrainedConfig) -> int:
    """Return the length below which all positions lie: ``positions.target_length`` or the scaled model's window.

    Raises:
        UserError: the target length is larger than the window.
    """
    window = config_window(config)
    target_length = recipe.positions.target_length or window
    if target_length > window:
        raise UserError(
            f"positions.target_length={target_length} is beyond the model's window of {window}",
            where=recipe.model,
            mend=f"use {window} or less, or scale the window with rope.type and rope.factor",
        )
    return target_length


def _checked_samples(
    recipe: TrainRecipe, tokenizer: str, target_length: int, vocab_size: int, path: Path
) -> tuple[list[PreferenceSample], int]:
    """Return the samples of a folder with the responses that the recipe trains on, and how many were left out (see
    :class:`TrainingData`). ``tokenizer`` is the fingerprint of the model's."""
    where = str(path)
    number: dict[int, int] = {}
    samples = [_lean(sample, number) for sample in iterate_samples(path)]
    manifest = read_manifest(path)
    if manifest.tokenizer_fingerprint != tokenizer:
        raise UserError(
            f"the data hold token ids of another tokenizer (built for {manifest.model})",
            where=where,
            mend=f"build or import them with --model {recipe.model}",
        )
    if isinstance(manifest, Manifest):  # the responses of imported pairs are of whoever wrote them
        warn_of_other_writer(recipe, manifest, path)
    if not samples:
        raise UserError("holds no samples", where=where, mend="see its rejected.jsonl for the reasons")
    if recipe.objective.uses_rejected:
        check_pairs(samples, where, mend="build without generation.rejected=none, or set objective.name=sft")
    if recipe.data.rejected_strategies is not None:
        samples = [with_strategies(sample, recipe.data.rejected_strategies, where) for sample in samples]
    if recipe.data.num_rejected is not None:
        samples = [with_first_rejected(sample, recipe.data.num_rejected, where) for sample in samples]
    found = len(samples)
    if recipe.objective.uses_short_prompt:
        samples = with_short_prompts(samples, recipe, where)
    for sample in samples:
        check_sample(sample, recipe, target_length, vocab_size, f"{where}: sample {sample.id}")
    if (
        isinstance(manifest, ImportManifest)
        and recipe.positions.mode in CHUNK_MODES
        and not any(sample.chunks for sample in samples)
    ):
        raise UserError(
            f"positions.mode={recipe.positions.mode} needs chunks, and no sample has any",
            where=where,
            mend="import the pairs with chunk_tokens=512 (in a run on pairs data.pairs.chunk_tokens=512), or set "
            "positions.mode=natural, pose or randpos",
        )
    return samples, found - len(samples)


def _lean(sample: PreferenceSample, number: dict[int, int]) -> PreferenceSample:
    """Return a sample without the texts of its chunks, which training does not read. Equal token ids are one object of
    ``number``, which takes 8 bytes a token where a number of its own takes 36."""
    return sample.model_copy(
        update={
            "prompt_ids": [number.setdefault(token, token) for token in sample.prompt_ids],
            "chunks": [chunk.model_copy(update={"text": ""}) for chunk in sample.chunks],
        }
    )


def _split(
    samples: list[PreferenceSample], share: float, seed: int, where: str
) -> tuple[list[PreferenceSample], list[PreferenceSample]]:
    """Return the samples to train on and those to hold out, which have no document (imported pairs: no prompt) in
    common. Both keep their order."""
    documents = sorted({sample.cluster for sample in samples})
    if len(documents) < 2:
        raise UserError(
            f"data.validation={share:g} holds out documents, and all samples are of one",
            where=where,
            mend="give data.validation a folder with samples of other documents",
        )
    count = min(max(1, round(share * len(documents))), len(documents) - 1)
    drawn = np.random.default_rng([seed, len(documents)]).permutation(len(documents))[:count]
    held_out = {documents[at] for at in drawn}
    return (
        [sample for sample in samples if sample.cluster not in held_out],
        [sample for sample in samples if sample.cluster in held_out],
    )
