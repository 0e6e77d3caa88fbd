"""Compile each decoder layer, and set what its backward pass computes again and what it waits for in host memory.

All of it replaces ``layer.forward``, so parameters keep their names, and ``fully_shard(layer)``, whose hooks lie
outside, may follow. Compiling comes first. ``layer.compile()`` of a checkpointed forward compiles nothing and says
nothing (torch 2.13), because the graph break at the attention makes it skip the whole call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from logodata.common.errors import UserError, pass_on
from logodata.models.logprobs import decoder_of
from logodata.models.text_config import config_name, text_config
from logodata.models.tiny import config_key, own_logits, own_random_state, small_model
from logotrain.model.tiles import is_per_token, run_in_tiles, run_whole
from logotrain.recipe.settings import TILED, Recompute

_KEPT_OPERATORS = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_fused_attention_overrideable",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
    }
)
"""The names of the attention kernels, as autograd sees them."""


_PROBE_TOKENS = 25
"""Tokens of the row on which modules of a small copy are tried."""


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the decoder layers of a model, plain or inside PEFT, in order.

    Raises:
        UserError: the model is not built of transformers' layers.
    """
    causal_lm = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    model = model if causal_lm is None else decoder_of(causal_lm)  # not what sees and hears
    layers: list[GradientCheckpointingLayer] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            layers.append(module)
            inside.update(module.modules())
    if not layers:
        raise UserError(
            f"no decoder layers found in {type(model).__name__}",
            mend="use a model whose layers are transformers' GradientCheckpointingLayer",
        )
    return layers


def compile_layers(model: nn.Module) -> None:
    """Compile each layer's forward pass. The attention stays outside, so that a row's layout does not matter.

    The second length of a row compiles it once more, for all lengths. Layers share what is compiled, but PEFT makes
    classes of each layer's own where adapters are on parameters, and each is compiled.
    """
    layers = decoder_layers(model)
    # Past its limit torch computes without compiling. Where that begins between a layer's forward pass and its second
    # one, the two save different tensors, and the backward pass fails.
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), 16 * len(layers)))
    for layer in layers:
        if isinstance(layer.forward, partial):
            raise ValueError("compile_layers comes before checkpoint_layers")
        layer.forward = torch.compile(layer.forward)


def checkpoint_layers(model: nn.Module, choice: Recompute) -> None:
    """Set what the backward pass of each layer computes again, in place of an earlier choice.

    It is nothing (``none``), all but the attention (``selective``) or all (``full``). With ``tiled`` it is all, and
    what treats each token by itself, such as the MLP, runs over tiles of tokens (:mod:`logotrain.model.tiles`), where
    :func:`tiled_classes` found it. With ``offloaded`` the input of each layer waits in host memory, too.

    Gradients are equal bit for bit, but that ``tiled`` and ``offloaded`` sum over tiles.
    """
    layers = decoder_layers(model)
    in_tiles = choice in TILED
    classes, tokens = (tiled_classes(config := _config(model)), tile_tokens(config)) if in_tiles else ((), 0)
    # Nothing in the forward is random, so random states need not be kept for the second one.
    wrap = partial(partial, checkpoint, use_reentrant=False, preserve_rng_state=False)
    waiting = _Waiting()
    for layer in layers:
        forward = layer.forward
        while isinstance(forward, partial):
            forward = forward.args[0]
        for module in layer.modules():
            run_whole(module)
        for _, module in tiled_modules(layer, classes):
            run_in_tiles(module, tokens, compiled=hasattr(forward, "_torchdynamo_orig_callable"))
        match choice:
            case "none":
                layer.forward = forward
            case "selective":
                layer.forward = wrap(forward, context_fn=partial(create_selective_checkpoint_contexts, _policy))
            case "full" | "tiled":
                layer.forward = wrap(forward)
            case "offloaded":
                layer.forward = partial(waiting.run, wrap(forward))


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator.name() in _KEPT_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE


def _config(model: nn.Module) -> PreTrainedConfig:
    return next(module.config for module in model.modules() if isinstance(module, PreTrainedModel))


def tile_tokens(config: PreTrainedConfig) -> int:
    """Return the number of tokens of a tile: that of the features of a state.

    What an MLP keeps of a tile then takes about as much memory as its weights, and its products are large enough for
    the rate of a GPU."""
    return text_config(config).hidden_size


def tiled_classes(config: PreTrainedConfig) -> frozenset[type[nn.Module]]:
    """Return the classes of the modules in a model's layers that can run over tiles. Empty if there is none.

    A small copy of the model is asked (:mod:`logodata.models.tiny`). Such a module has at least two matrices and is
    :func:`logotrain.model.tiles.is_per_token`. A block that chooses experts is not among them, because what its router
    does is recorded (:mod:`logotrain.loss.routers`); its experts are.
    """
    key = config_key(config)
    if key not in _known:
        with own_random_state(), torch.no_grad():
            model = small_model(config, config_name(config))
            _known[key] = frozenset() if isinstance(model, str) else _per_token_classes(model)
    return _known[key]


