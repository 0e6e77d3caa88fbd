"""Sizes of a model and of what is trained of it: read off the model itself, without its weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from logodata.common.errors import UserError
from logodata.models.loading import empty_model
from logodata.models.text_config import config_name, head_dim, text_config
from logotrain.model.targets import adapter_parameters, adapter_targets
from logotrain.recipe.settings import LoraSettings, TrainRecipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a decoder layer.

    Attributes:
        path: its name in the decoder layer, such as ``self_attn.q_proj``.
        group: name of its input; layers of one group read the same tensor.
        adaptable: whether it can get an adapter. The Conv1D of GPT-2 cannot.
        in_tiles: whether it can run over tiles of tokens (:func:`logotrain.model.recompute.tiled_classes`).
    """

    path: str
    group: str
    inputs: int
    outputs: int
    adaptable: bool
    in_tiles: bool

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    @property
    def mixes(self) -> bool:
        """Whether it belongs to what mixes tokens: attention, linear attention, a state space."""
        return bool(_MIXER.search(self.path))

    @property
    def weights(self) -> int:
        """The number of weights without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a decoder layer, each matrix of all of them stacked in one weight.

    Attributes:
        count: number of experts, E.
        chosen: number of experts that a token is sent to, k.
        intermediate: width of one expert's MLP, f.
        kept: values of that width that one expert keeps of a token.
        weights: number of weights of all experts.
        stacked: number of weights of the largest stack.
        in_tiles: whether they can run over tiles of tokens.
    """

    count: int
    chosen: int
    intermediate: int
    kept: int
    weights: int
    stacked: int
    in_tiles: bool


@dataclass(frozen=True, slots=True)
class Stack:
    """A matrix, or a stack of one for each expert, that no linear layer holds.

    Attributes:
        path: its name in the decoder layer, such as ``mlp.experts.down_proj``.
        count: number of matrices.
        rows, columns: sizes of one.
    """

    path: str
    count: int
    rows: int
    columns: int

    def adapter_weights(self, rank: int) -> int:
        """Return how many weights its adapter has."""
        return self.count * rank * (self.rows + self.columns)

    @property
    def weights(self) -> int:
        """The number of weights of the stack."""
        return self.count * self.rows * self.columns


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of one kind of decoder layer.

    Attributes:
        count: number of layers of this kind.
        attends: whether it has attention to tokens, and not linear attention or a convolution.
        query_width: width of all query heads together, q.
        key_width: width of all key heads together, k.
        value_width: width of all value heads together, v.
        output_width: width of what attention puts out.
        gated: whether the MLP multiplies two branches.
        intermediate: width of the MLP that every token goes through, f; 0 if there is none.
        mlp_in_tiles: whether that MLP can run over tiles of tokens.
        norm_widths: for each norm, the number of features that it reads of a token.
        token_weights: see :func:`layer_weights`.
    """

    count: int
    attends: bool
    query_width: int
    key_width: int
    value_width: int
    output_width: int
    gated: bool
    intermediate: int
    mlp_in_tiles: bool
    norm_widths: tuple[int, ...]
    linears: tuple[Linear, ...]
    stacks: tuple[Stack, ...]
    experts: tuple[Experts, ...]
    parameters: int
    token_weights: int

    @property
    def has_tiles(self) -> bool:
        """Whether a part of it can run over tiles of tokens."""
        return self.mlp_in_tiles or any(experts.in_tiles for experts in self.experts)

    def targets(self, names: Collection[str]) -> list[Linear]:
        """Return the linear layers of these names."""
        return [linear for linear in self.linears if linear.name in names]

    def adapted(self, ends: Collection[str]) -> list[Stack]:
        """Return the stacks whose names end so."""
        return [stack for stack in self.stacks if any(f".{stack.path}".endswith(f".{end}") for end in ends)]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        hidden: width of the residual stream, d.
        num_heads: number of query heads, h.
        vocabulary: number of tokens, V.
        head: name of the output head's layer.
        tied: whether the token embedding and the head are one weight.
        layers: one for each kind of decoder layer.
        other_parameters: weights of the last norm, of a head that is not tied, and of what sees and hears.
        unread_parameters: those of what sees and hears, which full tuning leaves as they are.
    """

    hidden: int
    num_heads: int
    vocabulary: int
    head: str
    tied: bool
    layers: tuple[LayerShape, ...]
    embedding_parameters: int
    other_parameters: int
    unread_parameters: int

    @property
    def head_width(self) -> int:
        """Features of the widest query head; 0 if no layer attends to tokens."""
        return max((layer.query_width for layer in self.layers if layer.attends), default=0) // self.num_heads

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def caveat(self) -> str:
        """Why an estimate of memory is rough; empty if it is not."""
        rough = sum(layer.count for layer in self.layers if not layer.attends)
        return f"a rough estimate: {rough} of {self.num_layers} layers have no attention to tokens" if rough else ""

    @property
    def parameters(self) -> int:
        """The number of weights of the model."""
        in_layers = sum(layer.count * layer.parameters for layer in self.layers)
        return in_layers + self.embedding_parameters + self.other_parameters

    @property
    def head_parameters(self) -> int:
        """The number of weights of the output head, tied or not."""
        return self.vocabulary * self.hidden


