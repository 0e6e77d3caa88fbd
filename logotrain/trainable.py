"""Find out how a model can be trained: on a small copy of it before weights are read, then on its loaded weights.

A small copy with random weights is asked (:mod:`logodata.models.tiny`): whether responses over a shared prompt get the
log-probabilities of separate rows, and what else training depends on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from logodata.common.errors import UserError, pass_on
from logodata.models.loading import load_config
from logodata.models.logprobs import token_logprobs
from logodata.models.rope import length_dependent_rope
from logodata.models.text_config import config_name, text_config
from logodata.models.tiny import TOLERANCE, VOCABULARY, own_random_state, said, seed, small_model
from logotrain.attention.choice import Traits
from logotrain.attention.kernels import forget_rows
from logotrain.attention.shared_prefix import attention_of, recorded_features, use_shared_prefix, uses_kernels
from logotrain.attention.variants import Feature
from logotrain.loss.logprobs import LogprobModel
from logotrain.model.rope import scaled_config
from logotrain.parallel import World, without_backward
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Row
from logotrain.rows.layout import RowLayout, SharedPrefixLayout

_SEEDS = 64
"""Number of seeds tried to find rare noise, such as a layer that is skipped one time in ten."""

_LOADED_TOLERANCE = 0.1
"""Largest difference, in nats, of log-probabilities that count as equal in a loaded model, in the dtype of the run:
rounding in bfloat16 stays below it."""

_GAP = 3
"""Positions that are left out shortly before the end of each prompt."""


def trainable_config(recipe: TrainRecipe, *, shapes_only: bool = False) -> PreTrainedConfig:
    """Return the config of the model to train, its window scaled as ``recipe.rope`` says. No weights are read.

    For ``shapes_only`` see :func:`logodata.models.loading.load_config`.

    Raises:
        UserError: there is no such model, it cannot be trained (see :func:`read_traits`), or not with these settings:
            they share prompts or make gaps between positions, and the model does not take that.
    """
    config = load_config(recipe.model, shapes_only=shapes_only)
    traits = read_traits(config)
    where = config_name(config)
    if recipe.sharing == "prompt" and traits.obstacle:
        raise UserError(f"its prompts cannot be shared: {traits.obstacle}", where=where, mend="set sharing=auto")
    if not traits.takes_gaps and recipe.positions.mode != "natural":
        raise _no_gaps(where)
    return scaled_config(config, recipe.rope)


def read_traits(config: PreTrainedConfig) -> Traits:
    """Return what training depends on in a model, from a small copy of it.

    Raises:
        UserError: transformers has no such text model, its tokens depend on later tokens, or it draws random numbers.
    """
    key = config.to_json_string(use_diff=False)
    if key not in _known:
        _known[key] = _find_traits(config)
    return _known[key]


_known: dict[str, Traits] = {}
"""The traits found by this process, by the JSON of the config: a command asks more than once."""


def _find_traits(config: PreTrainedConfig) -> Traits:
    where = config_name(config)
    with own_random_state(), torch.no_grad():
        row, found = _probe_row(VOCABULARY), list[Tensor]()
        model = small_model(config, where, lambda copy: found.append(_own_logprobs(copy, row)))
        if isinstance(model, str):
            return Traits(f"no small copy of it could be tried ({model})", separate="sdpa", tried=False)
        truth, plain = found[-1], _probe_row(VOCABULARY, gap=0)
        without = _own_logprobs(model, plain)
        takes_gaps = _takes_gaps(row, truth, without)
        if not takes_gaps:
            row, truth = plain, without
        _check_function(model, row, truth, where)
        scorer = LogprobModel(model)
        obstacle, features = _try_sharing(scorer, row, truth)
        separate: Literal["sdpa", "eager"] = "sdpa" if _computes(scorer, "sdpa", row, truth) else "eager"
        if separate == "eager" and not _computes(scorer, "eager", row, truth):
            raise _other_head(model, where)
    if rope := length_dependent_rope(config):
        obstacle = f"RoPE type {rope!r} changes with the length of the row"
    return Traits(obstacle, features, separate, takes_gaps)


def _takes_gaps(row: Row, values: Tensor, without: Tensor) -> bool:
    """Return whether the log-probabilities of a row with gaps are those of positions, and not of those without gaps."""
    return _is_causal(row, values) and not _equal(values, without)


def _is_causal(row: Row, values: Tensor) -> bool:
    """Return whether the first tokens of a sample's responses, which are the same one, are equally likely."""
    tolerance = TOLERANCE if values.dtype == torch.float64 else _LOADED_TOLERANCE
    starts = [0, *accumulate(row.layout.response_lengths)][:-1]
    by_sample = values[starts].split([len(sample.response_lengths) for sample in row.layout.samples])
    return all(float(firsts.max() - firsts.min()) <= tolerance for firsts in by_sample)