_known: dict[str, frozenset[type[nn.Module]]] = {}
"""What this process found, by :func:`logodata.models.tiny.config_key`."""


def _per_token_classes(model: PreTrainedModel) -> frozenset[type[nn.Module]]:
    verdicts: dict[type[nn.Module], bool] = {}
    choosing: set[nn.Module] = set()  # what gets or gives whole numbers: routers and experts
    trying = False

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal trying
        if trying:
            return
        values = tree_leaves((args, kwargs, output))
        if any(isinstance(value, Tensor) and not value.is_floating_point() for value in values):
            choosing.add(module)
        if num_matrices(module) < 2 or not choosing.isdisjoint({*module.modules()} - {module}):
            return
        trying = True
        try:
            per_token = is_per_token(module.forward, args, kwargs, output)
        except Exception as error:  # each module fails in its own way on what it does not take
            pass_on(error)
            per_token = False
        trying = False
        verdicts[type(module)] = verdicts.get(type(module), True) and per_token

    for layer in decoder_layers(model):
        for module in layer.modules():
            if module is not layer:
                module.register_forward_hook(lambda *call: look(*call), with_kwargs=True)
    own_logits(model, torch.arange(_PROBE_TOKENS)[None])
    return frozenset(cls for cls, per_token in verdicts.items() if per_token)


def num_matrices(module: nn.Module) -> int:
    """Return how many weights of a module and of those in it are matrices or stacks of them."""
    return sum(weight.ndim > 1 for weight in module.parameters())


def tiled_modules(layer: nn.Module, classes: Collection[type[nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the paths and the outermost modules of a decoder layer that are of these classes, adapters around them
    included."""
    inside: set[nn.Module] = {layer}
    for path, module in layer.named_modules():
        if module not in inside and _plain_class(module) in classes:
            inside.update(module.modules())
            yield path, module


def _plain_class(module: nn.Module) -> type[nn.Module]:
    while isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    return type(module)


class _Waiting:
    """The inputs of layers, which wait for the backward pass in host memory.

    On CUDA they are copied while the layers compute, to pinned memory and back, each while the layer after it runs
    backward.
    """

    def __init__(self) -> None:
        self._newest: Callable[[], _HostCopy | None] = lambda: None

    def run(self, checkpointed: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call a checkpointed layer, whose inputs are all that is saved through these hooks."""
        shape = states.shape

        def pack(tensor: Tensor) -> Tensor | _HostCopy:
            if tensor.shape != shape:
                return tensor
            copy = _HostCopy(tensor, self._newest)
            self._newest = weakref.ref(copy)
            return copy

        with saved_tensors_hooks(pack, lambda kept: kept.back() if isinstance(kept, _HostCopy) else kept):
            return checkpointed(states, *args, **kwargs)


class _HostCopy:
    """A copy of a tensor in host memory. The one made before it is fetched as soon as this one is needed."""

    def __init__(self, tensor: Tensor, before: Callable[[], _HostCopy | None]) -> None:
        self._device, self._before = tensor.device, before
        self._fetched: Tensor | None = None
        self._done: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._host = [to_host(tensor)]
            return
        stream = _copy_stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        self._shape = tensor.shape
        with torch.cuda.stream(stream):
            self._host = []
            for part in tensor.flatten().split(pinned_sizes(tensor.numel())):
                self._host.append(torch.empty(part.shape, dtype=part.dtype, pin_memory=True))
                self._host[-1].copy_(part, non_blocking=True)
        tensor.record_stream(stream)  # its memory is free when the copy is done

    def back(self) -> Tensor:
        """Return the tensor on its device."""
        tensor = self._fetch()
        self._fetched = None
        if self._done is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(self._done)
            tensor.record_stream(now)
        before = self._before()
        if before is not None:
            before._fetch()
        return tensor

    def _fetch(self) -> Tensor:
        if self._fetched is None and self._device.type == "cuda":
            stream = _copy_stream(self._device)
            with torch.cuda.stream(stream):
                self._fetched = torch.empty(self._shape, dtype=self._host[0].dtype, device=self._device)
                parts = self._fetched.view(-1).split([host.numel() for host in self._host])
                for part, host in zip(parts, self._host, strict=True):
                    part.copy_(host, non_blocking=True)
            self._done = stream.record_event()
        elif self._fetched is None:
            self._fetched = from_host(self._host[0], self._device)
        return self._fetched


def pinned_sizes(count: int) -> list[int]:
    """Split a number of elements into powers of two, the largest first, and a rest below :data:`_LEAST_PINNED`.

    torch rounds each block of pinned memory up to a power of two: a row of 129K tokens would take as much as 256K.
    """
    sizes: list[int] = []
    while count >= _LEAST_PINNED:
        sizes.append(1 << count.bit_length() - 1)
        count -= sizes[-1]
    return [*sizes, count] if count else sizes


_LEAST_PINNED = 1 << 19
"""Elements below which a part of a tensor is not split further."""


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory, where it is not on CUDA."""
    return tensor.to("cpu", copy=True)


def from_host(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy it back."""
    return tensor.to(device, copy=True)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