def layer_weights(layer: nn.Module) -> int:
    """Return how many weights one token meets in the matrices of a decoder layer, packed to 4 bits or not.

    Adapters do not count, and of stacked experts only those that the token is sent to.
    """
    from torch import nn

    total = 0
    for path, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            total += 0 if "lora_" in path else module.in_features * module.out_features
        elif _has_experts(module):
            total += sum(_chosen(layer, path, stack) * stack[0].numel() for stack in _stacks(module))
        else:
            total += sum(weight.numel() for weight in module.parameters(recurse=False) if weight.ndim > 1)
    return total


def _has_experts(module: nn.Module) -> bool:
    return "Expert" in type(module).__name__ and bool(_stacks(module))


def _stacks(module: nn.Module) -> list[nn.Parameter]:
    """Return the matrices of the experts of a module, each [E, outputs, inputs] or [E, inputs, outputs]."""
    return [weight for weight in module.parameters(recurse=False) if weight.ndim == 3]


def _chosen(layer: nn.Module, path: str, stack: nn.Parameter) -> int:
    """Return how many of the experts at a path in a decoder layer a token is sent to."""
    if "shared" in path:
        return len(stack)
    block = layer.get_submodule(path.rpartition(".")[0])
    # The router beside them knows. Where there is none that says it, the config does.
    counts = [getattr(module, "top_k", None) for module in block.modules()]
    config = getattr(layer.get_submodule(path), "config", None)
    counts.append(getattr(config, "num_experts_per_tok", None))
    return next((count for count in counts if isinstance(count, int)), len(stack))


def model_shape(config: PreTrainedConfig) -> ModelShape:
    """Return the sizes of the model that ``config`` describes. They are read off the model, built without memory.

    Raises:
        UserError: the model is not a decoder with attention heads, one embedding and one head, or it has state-space
            layers, of which memory is not known.
    """
    import torch
    from torch import nn

    from logodata.models.logprobs import unread_weights
    from logotrain.model.recompute import decoder_layers, tiled_classes, tiled_modules

    where = config_name(config)
    with torch.device("meta"):
        model: Any = empty_model(copy.deepcopy(config), where)
    text = text_config(model.config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    hidden, num_heads = (_size(text, name) for name in ("hidden_size", "num_attention_heads"))
    layers = decoder_layers(model)
    has_state = any(_STATE_SPACE.search(type(module).__name__) for layer in layers for module in layer.modules())
    plain = isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear) and not has_state
    if not hidden or not num_heads or not plain:
        raise UserError(
            "not a decoder of attention layers with one embedding and one head",
            where=where,
            mend="its memory cannot be estimated: set recompute and parallel.strategy in the recipe",
        )
    classes = tiled_classes(config)
    kinds: dict[object, list[tuple[nn.Module, bool]]] = {}
    for layer, name in zip_longest(layers, (getattr(text, "layer_types", None) or ())[: len(layers)]):
        attends = name is None or name == "hybrid" or ("attention" in name and "linear" not in name)
        sizes = tuple((path, weight.shape) for path, weight in layer.named_parameters())
        kinds.setdefault((attends, sizes), []).append((layer, attends))
    return ModelShape(
        hidden=hidden,
        num_heads=num_heads,
        vocabulary=embedding.weight.shape[0],
        head=next(path.rpartition(".")[2] for path, module in model.named_modules() if module is head),
        tied=head.weight is embedding.weight,
        layers=tuple(
            _layer_shape(*alike[0], len(alike), text, [path for path, _ in tiled_modules(alike[0][0], classes)])
            for alike in kinds.values()
        ),
        embedding_parameters=embedding.weight.numel(),
        other_parameters=model.num_parameters() - embedding.weight.numel() - sum(map(_count, layers)),
        unread_parameters=sum(weight.numel() for weight in unread_weights(model)),
    )


