"""Find out how a model can be trained: on a small copy of it before weights are read, then on its loaded weights.

Lists of models and of their settings would be out of date with each release of transformers. So a small copy with
random weights is asked: whether responses over a shared prompt get the log-probabilities of separate rows, and what
else training depends on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from logodata.common.errors import UserError, first_line, pass_on
from logodata.models.facts import length_dependent_rope
from logodata.models.loading import empty_model, load_config
from logodata.models.logprobs import token_logprobs
from logodata.models.text_config import config_name, text_config
from logotrain.attention.kernels import forget_rows
from logotrain.attention.shared_prefix import attention_of, choose_backend, recorded_features, use_shared_prefix
from logotrain.attention.variants import Feature
from logotrain.loss.logprobs import LogprobModel
from logotrain.model.rope import scaled_config
from logotrain.model.tiny import VOCABULARY, small_configs
from logotrain.parallel import World, without_backward
from logotrain.recipe.settings import Backend, Implementation, TrainRecipe
from logotrain.rows.collate import Row
from logotrain.rows.layout import RowLayout, SharedPrefixLayout

_SEEDS = 64
"""Number of seeds tried to find rare noise, such as a layer that is skipped one time in ten."""

_TOLERANCE = 1e-3
"""Largest difference, in nats, of log-probabilities that count as equal. In float64, of which attention and norms do
parts in float32, equal ones differ by less than 1e-4; what a model does otherwise, such as a cap on scores, shows from
1e-2 on."""

_MOST_WEIGHTS = 120_000_000
"""Weights of the largest small copy that is tried."""

_GAIN = 3.0
"""Standard deviation of a linear layer's output on inputs of standard deviation 1, with the random weights."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What training depends on in a model.

    Attributes:
        obstacle: why responses cannot share their prompt; empty if they can.
        features: the variants of attention that its layers ask for.
        separate: the attention of transformers that computes rows without sharing.
        uses_positions: whether results depend on position ids.
    """

    obstacle: str
    features: frozenset[Feature] = frozenset()
    separate: Literal["sdpa", "eager"] = "eager"
    uses_positions: bool = True


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
    if not traits.uses_positions and recipe.positions.mode != "natural":
        raise UserError("the model takes no position ids", where=where, mend="set positions.mode=natural")
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
    with _own_random_state(), torch.no_grad():
        found = _small_model(config, where)
        if isinstance(found, str):
            return Traits(f"no small copy of it could be tried ({found})", separate="sdpa")
        model, truth = found
        scorer, row = LogprobModel(model), _probe_row(VOCABULARY)
        _check_function(scorer, row, truth, where)
        plain = replace(row, position_ids=_positions(row.layout, gap=0))
        uses_positions = not _equal(scorer(plain), truth)
        try:
            model.set_attn_implementation("sdpa")
            separate: Literal["sdpa", "eager"] = "sdpa" if _equal(scorer(row), truth) else "eager"
        except Exception as error:
            pass_on(error)
            separate = "eager"
        obstacle, features = _try_sharing(scorer, row, truth)
    if rope := length_dependent_rope(config):
        obstacle = f"RoPE type {rope!r} changes with the length of the row"
    return Traits(obstacle, features, separate, uses_positions)


def _small_model(config: PreTrainedConfig, where: str) -> tuple[PreTrainedModel, Tensor] | str:
    """Return a small copy that runs, in float64 with random weights, and its log-probabilities of :func:`_probe_row` in
    separate rows; or why there is none."""
    reason = ""
    for small in small_configs(config):
        try:
            with torch.device("meta"):
                size = empty_model(small, where).num_parameters()
            if size > _MOST_WEIGHTS:
                reason = reason or f"it would have {size:,} weights"
                continue
            model = empty_model(
                small, where, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
            )
            _draw_weights(model.eval())
            return model, _own_logprobs(model, _probe_row(VOCABULARY))
        except Exception as error:
            pass_on(error)
            if isinstance(error, UserError) and "no causal language model" in error.what:
                raise
            reason = reason or f"{type(error).__name__} {first_line(error)}"
    return reason


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


def _draw_weights(model: PreTrainedModel) -> None:
    _seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=_GAIN * weight.shape[-1] ** -0.5)


class AttentionChoice(NamedTuple):
    """How the attention of a model is computed while it trains.

    Attributes:
        shared: whether the responses of a sample share one computation of their prompt.
        by: the back end of shared rows, or transformers' implementation for separate ones.
        reason: why.
    """

    shared: bool
    by: Implementation
    reason: str

    def __str__(self) -> str:
        if self.shared:
            return f"{self.by} ({self.reason})"
        return f"{self.by}, a row for each response, which computes its prompt again ({self.reason})"

    @contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Make a model, plain or inside PEFT, compute its attention so within the block."""
        with use_shared_prefix(model, self.by) if self.by != "eager" and self.shared else attention_of(model, self.by):
            yield


