"""The memory of a training step before it runs, by formula.

This is what autograd keeps of one decoder layer between the forward and the backward pass, in bytes; each kind of layer
is counted by itself. N is the number of tokens of the row, d the hidden size, f the intermediate size, q, k and v are
the widths of all query, key and value heads, h is the number of query heads, b the number of bytes of an activation.

- each norm: its input in float32, 4 N d, and 4 N of inverse roots (transformers computes norms in float32); in full
  tuning the normalised input too, b N d, for the norm's weight.
- attention: queries, keys, values b N (q + k + v), output b N v for all query heads, log-sum-exp 4 N h, and what the
  back end adds (``_attention_extra``). Flash kernels widen values to the width of keys.
- gated MLP: gate, activation and up, 3 b N f. An MLP without gate: b N f.
- inputs of linear layers, only where a weight gradient needs them: b N d that q, k and v share, b N q of o, b N d that
  gate and up share, b N f of down, if a layer of the group is trained or has an adapter; and b N r between A and B. An
  adapter computes in the base's type; PEFT's own cast to float32 would keep 4 N d for each of q, k, v, o, gate and up,
  and 4 N f for down: 27 GiB more for Llama-3-8B at 8K with adapters everywhere.
- experts: each token goes to k of them, which makes S = k N pairs. Gate, activation and up of experts of width f_e,
  3 b S f_e (6 b S f_e if the gate caps its inputs, b S f_e without gate); what experts put out, b S d, which the router
  weighs; 24 S of indices; and in full tuning their inputs, b S d and b S f_e. Experts that every token goes to count as
  an MLP. The weights of all experts are held.
- linear attention, in place of attention: 32 bytes a token for each feature that its linear layers put out. This is
  rough: transformers' code for Qwen3.5 keeps 27 to 34, that for MiniMax half as much, optional kernels less.
- rotary embedding, residual sums, scaling: nothing.

Without sharing, N counts the prompt once for each response.

``selective`` recompute keeps of a layer its input b N d and the attention's output and log-sum-exp, ``full`` the input
only; both have the rest of one layer at a time in the backward pass. ``tiled`` has of that layer's MLP, or experts,
what d tokens need, and their input b N d. ``offloaded`` has one or two inputs of layers on the device, and the others
in host memory. torch.compile keeps less than this: its recomputation is not modelled, and the estimate is an upper
bound there.

Where C processes compute a row together, N is the slice of one of them, but for the attention: it has the whole row,
for h / C heads. The head scores at worst all of a row's scored positions on one process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from logotrain.plan.shape import LayerShape, Linear, adapter_weights, trained_weights
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import TILED

CONTEXT_BYTES = 1 << 30
"""The CUDA context and the buffers of cuBLAS and NCCL. This is an assumption."""

WASTE = 0.03
"""The share of the peak that the caching allocator loses to fragments. This is an assumption."""

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The bytes of a 4-bit weight: its number, and its part of the block's quantised scale (QLoRA, arXiv 2305.14314)."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory of one process at its fullest moment, in bytes: the parts by name, and context and fragments; and what
    waits in host memory."""

    moment: str
    parts: dict[str, int]
    reserve: int
    host: int = 0

    @property
    def allocated(self) -> int:
        """The bytes that ``torch.cuda.max_memory_allocated`` will report."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """The bytes that the device must have."""
        return self.allocated + self.reserve


def estimate_memory(step: StepPlan) -> MemoryEstimate:
    """Estimate the memory of a process that computes the step."""
    formulas = _Formulas(step)
    moments = {
        "gathering weights": formulas.at_gathering(),
        "head": formulas.at_head(),
        "last norm": formulas.at_last_norm(),
        "backward of a layer": formulas.in_layer(),
        "backward of an attention": formulas.in_attention(),
        "end of backward": formulas.at_end(),
        "optimizer step": formulas.moment(0, formulas.gradients, 0, 0),  # the fused update works in place
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = {name: int(size) for name, size in {**formulas.states(), **moments[moment]}.items() if size}
    return MemoryEstimate(moment, parts, CONTEXT_BYTES + int(WASTE * sum(parts.values())), int(formulas.in_host))


_STATE_BYTES = {"adamw": 8.0, "paged_adamw": 8.0, "adamw_8bit": 2.03, "paged_adamw_8bit": 2.03}
"""Bytes of optimizer state of a trained weight. In 8 bits, each 256 values of both moments share a float32 scale."""


class _Formulas:
    """The formulas. Sizes are in bytes; the module's docstring names the letters."""

    def __init__(self, step: StepPlan) -> None:
        self.step, self.shape, self.recipe = step, step.shape, step.recipe
        self.trained = trained_weights(step.shape, step.recipe)
        self.full, self.sharded = step.recipe.tuning == "full", step.strategy == "shard"
        self.b = step.activation_bytes
        self.n = step.own_tokens
        self.whole = self.n * step.context_size
        # What runs in tiles keeps the input of all, and has the rest for as many tokens as a state has features.
        self.tile = min(self.n, step.shape.hidden) if step.recompute in TILED else self.n
        self.nd = self.n * step.shape.hidden
        self.responses = sum(step.computed.response_lengths)
        self.scored = min(step.scored_positions, self.n)

    # What is held all the time.

    def states(self) -> dict[str, float]:
        shape, trained = self.shape, self.trained
        share = 1 / self.step.shard_size if self.sharded else 1
        held = trained.total * share + self.full * self._uneven
        frozen = 4.0 * shape.unread_parameters
        if not self.full:
            frozen = self.b * shape.parameters
            if self.recipe.tuning == "qlora":
                quantised = sum(layer.count * linear.weights for layer in shape.layers for linear in layer.linears)
                frozen -= quantised * (self.b - _NF4_BYTES)
        return {
            "frozen weights": frozen * share + self.b * (not self.full) * self._uneven,
            "trained weights": 4 * held,
            "optimizer state": _STATE_BYTES[self.recipe.optimizer.name] * held,
        }

    @cached_property
    def _uneven(self) -> float:
        """Number of weights of experts that one process holds beyond its share."""
        return sum(layer.count * self._filling(layer) for layer in self.shape.layers) / self.step.shard_size

    def _filling(self, layer: LayerShape) -> float:
        """Number of weights that FSDP adds to a layer's experts to split them evenly: it splits by their number."""
        size = self.step.shard_size
        return self.sharded * sum(
            experts.weights * (math.ceil(experts.count / size) * size / experts.count - 1) for experts in layer.experts
        )

    @cached_property
    def _root(self) -> float:
        """Weights outside the layers, as they compute. FSDP keeps them gathered from forward to backward."""
        shape, trained = self.shape, self.trained
        own = 4 * shape.embedding_parameters if trained.embedding and not self.full else 0
        return self.sharded * (self.b * (shape.embedding_parameters + shape.other_parameters) + own)

    @cached_property
    def _gathered(self) -> float:
        """The root's weights, those of a layer that computes, and of the next one on its way."""
        if not self.sharded:
            return 0
        kinds = [(self._layer_weights(layer), layer.count) for layer in self.shape.layers]
        sizes = sorted(size for size, count in kinds for _ in range(count))
        at_once = sizes[-2:] if self.recipe.parallel.reshard_after_forward else sizes
        return self._root + sum(at_once)

    def _layer_weights(self, layer: LayerShape) -> float:
        """Bytes of one decoder layer's weights, as it computes."""
        weights = layer.parameters + self._filling(layer)
        rank = self.recipe.lora.rank
        stacks = sum(stack.adapter_weights(rank) for stack in layer.adapted(self.trained.parameters))
        return self.b * weights + 4 * (adapter_weights(self._targets(layer), self.recipe.lora) + stacks)

    def _targets(self, layer: LayerShape) -> list[Linear]:
        return layer.targets(self.trained.targets)

    @property
    def gradients(self) -> float:
        """All gradients of a process: whole, but for full tuning under sharding."""
        if self.sharded and self.full:
            return 4 * (self.trained.total / self.step.shard_size + self._uneven)
        return 4 * self.trained.total

    @property
    def _earlier(self) -> float:
        """Gradients of the step's rows before this one."""
        return self.gradients if self.step.num_rows > 1 else 0

    # What is kept from forward to backward.

    def layer(self, layer: LayerShape) -> float:
        """Kept of one layer without recomputation; with tiles, while its attention runs backward."""
        n, b = self.n, self.b
        kept: float = sum((4 + b * self.full) * n * width for width in layer.norm_widths)
        kept += 4 * n * len(layer.norm_widths)
        if layer.attends:
            kept += self._attention_states(layer) + self._attention_outputs(layer) + self._attention_extra(layer)
        else:
            kept += 32 * n * sum(linear.outputs for linear in layer.linears if linear.mixes)
        return kept + self._linears(layer, n, tiled=False) + self._mlps(layer, n, tiled=False)

    def _tiled(self, layer: LayerShape) -> bool:
        return self.tile < self.n and layer.has_tiles

    def _in_tiles(self, layer: LayerShape) -> float:
        """Kept of what runs in tiles: the input, and the rest of one tile."""
        if not self._tiled(layer):
            return self._linears(layer, self.n, tiled=True) + self._mlps(layer, self.n, tiled=True)
        inside = self._linears(layer, self.tile, tiled=True) + self._mlps(layer, self.tile, tiled=True)
        return self.b * self.nd + inside

    def _linears(self, layer: LayerShape, tokens: int, *, tiled: bool) -> float:
        """Inputs of linear layers whose weights are trained, and what is between A and B of adapters."""
        targets = [it for it in (layer.linears if self.full else self._targets(layer)) if it.in_tiles == tiled]
        kept = sum(self.b * tokens * width for _, width in {(linear.group, linear.inputs) for linear in targets})
        return kept + (not self.full) * self.b * tokens * self.recipe.lora.rank * len(targets)

    def _mlps(self, layer: LayerShape, tokens: int, *, tiled: bool) -> float:
        """Kept of the MLP and of experts."""
        b, kept = self.b, 0.0
        if layer.mlp_in_tiles == tiled:
            kept += b * tokens * layer.intermediate * (3 if layer.gated else 1)
        adapted = layer.adapted(self.trained.parameters)
        for experts in layer.experts:
            if experts.in_tiles == tiled:
                pairs = experts.chosen * tokens
                kept += pairs * (b * experts.kept * experts.intermediate + b * self.shape.hidden + 24)
                kept += (self.full or bool(adapted)) * b * pairs * (self.shape.hidden + experts.intermediate)
        if any(experts.in_tiles for experts in layer.experts) == tiled and not self.full:
            # PEFT adds the product of an adapter to the whole stack.
            kept += b * sum(stack.weights for stack in adapted)
        return kept

    def _attention_states(self, layer: LayerShape) -> float:
        """Queries, keys and values, as the attention takes them."""
        queries, keys = self.step.head_shares(layer)
        return self.b * self.whole * (queries * layer.query_width + keys * (layer.key_width + self._value_width(layer)))

    def _value_width(self, layer: LayerShape) -> int:
        """Flash kernels take keys and values of one width."""
        return layer.key_width if self.step.backend == "flash" else layer.value_width

    def _attention_outputs(self, layer: LayerShape) -> float:
        """Output and log-sum-exp of every attention call of a layer."""
        if not layer.attends:
            return 0
        width = layer.query_width if self.step.backend == "flash" else layer.output_width
        per_token = self.step.head_shares(layer)[0] * (self.b * width + 4 * self.shape.num_heads)
        return per_token * (self.whole + (self.responses if self.step.backend == "flash" else 0))

    def _attention_extra(self, layer: LayerShape) -> float:
        """What a back end keeps of a layer beside queries, keys, values, outputs."""
        b = self.b
        if self.step.backend == "eager":
            # Scores, and probabilities in float32 and in the type of activations.
            return (2 * b + 4) * self.shape.num_heads * sum(row.total_length**2 for row in self.step.computed.samples)
        if not self.step.shared:
            return 0
        if self.step.backend == "flash":
            # The second call takes the responses' queries, and each response's keys and values after its prompt's.
            keys = self.responses
            keys += sum(sample.prompt_length * len(sample.response_lengths) for sample in self.step.computed.samples)
            share, key_share = self.step.head_shares(layer)
            return b * (self.responses * share * layer.query_width + keys * key_share * 2 * layer.key_width)
        return self._masks if self.step.backend == "sdpa" else 0

    @property
    def _masks(self) -> float:
        """The mask of each sample's responses, which sdpa keeps as floats."""
        return sum(self.b * sum(sample.response_lengths) * sample.total_length for sample in self.step.computed.samples)

    def kept_layer(self, layer: LayerShape) -> float:
        """Kept of one layer until its backward pass."""
        if self.step.recompute == "none":
            return self.layer(layer) + self._in_tiles(layer)
        if self.step.recompute == "offloaded":
            return 0
        return self.b * self.nd + (self._attention_outputs(layer) if self.step.recompute == "selective" else 0)

    @cached_property
    def _last_norm(self) -> float:
        return (4 + self.b * self.full) * self.nd

    @cached_property
    def kept(self) -> float:
        """Kept when the forward pass ends."""
        kept = sum(layer.count * self.kept_layer(layer) for layer in self.shape.layers)
        kept += self._last_norm + self.b * self.scored * self.shape.hidden
        if self.step.recompute == "offloaded":
            # The next layer's input on its way, and this layer's, where the first norm keeps it itself.
            kept += self.b * self.nd * (1 + (self.b == 4))
        if self.step.recompute == "none" and not self.trained.embedding:
            kept -= 4 * self.nd  # the first norm's input needs no gradient
        if self.step.backend == "sdpa" and self.step.shared:
            kept += self._masks / self.b  # all layers' mask as booleans
        width = max(layer.query_width for layer in self.shape.layers)
        return kept + 2 * self.b * self.n * width / self.shape.num_heads  # cos and sin

    @property
    def in_host(self) -> float:
        """What waits in host memory."""
        return self.b * self.nd * self.shape.num_layers * (self.step.recompute == "offloaded")

    # What comes on top at each moment.

    def moment(self, gathered: float, gradients: float, kept: float, working: float) -> dict[str, float]:
        return {
            "gathered weights": gathered,
            "gradients": gradients,
            "kept activations": kept,
            "working memory": working,
        }

    def at_gathering(self) -> dict[str, float]:
        """The root's weights twice: as they arrive, and each by itself."""
        largest = max(map(self._layer_weights, self.shape.layers))
        return self.moment(2 * self._root + self.sharded * largest, self._earlier, 0, 0)

    @cached_property
    def _head_weight(self) -> float:
        """Gradient of the head's weight, 0 if it is frozen."""
        trained = self.full or (self.shape.tied and self.trained.embedding)
        return (self.b if self.full else 4) * self.shape.head_parameters * trained

    def at_head(self) -> dict[str, float]:
        """A chunk of logits three times in float32: log-softmax, its gradient, and the gradient before it; or once,
        beside the gradient that it gives a trained head. Of several chunks the sums with and without it are there
        too."""
        from logotrain.loss.logprobs import CHUNK_ELEMENTS

        logits = self.scored * self.shape.vocabulary
        chunk, weight = min(CHUNK_ELEMENTS, logits), self._head_weight
        several = logits > CHUNK_ELEMENTS
        working = max(12 * chunk + several * weight, self.b * chunk + (1 + 2 * several) * weight)
        states = self.b * self.scored * self.shape.hidden
        return self.moment(self._gathered, self._earlier, self.kept, working + states)

    @property
    def _head_gradient(self) -> float:
        """The head's gradient after its backward pass, where it is not among those counted already."""
        counted = self.step.num_rows > 1 and not self.sharded and not self.shape.tied
        return 0 if counted else self._head_weight

    def at_last_norm(self) -> dict[str, float]:
        """A norm's backward pass holds five float32 copies of its input."""
        return self.moment(self._gathered, self._earlier, self.kept, 20 * self.nd + self._head_gradient)

    def in_layer(self) -> dict[str, float]:
        """The layer whose MLP runs backward, with the others kept."""
        working = max(map(self._working, self.shape.layers)) + self._head_gradient
        return self.moment(self._gathered, self._earlier, self.kept - self._last_norm, working)

    def in_attention(self) -> dict[str, float]:
        """The layer whose attention runs backward, where it has not kept its MLP until then."""
        working = max(map(self._working_of_attention, self.shape.layers)) + self._head_gradient
        return self.moment(self._gathered, self._earlier, self.kept - self._last_norm, working)

    def _recomputed(self, layer: LayerShape) -> float:
        """Kept of the attention and the norms of the layer that runs backward, and not counted among the others."""
        if self.step.recompute == "none":
            return 0
        kept = self.layer(layer)
        kept -= self._attention_outputs(layer) if self.step.recompute == "selective" else 0
        return kept - self.nd * 4 * (self.b == 4)  # without a cast the first norm keeps the layer's input itself

    def _working(self, layer: LayerShape) -> float:
        """What the backward pass of a layer's MLP takes beside what is kept."""
        b, nd = self.b, self.nd
        again = self.step.recompute != "none"
        working = b * nd + self._recomputed(layer)
        if self._tiled(layer):
            # The gradient of the tiles' inputs, which are put together at the end; then the norm before the MLP.
            beside = b * nd + max(b * nd + self._of_mlp(layer, self.tile), 2 * b * nd)
            inside = self._in_tiles(layer) + beside
            working += max(inside, b * nd + (20 if b == 2 else 12) * nd)  # in float32 two copies are no casts
        else:
            working += self._of_mlp(layer, self.n) + again * self._in_tiles(layer)
        if self.full or self.recipe.tuning == "qlora":
            # The gradient of a weight, or a 4-bit weight unpacked.
            stacked = [experts.stacked for experts in layer.experts if self.full]
            working += b * max([linear.weights for linear in layer.linears] + stacked)
        if self.full and self.sharded:
            # Gradients of the layer before on their way to their owners; that layer's activations are gone.
            working += max(0, 4 * layer.parameters - self.kept_layer(layer))
        return working

    def _of_mlp(self, layer: LayerShape, tokens: int) -> float:
        """What the backward pass of an MLP or of experts takes beside what they keep and the gradient that it gets."""
        b, wide = self.b, tokens * layer.intermediate
        working: float = (3 if layer.gated else 1) * b * wide
        if self.full or any(linear.name == "down_proj" for linear in self._targets(layer)):
            working -= b * wide  # its input is gone when gate and up run backward
        for experts in layer.experts:
            # First what the experts put out, times the router's float32 weights; then their own gradients.
            out, inside = self.shape.hidden, experts.kept * experts.intermediate
            working += experts.chosen * tokens * max(8 * out, b * (inside - out))
        return working

    def _working_of_attention(self, layer: LayerShape) -> float:
        """What the backward pass of a layer's attention takes beside what is kept: the gradients of all it keeps but
        the norm after it."""
        if not layer.attends:
            return 0
        queries, _ = self.step.head_shares(layer)
        working = self.b * self.nd + self._recomputed(layer) - 4 * self.nd
        working += self._attention_states(layer) + self.b * self.whole * queries * layer.output_width
        if self.step.backend == "flash":
            working += self._attention_extra(layer)
        return working

    def at_end(self) -> dict[str, float]:
        """The embedding's gradient, dense, beside the one of earlier rows; under sharding whole, and again in float32
        on its way to its owners, with the root's weights freed."""
        shape, working, gathered = self.shape, 0.0, self._root
        if self.full and self.sharded:
            root = shape.embedding_parameters + shape.other_parameters
            working, gathered = (self.b + 4) * (root - shape.unread_parameters), 0
        elif self.trained.embedding:
            working = 4 * self.nd + 4 * shape.embedding_parameters * (self.step.num_rows > 1)
        return self.moment(gathered, self.gradients, 0, working)


def gigabytes(size: float) -> str:
    """Format bytes for people: ``12.3 GiB``, or ``45 MiB`` below a tenth of a GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"