def widest_head(config: PreTrainedConfig) -> int:
    """Return the features of a model's widest query head; 0 if its sizes are not known."""
    try:
        return model_shape(config).head_width
    except UserError:
        return 0


def _layer_shape(
    layer: nn.Module, attends: bool, count: int, text: PreTrainedConfig, tiled: Collection[str]
) -> LayerShape:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    def in_tiles(path: str) -> bool:
        return any(f"{path}.".startswith(f"{part}.") for part in tiled)

    modules = [(path, module) for path, module in layer.named_modules() if path]
    linears: list[Linear] = []
    for path, module in modules:
        if isinstance(module, nn.Linear | Conv1D):
            plain = isinstance(module, nn.Linear)
            # A linear layer's weight is [outputs, inputs]; a Conv1D keeps it the other way round.
            inputs, outputs = module.weight.shape[:: -1 if plain else 1]
            linears.append(Linear(path, _input_of(path), inputs, outputs, adaptable=plain, in_tiles=in_tiles(path)))
    query, key, value, output = _attention_widths(linears, text)
    named_widths = {"q_norm": query, "q_layernorm": query, "k_norm": key, "k_layernorm": key}
    experts = _experts(layer, text.hidden_size, in_tiles)
    outside = [linear for linear in linears if not linear.mixes]
    # Not every config names its width, or means it: the widest of what leads back to the residual stream, but for
    # heads.
    back = [linear for linear in outside if linear.outputs == text.hidden_size and linear.inputs != output]
    widest = max(back, key=lambda linear: linear.inputs, default=None)
    return LayerShape(
        count=count,
        attends=attends,
        query_width=query,
        key_width=key,
        value_width=value,
        output_width=output,
        gated=any("gate" in linear.name for linear in outside),
        intermediate=widest.inputs if widest else 0 if experts else query,
        mlp_in_tiles=widest is not None and widest.in_tiles,
        norm_widths=tuple(
            named_widths.get(path.rpartition(".")[2]) or _norm_width(module, text.hidden_size)
            for path, module in modules
            if type(module).__name__.endswith("Norm")
        ),
        linears=tuple(linears),
        stacks=tuple(_stacked(modules)),
        experts=experts,
        parameters=_count(layer),
        token_weights=layer_weights(layer),
    )