def choose_attention(
    traits: Traits,
    device: torch.device,
    dtype: torch.dtype,
    *,
    sharing: Literal["auto", "prompt", "none"] = "auto",
    wanted: Literal["auto", Backend] = "auto",
    here: bool = True,
) -> AttentionChoice:
    """Choose how the attention of a model is computed on a device.

    Args:
        traits: of the model.
        device: where it is computed.
        dtype: of queries, keys and values.
        sharing: see :class:`logotrain.recipe.settings.TrainRecipe`.
        wanted: the back end that is asked for.
        here: see :func:`logotrain.attention.shared_prefix.choose_backend`.

    Raises:
        UserError: what is asked for cannot be computed.
    """
    obstacle = traits.obstacle or ("as asked for" if sharing == "none" else "")
    if not obstacle:
        try:
            return AttentionChoice(True, *choose_backend(wanted, device, dtype, features=traits.features, here=here))
        except UserError as error:
            if wanted != "auto" or sharing == "prompt":
                raise
            obstacle = error.what
    if wanted in ("flash", "flex"):
        raise UserError(
            f"attention={wanted} is for shared prompts, and there are none: {obstacle}", mend="set attention=auto"
        )
    return AttentionChoice(False, traits.separate, obstacle)


def _check_function(scorer: LogprobModel, row: Row, truth: Tensor, where: str) -> None:
    """Refuse a model whose log-probabilities are no function of the tokens before."""
    kind = type(scorer.causal_lm).__name__
    first, at = [], 0
    for counts in row.num_targets:
        first.append([truth[at := at + (0 if not n else counts[n])] for n in range(len(counts) - 1)])
        at += counts[-1]
    if any(not _equal(value, values[0]) for values in first for value in values):
        raise UserError(
            f"{kind} lets tokens depend on later ones, so it does not predict the next token",
            where=where,
            mend="use a causal language model",
        )
    _seed(1)
    if not _equal(_own_logprobs(scorer.causal_lm, row), truth):
        raise _random(kind, where)
    if not _equal(scorer(row), truth):
        raise UserError(
            f"{kind} gives other log-probabilities than its decoder and its head one after the other",
            where=where,
            mend="use a model that writes text and nothing else, such as Llama or Qwen",
        )


def _try_sharing(scorer: LogprobModel, row: Row, truth: Tensor) -> tuple[str, frozenset[Feature]]:
    """Return why the responses of a row cannot share its prompts, empty if they can, and the features they need."""
    forget_rows()
    try:
        with use_shared_prefix(scorer.causal_lm, "dense"), recorded_features() as features:
            shared = scorer(row)
    except Exception as error:
        pass_on(error)
        return first_line(error), frozenset()
    if not _equal(shared, truth):
        difference = (shared - truth).abs().max().item()
        return f"their log-probabilities would differ, in a small copy by up to {difference:.1g} nats", frozenset()
    return "", frozenset(features)


def _equal(values: Tensor, truth: Tensor) -> bool:
    return torch.allclose(values, truth, rtol=0, atol=_TOLERANCE)


def _random(kind: str, where: str) -> UserError:
    return UserError(
        f"{kind} gives different results for the same row, with dropout and jitter off",
        where=where,
        mend="use a model that draws no random numbers",
    )


def check_weights(model: LogprobModel, world: World, name: str) -> None:
    """Refuse a loaded model whose layers fail on a row, or give another result under another random seed.

    Policy and reference must be functions of the row, and a backward pass that recomputes layers must get the values of
    the forward pass. Evaluation mode turns noise off; this check finds layers that ignore evaluation mode. All
    processes call it together, inside of :func:`logotrain.attention.shared_prefix.use_shared_prefix`.

    Raises:
        UserError: the model fails on a row, or its results differ.
    """
    device = next(model.parameters()).device
    row = _probe_row(text_config(model.causal_lm.config).vocab_size).to(device)
    noisy = False
    with _own_random_state(), without_backward(model), torch.compiler.set_stance("force_eager"):
        _seed(0)
        before = _random_state()
        with _explained(model.causal_lm, name):
            first: Tensor = model(row)
        drawn = _random_state() != before
        # If no random number was drawn, one more pass on a CPU is enough; accelerators may sum in another order.
        for seed in range(1, _SEEDS if drawn else 2 if device.type == "cpu" else 1):
            _seed(seed)
            noisy |= not torch.equal(first.nan_to_num(), model(row).nan_to_num())  # training itself reports NaN
    if world.any(noisy):
        raise _random(type(model.causal_lm).__name__, name)


@contextmanager
def _explained(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Turn an exception of a model's code into a UserError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        what = f"{type(model).__name__} cannot compute a row: {type(error).__name__} {first_line(error)}"
        raise UserError(what, where=name, mend="use another model, such as Llama or Qwen") from error


def _probe_row(vocabulary: int) -> Row:
    """Return two samples and padding, with gaps between positions. A sample's responses begin with the same token."""
    layout = RowLayout((SharedPrefixLayout(17, (6, 4, 5)), SharedPrefixLayout(9, (3, 5))), padding=3)
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
    return Row(
        ("probe",) * 2, ids[None], _positions(layout, gap=3), torch.cat(gathered), torch.cat(targets), counts, layout
    )


def _positions(layout: RowLayout, *, gap: int) -> Tensor:
    """Return the positions of a row, [1, N], with a gap shortly before the end of each prompt."""
    positions: list[int] = []
    for sample in layout.samples:
        for piece in sample.places:
            positions += [place + gap * (place > sample.prompt_length - 3) for place in piece]
    return torch.tensor([positions + list(range(layout.padding))])


def _seed(seed: int) -> None:
    """Seed every generator that a model's code may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a model's code would use the global generator
    random.seed(seed)


def _random_state() -> list[bytes]:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    return [
        *(state.numpy().tobytes() for state in states),
        repr(np.random.get_state()).encode(),  # noqa: NPY002
        repr(random.getstate()).encode(),
    ]


@contextmanager
def _own_random_state() -> Iterator[None]:
    """Restore the state of all random generators at the end of the block."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
