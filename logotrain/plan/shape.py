"""Sizes of a model and of what is trained of it: read off the model itself, without its weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logodata.common.errors import UserError
from logodata.models.loading import empty_model
from logodata.models.text_config import config_name, head_dim, text_config
from logotrain.model.targets import adapter_targets
from logotrain.recipe.settings import TrainRecipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a decoder layer.

    Attributes:
        group: name of its input; layers of one group read the same tensor.
        adaptable: whether it can get an adapter. The Conv1D of GPT-2 cannot.
    """

    name: str
    group: str
    inputs: int
    outputs: int
    adaptable: bool

    @property
    def weights(self) -> int:
        """The number of weights without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder of equal layers. ``linears`` and ``layer_parameters`` are those of one decoder layer.

    Attributes:
        hidden: width of the residual stream, d.
        query_width: width of all query heads together, q.
        key_width: width of all key heads together, k.
        num_heads: number of query heads, h.
        vocabulary: number of tokens, V.
        head: name of the output head's layer.
        tied: whether the token embedding and the head are one weight.
        gated: whether the MLP multiplies two branches.
        intermediate: width of the MLP, f.
        norm_widths: for each norm of a decoder layer, the number of features that it reads of a token.
        other_parameters: weights of the last norm, and of a head that is not tied.
    """

    num_layers: int
    hidden: int
    query_width: int
    key_width: int
    num_heads: int
    vocabulary: int
    head: str
    tied: bool
    gated: bool
    intermediate: int
    norm_widths: tuple[int, ...]
    linears: tuple[Linear, ...]
    layer_parameters: int
    embedding_parameters: int
    other_parameters: int

    @property
    def parameters(self) -> int:
        """The number of weights of the model."""
        return self.num_layers * self.layer_parameters + self.embedding_parameters + self.other_parameters

    @property
    def head_parameters(self) -> int:
        """The number of weights of the output head, tied or not."""
        return self.vocabulary * self.hidden


def layer_weights(layer: nn.Module) -> int:
    """Return how many weights the matrices of a decoder layer have, packed to 4 bits or not, without adapters."""
    from torch import nn

    return sum(
        module.in_features * module.out_features
        if isinstance(module, nn.Linear)
        else sum(weight.numel() for weight in module.parameters(recurse=False) if weight.ndim > 1)  # stacked experts
        for path, module in layer.named_modules()
        if "lora_" not in path
    )


def model_shape(config: PreTrainedConfig) -> ModelShape:
    """Return the sizes of the model that ``config`` describes. They are read off the model, built without memory.

    Raises:
        UserError: the model is not a dense decoder of equal layers with one embedding and one head.
    """
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    where = config_name(config)
    with torch.device("meta"):
        model: Any = empty_model(copy.deepcopy(config), where)
    text = text_config(model.config)
    layers = _equal_layers(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    hidden, num_heads = (_size(text, name) if layers else 0 for name in ("hidden_size", "num_attention_heads"))
    if not hidden or not num_heads or not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise UserError(
            "not a dense decoder of equal layers",
            where=where,
            mend="its memory cannot be estimated: set recompute and parallel.strategy in the recipe",
        )
    width = head_dim(text)
    query_width, key_width = num_heads * width, (_size(text, "num_key_value_heads") or num_heads) * width
    named_widths = {"q_norm": query_width, "q_layernorm": query_width, "k_norm": key_width, "k_layernorm": key_width}
    modules = [(path, module) for path, module in layers[0].named_modules() if path]
    linears: list[Linear] = []
    for path, module in modules:
        if isinstance(module, nn.Linear | Conv1D):
            plain = isinstance(module, nn.Linear)
            # A linear layer's weight is [outputs, inputs]; a Conv1D keeps it the other way round.
            inputs, outputs = module.weight.shape[:: -1 if plain else 1]
            linears.append(Linear(path.rpartition(".")[2], _input_of(path), inputs, outputs, adaptable=plain))
    return ModelShape(
        num_layers=len(layers),
        hidden=hidden,
        query_width=query_width,
        key_width=key_width,
        num_heads=num_heads,
        vocabulary=embedding.weight.shape[0],
        head=next(path.rpartition(".")[2] for path, module in model.named_modules() if module is head),
        tied=head.weight is embedding.weight,
        gated=any("gate" in linear.name for linear in linears),
        # Not every config names it, or means it: the widest of what leads back to the residual stream, but for heads.
        intermediate=max(
            (linear.inputs for linear in linears if linear.outputs == hidden and linear.inputs != query_width),
            default=query_width,
        ),
        norm_widths=tuple(
            named_widths.get(path.rpartition(".")[2], hidden)
            for path, module in modules
            if type(module).__name__.endswith("Norm")
        ),
        linears=tuple(linears),
        layer_parameters=_count(layers[0]),
        embedding_parameters=embedding.weight.numel(),
        other_parameters=model.num_parameters() - embedding.weight.numel() - sum(map(_count, layers)),
    )


def _size(config: PreTrainedConfig, name: str) -> int:
    """Return a field of a config, 0 where it has none."""
    return getattr(config, name, None) or 0


def _equal_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder's layers if they are of one size and none chooses among experts, else none."""
    from logotrain.model.recompute import decoder_layers

    if getattr(text_config(model.config), "is_heterogeneous", False):
        return []  # such a config raises where a size of its layers is asked for
    layers = decoder_layers(model.get_decoder())
    chooses = any(
        "expert" in path or weight.ndim > 2  # experts are stacked
        for layer in layers
        for path, weight in layer.named_parameters()
    )
    return [] if chooses or len({_count(layer) for layer in layers}) != 1 else list(layers)


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
        targets: the linear layers of one decoder layer that get an adapter.
        adapters: number of weights of all adapters.
        embedding: whether the token embedding is trained.
        total: number of weights that get gradients.
    """

    targets: tuple[Linear, ...]
    adapters: int
    embedding: bool
    total: int


def trained_weights(shape: ModelShape, recipe: TrainRecipe) -> Trained:
    """Return what ``recipe`` trains of a model of this shape.

    Raises:
        UserError: see :func:`logotrain.model.targets.adapter_targets`.
    """
    if recipe.tuning == "full":
        return Trained((), 0, True, shape.parameters)
    names = {linear.name for linear in shape.linears if linear.adaptable}
    chosen, embedding = adapter_targets(recipe.lora, names, shape.head, tied=shape.tied, where=recipe.model)
    targets = tuple(linear for linear in shape.linears if linear.name in chosen)
    adapters = shape.num_layers * recipe.lora.rank * sum(linear.inputs + linear.outputs for linear in targets)
    return Trained(targets, adapters, embedding, adapters + embedding * shape.embedding_parameters)