def _stacked(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[Stack]:
    from torch import nn

    for path, module in modules:
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim in (2, 3) and "bias" not in name and not isinstance(module, nn.Linear | nn.Embedding):
                yield Stack(f"{path}.{name}", *(1,) * (3 - weight.ndim), *weight.shape)


_MIXER = re.compile("attn|attention|conv")
"""What mixes tokens, in the path of a linear layer."""

_STATE_SPACE = re.compile("Mamba|Mixer$|Recurrent")
"""State-space layers, in the name of a class. Their code keeps up to a hundred times what goes into it."""


def _attention_widths(linears: Sequence[Linear], text: PreTrainedConfig) -> tuple[int, int, int, int]:
    """Return the widths of queries, keys, values and output: those of the projections, else as the config says."""
    outputs = {linear.name: linear.outputs for linear in linears}
    inputs = {linear.name: linear.inputs for linear in linears}
    if getattr(text, "is_heterogeneous", False):  # Gemma 4: some layers are wider, some take the keys of another layer
        query, key = inputs.get("o_proj", 0), outputs.get("k_proj", 0)
        return query, key, outputs.get("v_proj", key), query
    width = head_dim(text)
    query = text.num_attention_heads * width
    if "kv_b_proj" in outputs:  # multi-head latent attention: every head has a key of its own, as wide as its query
        query = outputs.get("q_b_proj") or outputs.get("q_proj") or query
        return query, query, inputs.get("o_proj", query), inputs.get("o_proj", query)
    key = (_size(text, "num_key_value_heads") or text.num_attention_heads) * width
    return query, outputs.get("k_proj", key), outputs.get("v_proj", key), inputs.get("o_proj", query)


def _norm_width(norm: nn.Module, hidden: int) -> int:
    weight = getattr(norm, "weight", None)
    return hidden if weight is None else weight.numel()


def _experts(layer: nn.Module, hidden: int, in_tiles: Callable[[str], bool]) -> tuple[Experts, ...]:
    """Return the stacked experts of a decoder layer. The matrices of one block may be in one module or in several."""
    blocks: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, module in layer.named_modules():
        if _has_experts(module):
            block = path if len(_stacks(module)) > 1 else path.rpartition(".")[0]
            blocks.setdefault(block, []).append((path, module))
    found: list[Experts] = []
    for members in blocks.values():
        path, module = members[0]
        stacks = [stack for _, member in members for stack in _stacks(member)]
        widths = [stack[0].numel() // hidden for stack in stacks]
        intermediate = min(widths)
        kept = 3 if sum(widths) >= 3 * intermediate else 1
        # A class with a gate of its own, such as GPT-OSS's, caps the gate's inputs. Others get transformers' default.
        if getattr(getattr(type(module), "_apply_gate", None), "__name__", "") == "_apply_gate":
            kept = 6
        sizes = [stack.numel() for stack in stacks]
        chosen = _chosen(layer, path, stacks[0])
        found.append(Experts(len(stacks[0]), chosen, intermediate, kept, sum(sizes), max(sizes), in_tiles(path)))
    return tuple(found)


def _size(config: PreTrainedConfig, name: str) -> int:
    """Return a field of a config, 0 where it has none or another one in each layer."""
    try:
        return getattr(config, name, None) or 0
    except (ValueError, RuntimeError):
        return 0


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _input_of(path: str) -> str:
    """Return a name for the tensor that a linear layer reads: that of its block, or its own for the last of a block."""
    block, _, name = path.rpartition(".")
    return path if name in ("o_proj", "out_proj", "dense", "down_proj", "c_proj", "fc2") else block


@dataclass(frozen=True, slots=True)
class Trained:
    """What a recipe trains of a model.

    Attributes:
        targets: names of the linear layers that get an adapter.
        parameters: ends of the names of the stacks that get one.
        adapters: number of weights of all adapters.
        embedding: whether the token embedding is trained.
        total: number of weights that get gradients.
    """

    targets: frozenset[str]
    parameters: frozenset[str]
    adapters: int
    embedding: bool
    total: int


def adapter_weights(linears: Sequence[Linear], settings: LoraSettings) -> int:
    """Return how many weights the adapters of these linear layers have; DoRA has a length for each output, too."""
    weights = settings.rank * sum(linear.inputs + linear.outputs for linear in linears)
    return weights + settings.use_dora * sum(linear.outputs for linear in linears)


def trained_weights(shape: ModelShape, recipe: TrainRecipe) -> Trained:
    """Return what ``recipe`` trains of a model of this shape.

    Raises:
        UserError: see :func:`logotrain.model.targets.adapter_targets`.
    """
    if recipe.tuning == "full":
        return Trained(frozenset(), frozenset(), 0, True, shape.parameters - shape.unread_parameters)
    paths = [linear.path for layer in shape.layers for linear in layer.linears if linear.adaptable]
    names, embedding = adapter_targets(recipe.lora, paths, shape.head, tied=shape.tied, where=recipe.model)
    chosen = frozenset(names)
    stacks = [f"layers.0.{stack.path}" for layer in shape.layers for stack in layer.stacks]
    ends = frozenset(adapter_parameters(recipe.lora, stacks, where=recipe.model))
    rank = recipe.lora.rank
    adapters = sum(
        layer.count
        * (
            adapter_weights(layer.targets(chosen), recipe.lora)
            + sum(stack.adapter_weights(rank) for stack in layer.adapted(ends))
        )
        for layer in shape.layers
    )
    return Trained(chosen, ends, adapters, embedding, adapters + embedding * shape.embedding_parameters)