def _computes(scorer: LogprobModel, implementation: str, row: Row, truth: Tensor) -> bool:
    try:
        with attention_of(scorer.causal_lm, implementation):
            return _equal(scorer(row), truth)
    except Exception as error:  # each model fails in its own way on what it does not know
        pass_on(error)
        return False


def _own_logprobs(model: PreTrainedModel, row: Row) -> Tensor:
    """Return the log-probabilities of a row's targets, [T], by the model's own forward of each response."""
    found: list[Tensor] = []
    for indices, scored in row.separate():
        ids = row.input_ids[:, indices]
        output = model(
            input_ids=ids,
            position_ids=row.position_ids[:, indices],
            attention_mask=torch.ones_like(ids),
            use_cache=False,
        )
        found.append(output.logits[0, scored])
    return token_logprobs(torch.cat(found), row.targets)


def _check_function(model: PreTrainedModel, row: Row, truth: Tensor, where: str) -> None:
    """Refuse a model whose log-probabilities are no function of the tokens before."""
    _check_causal(model, row, truth, where)
    seed(1)
    if not _equal(_own_logprobs(model, row), truth):
        raise _random(type(model).__name__, where)


def _check_causal(model: PreTrainedModel, row: Row, values: Tensor, where: str) -> None:
    if not _is_causal(row, values):
        raise UserError(
            f"{type(model).__name__} lets tokens depend on later ones, so it does not predict the next token",
            where=where,
            mend="use a causal language model",
        )


def _no_gaps(where: str) -> UserError:
    return UserError("the model takes no gaps between positions", where=where, mend="set positions.mode=natural")


def _other_head(model: PreTrainedModel, where: str) -> UserError:
    return UserError(
        f"{type(model).__name__} gives other log-probabilities than its decoder and its head one by one",
        where=where,
        mend="use a model that writes text and nothing else, such as Llama or Qwen",
    )


def _try_sharing(scorer: LogprobModel, row: Row, truth: Tensor) -> tuple[str, frozenset[Feature]]:
    """Return why the responses of a row cannot share its prompts, empty if they can, and the features they need."""
    forget_rows()
    try:
        with use_shared_prefix(scorer.causal_lm, "dense"), recorded_features() as features:
            shared = scorer(row)
    except UserError as error:
        return error.what, frozenset()
    except Exception as error:
        pass_on(error)
        return f"its code does not take shared rows ({said(error)})", frozenset()
    if not _equal(shared, truth):
        return "responses over one prompt would get other log-probabilities", frozenset()
    return "", frozenset(features)


def _equal(values: Tensor, truth: Tensor) -> bool:
    return torch.allclose(values, truth, rtol=0, atol=TOLERANCE)


def _random(kind: str, where: str) -> UserError:
    return UserError(
        f"{kind} gives different results for the same row, with dropout and jitter off",
        where=where,
        mend="use a model that draws no random numbers",
    )


def check_untried(model: LogprobModel, name: str, *, gaps: bool) -> None:
    """Refuse a loaded model, of which no small copy could be tried, for what a small copy would have shown.

    The model is whole, not sharded. ``gaps`` says whether positions will have gaps.

    Raises:
        UserError: it is not causal, it takes no gaps, or its decoder and its head one by one differ from its forward.
    """
    causal_lm = model.causal_lm
    row = _probe_row(text_config(causal_lm.config).vocab_size, gap=0).to(next(model.parameters()).device)
    with torch.no_grad(), attention_of(causal_lm, model.plain_attention), _explained(causal_lm, name):
        own, found = _own_logprobs(causal_lm, row), model(row)
        apart = _probe_row(text_config(causal_lm.config).vocab_size).to(row.input_ids.device)
        with_gaps = _own_logprobs(causal_lm, apart) if gaps else None
    _check_causal(causal_lm, row, own, name)
    if with_gaps is not None and not _takes_gaps(apart, with_gaps, own):
        raise _no_gaps(name)
    if (found - own).abs().max() > _LOADED_TOLERANCE:
        raise _other_head(causal_lm, name)


