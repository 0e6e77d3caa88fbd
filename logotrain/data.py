"""Load the training data and check them before any weights are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table
from transformers import PreTrainedConfig

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.contract import ImportManifest, Manifest, PreferenceSample
from logodata.dataset.files import read_recipe
from logodata.dataset.samples import iterate_samples, read_manifest
from logodata.engines.settings import EngineSettings, asked_fingerprint, asked_model
from logodata.models.facts import tokenizer_fingerprint
from logodata.models.loading import load_config, load_tokenizer
from logodata.models.text_config import config_window
from logodata.models.vocabulary import check_ids, vocabulary_size
from logotrain.recipe.settings import (
    CHUNK_MODES,
    LongpoSettings,
    MixSettings,
    ObjectiveSettings,
    TrainRecipe,
    row_parts,
    uses_rejected,
    uses_short_prompt,
)
from logotrain.rows.collate import row_length, row_responses, short_prompt
from logotrain.trainable import trainable_config


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The checked samples of a run.

    Attributes:
        target_length: all positions are below this length, in tokens.
        objective: the loss, which says what is read of a sample.
        validation: samples that are held out, which are measured and not trained on.
        left_out: number of samples, held-out ones among them, whose chunks are all critical, if the objective reads a
            short prompt: it would be the whole one.
        mix: samples of ``data.mix``, which keep natural positions. No other sample has an id of theirs.
        mix_per_epoch: number of them that an epoch takes.
    """

    samples: list[PreferenceSample]
    target_length: int
    objective: ObjectiveSettings
    validation: Sequence[PreferenceSample] = ()
    left_out: int = 0
    mix: Sequence[PreferenceSample] = ()
    mix_per_epoch: int = 0

    @property
    def per_epoch(self) -> int:
        """Number of samples that an epoch takes."""
        return len(self.samples) + self.mix_per_epoch

    @property
    def unspread(self) -> frozenset[str]:
        """The ids of the samples whose positions are natural, whatever the recipe says."""
        return frozenset(sample.id for sample in self.mix)

    def fingerprint(self) -> str:
        """Return a hash, 16 hexadecimal digits, of everything that the trainer reads of the samples, in order,
        and of the held-out ones after them."""
        return self._hash([*self.samples, *self.validation])

    def example_epoch(self) -> list[PreferenceSample]:
        """Return samples like those of an epoch: all, and evenly spaced ones of ``mix``."""
        return [
            *self.samples,
            *(self.mix[at * len(self.mix) // self.mix_per_epoch] for at in range(self.mix_per_epoch)),
        ]

    def mix_fingerprint(self) -> str:
        """Return the same of ``mix``."""
        return self._hash(self.mix)

    def _hash(self, samples: Sequence[PreferenceSample]) -> str:
        digest = hashlib.sha256()
        for sample in samples:
            spans: list[tuple[int, ...]] = [(chunk.token_start, chunk.token_end) for chunk in sample.chunks]
            if uses_short_prompt(self.objective):
                spans += [(number,) for number, chunk in enumerate(sample.chunks) if chunk.critical]
            responses = row_responses(sample, rejected=True)  # metrics count them even where the loss does not
            digest.update(json.dumps([sample.id, sample.prompt_ids, spans, responses]).encode())
        return digest.hexdigest()[:16]

    def lengths(self) -> Table:
        """Return a table of the lengths of prompts, computed responses and rows, in tokens."""
        mixed = f" and {len(self.mix)} of data.mix" if self.mix else ""
        title = f"{len(self.samples)} samples{mixed}, positions under {self.target_length}"
        table = Table("tokens", "shortest", "median", "longest", title=title)
        lengths = self._lengths(self.samples)
        if self.mix:
            lengths |= {f"data.mix: {name}": values for name, values in self._lengths(self.mix).items()}
        for name, values in lengths.items():
            ordered = sorted(values)
            table.add_row(name, *(str(ordered[at]) for at in (0, len(ordered) // 2, -1)))
        return table

    def _lengths(self, samples: Sequence[PreferenceSample]) -> dict[str, list[int]]:
        lengths = {"prompt": [len(sample.prompt_ids) for sample in samples]}
        if uses_short_prompt(self.objective):
            lengths["short prompt"] = [len(short_prompt(sample)) for sample in samples]
        lengths["preferred response"] = [len(sample.chosen.token_ids) for sample in samples]
        if uses_rejected(self.objective):
            rejected = [response for sample in samples for response in sample.rejected]
            lengths["dis-preferred responses"] = [len(response.token_ids) for response in rejected]
        lengths["row"] = [row_length(sample, row_parts(self.objective)) for sample in samples]
        return lengths


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
    compares = uses_rejected(recipe.objective)
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
        mixed = partial(_checked_samples, _for_mix(recipe), tokenizer, target_length, vocabulary_size(config))
        mix, more = mixed(recipe.data.mix.path)
        left_out += more
        if common := len({sample.id for sample in samples} & {sample.id for sample in mix}):
            note(f"warning: {common} samples of data.mix have ids of samples that are trained on: are they the same?")
        mix_per_epoch = _mix_per_epoch(recipe.data.mix, len(samples), len(mix))
        mix = _apart(mix, {sample.id for sample in (*samples, *held_out)})
    if held_out:
        is_folder = isinstance(recipe.data.validation, Path)
        where = str(recipe.data.validation) if is_folder else f"data.validation={recipe.data.validation}"
        _warn_of_trained_documents([*samples, *mix], held_out, where)
        groups = len({sample.cluster for sample in held_out})
        of = "documents" if held_out[0].doc_id else "prompts"
        note(f"held out: {len(held_out)} samples of {groups} {of} (data.validation={recipe.data.validation})")
    if compares:
        _warn_of_equal_responses([*samples, *mix])
    return TrainingData(samples, target_length, recipe.objective, held_out, left_out, mix, mix_per_epoch)


def _for_mix(recipe: TrainRecipe) -> TrainRecipe:
    """Return the recipe by which samples of ``data.mix`` are checked.

    Raises:
        UserError: the objective reads critical chunks, which imported pairs do not have.
    """
    mix = recipe.data.mix
    assert mix is not None
    if uses_short_prompt(recipe.objective) and isinstance(read_manifest(mix.path), ImportManifest):
        raise UserError(
            f"objective.name={recipe.objective.name} needs critical chunks, which the pairs of data.mix do not have",
            where=str(mix.path),
            mend="leave data.mix out, give it a folder that logodata build wrote, or choose another objective",
        )
    whole = recipe.data.model_copy(update={"num_rejected": None, "rejected_strategies": None})
    natural = recipe.positions.model_copy(update={"mode": "natural"})
    return recipe.model_copy(update={"data": whole, "positions": natural})


def _mix_per_epoch(settings: MixSettings, num_samples: int, num_mixed: int) -> int:
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


def _apart(samples: Sequence[PreferenceSample], taken: Collection[str]) -> list[PreferenceSample]:
    """Return samples of ``data.mix`` under ids that no other sample has: reference values and messages go by ids."""
    mark = "mix:"
    while any(f"{mark}{sample.id}" in taken for sample in samples):
        mark = f"mix:{mark}"
    return [sample.model_copy(update={"id": f"{mark}{sample.id}"}) for sample in samples]


def _warn_of_other_writer(recipe: TrainRecipe, manifest: Manifest, path: Path) -> None:
    """Say whose the responses are, if they are not those of the model that is trained, with its adapter."""
    start = recipe.lora.init_adapter
    if manifest.model_fingerprint == asked_fingerprint(EngineSettings(), recipe.model, start):
        return
    build = read_recipe(path)
    writer = _named(asked_model(build.engine, manifest.model), build.adapter)
    note(f"the responses are of {writer}, not of {_named(recipe.model, start)}: LOGO expects the model's own")


def _named(model: str, adapter: Path | None) -> str:
    return repr(model) if adapter is None else f"{model!r} with the adapter {adapter}"


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
        _warn_of_other_writer(recipe, manifest, path)
    if not samples:
        raise UserError("holds no samples", where=where, mend="see its rejected.jsonl for the reasons")
    if recipe.data.rejected_strategies is not None:
        samples = [_with_strategies(sample, recipe.data.rejected_strategies, where) for sample in samples]
    if recipe.data.num_rejected is not None:
        samples = [_with_first_rejected(sample, recipe.data.num_rejected, where) for sample in samples]
    found = len(samples)
    if uses_short_prompt(recipe.objective):
        samples = _with_short_prompts(samples, recipe, where)
    for sample in samples:
        _check(sample, recipe, target_length, vocab_size, f"{where}: sample {sample.id}")
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


def _with_short_prompts(samples: list[PreferenceSample], recipe: TrainRecipe, where: str) -> list[PreferenceSample]:
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
    if isinstance(recipe.objective, LongpoSettings) and recipe.rope is not None:
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


def _warn_of_trained_documents(
    samples: Sequence[PreferenceSample], held_out: Sequence[PreferenceSample], where: str
) -> None:
    trained = {sample.cluster for sample in samples}
    common = sum(sample.cluster in trained for sample in held_out)
    if common:
        note(
            f"warning: {common} of {len(held_out)} samples in {where} are of documents that are trained on too: their "
            "figures look better than those of new documents"
        )


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


def _with_strategies(sample: PreferenceSample, wanted: Collection[str], where: str) -> PreferenceSample:
    there = [response.strategy for response in sample.rejected]
    missing = [strategy for strategy in wanted if strategy not in there]
    if missing:
        raise UserError(
            f"sample {sample.id} has no dis-preferred response {missing[0]!r}, data.rejected_strategies asks for it",
            where=where,
            mend=f"it has {', '.join(there)}",
        )
    return sample.model_copy(update={"rejected": [found for found in sample.rejected if found.strategy in wanted]})


def _with_first_rejected(sample: PreferenceSample, number: int, where: str) -> PreferenceSample:
    found = len(sample.rejected)
    if found < number:
        raise UserError(
            f"sample {sample.id} has {found} dis-preferred responses, data.num_rejected asks for {number}",
            where=where,
            mend="lower data.num_rejected, or make more: contexts.mixed_ratios of a build, group=true of an import",
        )
    return sample.model_copy(update={"rejected": sample.rejected[:number]})


def _check(sample: PreferenceSample, recipe: TrainRecipe, target_length: int, vocab_size: int, where: str) -> None:
    responses = row_responses(sample, rejected=uses_rejected(recipe.objective))

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
    row = row_length(sample, row_parts(recipe.objective))
    if recipe.row_tokens is not None and row > recipe.row_tokens:
        raise fault(f"{row} tokens exceed row_tokens={recipe.row_tokens}", f"set row_tokens={row} or more, or null")


def _warn_of_equal_responses(samples: Sequence[PreferenceSample]) -> None:
    equal = [
        sample.id for sample in samples if sample.chosen.token_ids in [found.token_ids for found in sample.rejected]
    ]
    if equal:
        note(
            f"warning: {len(equal)} of {len(samples)} samples, the first is {equal[0]}, have a dis-preferred response "
            "equal to the preferred one: there is no preference to learn; build with judge.enabled=true"
        )
