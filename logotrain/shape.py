"""Sizes of a model and of what is trained of it: read off the model itself, without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from logodata.common.errors import UserError
from logodata.models import empty_model
from logotrain.recipe import TrainRecipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a decoder layer. ``group`` names its input: layers of one group read the same tensor."""

    name: str
    group: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Without bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder of equal layers.

    Attributes:
        num_layers: decoder layers.
        hidden: width of the residual stream, d.
        query_width: of all query heads together, q.
        key_width: of all key heads together, k.
        num_heads: query heads, h.
        vocabulary: tokens, V.
        tied: whether embedding and head are one weight.
        gated: whether the MLP multiplies two branches.
        intermediate: width of the MLP, f.
        norm_widths: features that each norm of a decoder layer reads a token.
        linears: of a decoder layer.
        layer_parameters: of a decoder layer.
        embedding_parameters: of the token embedding.
        other_parameters: last norm, and an untied head.
    """

    num_layers: int
    hidden: int
    query_width: int
    key_width: int
    num_heads: int
    vocabulary: int
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
        """Of the model."""
        return self.num_layers * self.layer_parameters + self.embedding_parameters + self.other_parameters

    @property
    def head_parameters(self) -> int:
        """Of the output head, tied or not."""
        return self.vocabulary * self.hidden


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layer_weights(layer: nn.Module) -> int:
    """Weights of the matrices that a decoder layer multiplies a token with, packed to 4 bits or not; no adapters."""
    from torch import nn

    return sum(
        module.in_features * module.out_features
        if isinstance(module, nn.Linear)
        else sum(weight.numel() for weight in module.parameters(recurse=False) if weight.ndim > 1)  # stacked experts
        for path, module in layer.named_modules()
        if "lora_" not in path
    )


def model_shape(config: PreTrainedConfig) -> ModelShape:
    """Sizes of the model that ``config`` describes, read off the model itself, built without memory.

    Raises:
        UserError: not a dense decoder of equal layers.
    """
    kind: Any = type(config)  # for mypy a class is not Hashable
    return _model_shape(config.to_json_string(use_diff=False), kind)


@lru_cache(maxsize=4)
def _model_shape(text: str, cls: Any) -> ModelShape:
    import torch
    from torch import nn

    config = cls(**json.loads(text))
    where = str(config.name_or_path or config.model_type)
    with torch.device("meta"):
        model: Any = empty_model(config, where)
    layers = list(model.get_decoder().layers)
    counts = {sum(weight.numel() for weight in layer.parameters()) for layer in layers}
    if len(counts) != 1 or getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        raise UserError(
            "not a dense decoder of equal layers",
            where=where,
            mend="its memory cannot be estimated: set recompute and parallel.strategy in the recipe",
        )
    width = head_dim(config)
    query_width, key_width = config.num_attention_heads * width, config.num_key_value_heads * width
    named_widths = {"q_norm": query_width, "k_norm": key_width}
    modules = [(path, module) for path, module in layers[0].named_modules() if path]
    linears = tuple(
        Linear(path.rpartition(".")[2], _input_of(path), module.in_features, module.out_features)
        for path, module in modules
        if isinstance(module, nn.Linear)
    )
    embedding = model.get_input_embeddings().weight
    return ModelShape(
        num_layers=len(layers),
        hidden=config.hidden_size,
        query_width=query_width,
        key_width=key_width,
        num_heads=config.num_attention_heads,
        vocabulary=embedding.shape[0],
        tied=model.get_output_embeddings().weight is embedding,
        gated=any("gate" in linear.name for linear in linears),
        intermediate=config.intermediate_size,
        norm_widths=tuple(
            named_widths.get(path.rpartition(".")[2], config.hidden_size)
            for path, module in modules
            if type(module).__name__.endswith("Norm")
        ),
        linears=linears,
        layer_parameters=counts.pop(),
        embedding_parameters=embedding.numel(),
        other_parameters=model.num_parameters() - embedding.numel() - sum(_count(layer) for layer in layers),
    )


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _input_of(path: str) -> str:
    """Name of the tensor that a linear layer reads: what enters its block, or for the last one of a block its own."""
    block, _, name = path.rpartition(".")
    return path if name in ("o_proj", "out_proj", "dense", "down_proj", "c_proj", "fc2") else block


@dataclass(frozen=True, slots=True)
class Trained:
    """What a recipe trains of a model, in weights.

    Attributes:
        targets: linear layers of a decoder layer with an adapter.
        adapters: weights of all adapters.
        embedding: whether the token embedding is trained beside them.
        total: weights that get gradients.
    """

    targets: tuple[Linear, ...]
    adapters: int
    embedding: bool
    total: int


def trained_weights(shape: ModelShape, recipe: TrainRecipe) -> Trained:
    """What ``recipe`` trains of a model of this shape."""
    if recipe.tuning == "full":
        return Trained((), 0, True, shape.parameters)
    names = recipe.lora.targets(linear.name for linear in shape.linears)
    targets = tuple(linear for linear in shape.linears if linear.name in names)
    adapters = shape.num_layers * recipe.lora.rank * sum(linear.inputs + linear.outputs for linear in targets)
    wanted = recipe.lora.train_embeddings
    embedding = not shape.tied if wanted == "auto" else wanted
    return Trained(targets, adapters, embedding, adapters + embedding * shape.embedding_parameters)
