"""Check whether a model can be trained: its config and its code before weights are read, then its loaded weights.

The model's own layers must compute a row of several responses over one prompt, through the shared-prefix attention, as
a function of the row alone.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel

from logodata.common.errors import UserError
from logodata.models.loading import empty_model, load_config
from logodata.models.text_config import config_name, text_config
from logotrain.attention.kernels import forget_rows
from logotrain.attention.shared_prefix import check_config, counted_attention, use_shared_prefix
from logotrain.loss.logprobs import LogprobModel
from logotrain.model.recompute import decoder_layers
from logotrain.model.rope import scaled_config
from logotrain.parallel import World, without_backward
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Row
from logotrain.rows.layout import RowLayout, SharedPrefixLayout

_SEEDS = 64
"""Number of seeds tried to find rare noise, such as a layer that is skipped one time in ten."""

_PRODUCTS = ("mm", "addmm", "bmm", "linear", "matmul")
_MOVES = frozenset(
    {"_to_copy", "_unsafe_view", "alias", "clone", "detach", "device", "expand", "index", "permute", "select", "slice"}
    | {"squeeze", "t", "transpose", "unsqueeze", "view"}
)
"""Operators that compute no new values; they only move values or change their dtype."""

_MEND = "use a model with plain attention, such as Llama or Qwen"


def trainable_config(recipe: TrainRecipe, *, shapes_only: bool = False) -> PreTrainedConfig:
    """Return the config of the model to train, its window scaled as ``recipe.rope`` says. No weights are read.

    For ``shapes_only`` see :func:`logodata.models.loading.load_config`.

    Raises:
        UserError: there is no such model, or it cannot be trained with any settings.
    """
    config = load_config(recipe.model, shapes_only=shapes_only)
    check_trainable(config)
    return scaled_config(config, recipe.rope)


def check_trainable(config: PreTrainedConfig) -> None:
    """Refuse a model whose config or code shows that it cannot compute a shared-prefix row.

    The code runs on fake tensors, which takes a second and no memory. If the code needs data (a loop over the chosen
    experts), only :func:`check_weights` can check it later.

    Raises:
        UserError: see :func:`logotrain.attention.shared_prefix.check_config`; or transformers has no such text model,
            its layers do not call the attention function that is set, they fail on such a row, or the model computes
            more around its output head than one product.
    """
    check_config(config)
    name = config_name(config)
    forget_rows()
    try:
        with _quiet(), FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"), torch.no_grad():
            # The other implementations of experts do not run on fake tensors.
            base = empty_model(copy.deepcopy(config), name, dtype=torch.bfloat16, experts_implementation="batched_mm")
            if text_config(base.config) is not base.config:
                raise _unfit(f"{type(base).__name__} reads more than text: only text models can be trained", name)
            row = _probe_row(1)
            with use_shared_prefix(base), counted_attention() as calls, _explained(base, name):
                LogprobModel(base)(row)
            layers = len(decoder_layers(base.get_decoder()))
            with use_shared_prefix(base), _AroundHead(base) as around, _explained(base, name):
                base(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, shared_prefix=row.layout)
    except UserError as error:
        if isinstance(error.__cause__, RuntimeError):  # torch raises it for an operator that needs data
            return
        raise
    finally:
        forget_rows()
    if len(calls) < layers:
        missed, kind = layers - len(calls), type(base).__name__
        raise _unfit(f"{kind} does not let its attention be replaced, in {missed} of {layers} layers", name)
    if around.found:
        found = ", ".join(around.found)
        raise _unfit(f"{type(base).__name__} changes what goes into or comes out of its output head ({found})", name)


class _AroundHead(TorchDispatchMode):
    """Records in ``found`` the operators between a model's decoder and its logits, except for one matrix product."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.found: list[str] = []
        self._products: int | None = None  # None until the decoder has ended
        self._vocabulary = model.get_output_embeddings().weight.shape[0]
        model.get_decoder().register_forward_hook(self._decoder_ended)

    def _decoder_ended(self, *_: Any) -> None:
        self._products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self._products is not None and isinstance(result, Tensor) and name not in _MOVES:
            # After the head, results that are not logits do not matter, such as the loss of a router.
            logits = result.shape[-1:] == (self._vocabulary,)
            by_one = name in ("mul", "div") and args[1] == 1
            if name in _PRODUCTS and not self._products:
                self._products = 1
            elif (logits or not self._products) and not by_one and name not in self.found:
                self.found.append(name)
        return result


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
        raise UserError(
            f"{type(model.causal_lm).__name__} gives different results for the same row, with dropout and jitter off",
            where=name,
            mend="use a model that draws no random numbers",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's log, which gets a traceback for each operator that needs data."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def _explained(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Turn an exception of a model's code into a UserError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        reason = f"{type(error).__name__} {next(iter(str(error).splitlines()), '')}"
        raise _unfit(f"{type(model).__name__} cannot compute responses over a shared prompt: {reason}", name) from error


def _unfit(what: str, name: str) -> UserError:
    return UserError(what, where=name, mend=_MEND)


def _probe_row(vocabulary: int) -> Row:
    """Return a row of two responses over one prompt."""
    layout = SharedPrefixLayout(16, (5, 4))
    positions = [*range(16), *range(16, 21), *range(16, 20)]
    index = [15, *range(16, 20), 15, *range(21, 24)]
    ids = torch.arange(layout.total_length) % vocabulary
    targets = torch.cat([ids[16:21], ids[21:25]])
    row = RowLayout((layout,))
    return Row(("probe",), ids[None], torch.tensor([positions]), torch.tensor(index), targets, ((0, 5, 4),), row)


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