def check_weights(model: LogprobModel, world: World, name: str) -> None:
    """Refuse a loaded model whose layers fail on a row, or give another result under another random seed.

    Policy and reference must be functions of the row, and a backward pass that recomputes layers must get the values of
    the forward pass. Evaluation mode turns noise off; this check finds layers that ignore evaluation mode. All
    processes call it together, inside of :func:`logotrain.attention.shared_prefix.use_shared_prefix`.

    Raises:
        UserError: the model fails on a row, or its results differ.
    """
    device = next(model.parameters()).device
    row = _probe_row(text_config(model.causal_lm.config).vocab_size, pad_to=model.context_group.size).to(device)
    noisy = False
    with own_random_state(), without_backward(model), torch.compiler.set_stance("force_eager"):
        seed(0)
        before = _random_state()
        with _explained(model.causal_lm, name):
            first: Tensor = model(row)
        drawn = _random_state() != before
        # If no random number was drawn, one more pass on a CPU is enough; accelerators may sum in another order.
        for number in range(1, _SEEDS if drawn else 2 if device.type == "cpu" else 1):
            seed(number)
            noisy |= not torch.equal(first.nan_to_num(), model(row).nan_to_num())  # training itself reports NaN
    if world.any(noisy):
        raise _random(type(model.causal_lm).__name__, name)


def check_split(model: LogprobModel, world: World, name: str) -> None:
    """Refuse a loaded model that computes a row otherwise when its tokens are split over a context group.

    All processes call it together, inside of :func:`logotrain.attention.shared_prefix.use_shared_prefix`.

    Raises:
        UserError: something beside its attention is not per token, or its heads cannot be shared evenly.
    """
    group = model.context_group
    if group.size == 1:
        return
    row = _probe_row(text_config(model.causal_lm.config).vocab_size, pad_to=group.size)
    row = row.to(next(model.parameters()).device)
    with without_backward(model), torch.compiler.set_stance("force_eager"), _explained(model.causal_lm, name):
        split = model(row)
        with model.unsplit():
            whole = model(row)
    difference = (split.nan_to_num() - whole.nan_to_num()).abs().max().item()  # training itself reports NaN
    if world.any(difference > _LOADED_TOLERANCE):
        raise UserError(
            f"log-probabilities differ by {difference:.2g} nats when a row is split over processes: "
            f"{type(model.causal_lm).__name__} mixes tokens outside of its attention",
            where=name,
            mend="set parallel.context_size=1",
        )


@contextmanager
def _explained(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Turn an exception of a model's code into a UserError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        other = "set attention=sdpa, or " if uses_kernels(model) else ""
        raise UserError(
            f"{type(model).__name__} cannot compute a row: {said(error)}",
            where=name,
            mend=f"{other}use another model, such as Llama or Qwen",
        ) from error


def _probe_row(vocabulary: int, gap: int = _GAP, pad_to: int = 1) -> Row:
    """Return two samples and padding up to a multiple of ``pad_to`` tokens. ``gap`` positions are left out in each
    prompt, and all responses of a sample have one first token."""
    samples = (SharedPrefixLayout(17, (6, 4, 5)), SharedPrefixLayout(9, (3, 5)))
    padding = 3 + -(3 + sum(sample.total_length for sample in samples)) % pad_to
    layout = RowLayout(samples, padding)
    ids = torch.arange(layout.total_length) * 7 % vocabulary
    gathered: list[Tensor] = []
    targets: list[Tensor] = []
    for start, firsts, sample in zip(layout.sample_starts, layout.response_starts, layout.samples, strict=True):
        last = start + sample.prompt_length - 1
        for first, length in zip(firsts, sample.response_lengths, strict=True):
            ids[first] = ids[last]
            gathered.append(torch.tensor([last, *range(first, first + length - 1)]))
            targets.append(ids[first : first + length])
    counts = tuple((0, *sample.response_lengths) for sample in layout.samples)
    return Row(ids[None], _positions(layout, gap), torch.cat(gathered), torch.cat(targets), counts, layout)


def _positions(layout: RowLayout, gap: int) -> Tensor:
    """Return the positions of a row, [1, N], with a gap shortly before the end of each prompt."""
    positions: list[int] = []
    for sample in layout.samples:
        for piece in sample.places:
            positions += [place + gap * (place > sample.prompt_length - 3) for place in piece]
    return torch.tensor([positions + list(range(layout.padding))])


def _random_state() -> list[bytes]:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    return [
        *(state.numpy().tobytes() for state in states),
        repr(np.random.get_state()).encode(),  # noqa: NPY002
        repr(random.getstate()).encode(),
    ]
