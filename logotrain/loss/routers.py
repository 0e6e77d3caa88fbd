"""What the routers of a mixture of experts do: the model's own load-balancing loss, and how evenly experts are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from logodata.models.logprobs import decoder_of, router_loss
from logotrain.attention.context_parallel import ALONE, ContextGroup
from logotrain.rows.layout import RowLayout


def prepare_routers(model: PreTrainedModel) -> None:
    """Make a model tell :class:`RouterRecord` what its routers do. This comes before its layers are compiled, because
    compiled code ignores hooks that are added later. Dense models are not changed."""
    decoder = decoder_of(model)
    for path, module in decoder.named_modules():
        if path.endswith("experts") and not isinstance(module, nn.ModuleList):
            module.register_forward_pre_hook(_tell_chosen)
    maybe_install_capturing_hooks(decoder)


_recorders: list[list[Tensor]] = []


# The decision whether to record must not be compiled in: recomputation runs the same code without a recorder.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _tell_chosen(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
    for found in _recorders:
        found += [value for value in inputs[1:] if isinstance(value, Tensor) and value.dtype == torch.int64][:1]


class RouterRecord:
    """Collects what the routers of a model do with a row, for :meth:`logotrain.loss.logprobs.LogprobModel.forward`.

    A token of a prompt counts once, whether or not the responses share its computation, and padding does not count.

    Args:
        loss: whether the router loss is computed.

    Attributes:
        losses: for each sample, the loss that the model itself defines, over the sample's tokens: a scalar with
            gradients; empty if it is not asked for or the model gives none.
        shares: for each sample, the largest share of the choices of a layer's router that one expert gets, in (0, 1];
            empty if the model does not hand the choices to its experts.
    """

    def __init__(self, *, loss: bool) -> None:
        self.losses: list[Tensor] = []
        self.shares: list[float] = []
        self._keywords = {"output_router_logits": True} if loss else {}
        self._logits: list[list[Tensor]] = []
        self._chosen: list[list[Tensor]] = []

    def run(self, decoder: nn.Module, start: int, **inputs: Any) -> Any:
        """Return the output of a decoder, and keep what it does with its tokens from ``start`` on."""
        chosen: list[Tensor] = []
        _recorders.append(chosen)
        try:
            output = decoder(**inputs, **self._keywords)
        finally:
            _recorders.remove(chosen)
        logits = (output.router_logits or ()) if self._keywords else ()
        self._logits.append([layer.flatten(0, -2)[start:] for layer in logits])
        self._chosen.append([layer.flatten(0, -2)[start:] for layer in chosen])
        return output

    def finish(self, model: PreTrainedModel, states: Tensor, layout: RowLayout, group: ContextGroup = ALONE) -> None:
        """Compute the losses and shares of a row's samples.

        Args:
            model: without PEFT around it.
            states: [T, d], last hidden states of the row.
            layout: of the row.
            group: the processes that the row was split over.
        """
        own = group.own(layout.total_length)
        logits, chosen = (
            [group.gather(torch.cat(passes), own, layout.total_length) for passes in zip(*layers, strict=True)]
            for layers in (self._logits, self._chosen)
        )
        for start, sample in zip(layout.sample_starts, layout.samples, strict=True):
            tokens = slice(start, start + sample.total_length)
            if chosen:
                self.shares.append(max(_largest_share(layer[tokens]) for layer in chosen))
            loss = router_loss(model, states[:1], tuple(layer[tokens] for layer in logits)) if logits else None
            if loss is not None:
                self.losses.append(loss)


def _largest_share(chosen: Tensor) -> float:
    return chosen.flatten().bincount().max().item() / chosen.numel()
