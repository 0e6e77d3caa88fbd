"""What is computed: a model's shape, its operations, random weights and one sample of random tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from logodata.contract import ContextChunk, PreferenceSample, Response
from logotrain.model.adapters import add_adapters
from logotrain.recipe.settings import LoraSettings, Recompute

UNKNOWN, BOS, EOS = 0, 1, 2
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A model and a sample, in the names of the command line's options."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    rank: int
    prompt: int
    response: int
    rejected: int

    @property
    def weights_per_token(self) -> int:
        """Weights of the layers' linear maps: each token is multiplied with all of them."""
        head_size = self.hidden // self.heads
        attention = 2 * self.hidden * head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def adapter_weights(self) -> int:
        kv = self.hidden // self.heads * self.kv_heads
        ends = 2 * 2 * self.hidden + 2 * (self.hidden + kv) + 3 * (self.hidden + self.intermediate)
        return self.layers * self.rank * ends

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def head_share(self) -> float:
        """Of all weights that a token is multiplied with, where its logits are computed."""
        return self.head_weights / (self.head_weights + self.weights_per_token)


CPU_SHAPE = Shape(512, 1792, 8, 8, 2, 4000, rank=4, prompt=1024, response=32, rejected=2)
"""Llama-3-8B's proportions: head share, grouped heads, response to prompt, adapter rank to hidden size; and prompt to
hidden size, so that attention has the share of the work that it has there at 8192 tokens."""

CUDA_SHAPE = Shape(4096, 14336, 32, 32, 8, 128256, rank=32, prompt=8192, response=256, rejected=2)
"""Llama-3-8B."""


@dataclass(frozen=True)
class Work:
    """What a pattern has to multiply."""

    tokens: int  # through the layers
    attended: int  # pairs of tokens, per head and layer
    logits: int  # positions whose logits are computed
    recompute: Recompute  # of the layers, a second time in the backward pass
    reference: bool = False  # all of it once more, forward only

    @classmethod
    def separate_rows(
        cls, shape: Shape, rows: int, *, all_logits: bool, recompute: Recompute, reference: bool = False
    ) -> Work:
        length = shape.prompt + shape.response
        logits = length if all_logits else shape.response
        return cls(rows * length, rows * length * (length + 1) // 2, rows * logits, recompute, reference)

    @classmethod
    def shared_prefix(cls, shape: Shape, rows: int, *, recompute: Recompute) -> Work:
        prompt, response = shape.prompt, shape.response
        attended = prompt * (prompt + 1) // 2 + rows * (response * prompt + response * (response + 1) // 2)
        return cls(prompt + rows * response, attended, rows * response, recompute)

    def flops(self, shape: Shape) -> int:
        """Floating-point operations, two a multiply-add, of matrix products alone.

        Frozen weights have one product forward and one backward, adapters one and two, attention two and five (its
        scores are never stored). Masked scores do not count. Without attention torch's FlopCounterMode counts the same
        to 0.1 %; a little less without recomputation, where the first layer needs no gradient of its input.
        """
        passes, again = (1 if self.recompute == "none" else 2), int(self.reference)
        frozen = self.tokens * shape.weights_per_token * (passes + 1 + again)
        adapters = self.tokens * shape.adapter_weights * (passes + 2 + again)
        head = self.logits * shape.head_weights * (2 + again)
        return 2 * (frozen + adapters + head) + self.attention_flops(shape)

    def attention_flops(self, shape: Shape) -> int:
        """Those of scores and weighted sums; ``selective`` recomputation keeps what they gave."""
        forward = (2 if self.recompute == "full" else 1) + int(self.reference)
        return 2 * self.attended * shape.hidden * shape.layers * (2 * forward + 5)


def model_config(shape: Shape, **changes: Any) -> LlamaConfig:
    """The config of a Llama of this shape, with a window that the sample fills by half."""
    values: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 2 * (shape.prompt + shape.response),
        "initializer_range": 1.28 * shape.hidden**-0.5,  # logits of size 1: the losses tell the variants apart
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    return LlamaConfig(**{**values, **changes})


def random_llama(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, drawn where they stay: 8B take seconds on a GPU and minutes on a CPU."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> PeftModel:
    """A Llama with random weights and adapters that are not zero."""
    base = random_llama(model_config(shape), device, dtype)
    settings = LoraSettings(rank=shape.rank, target_modules=LORA_TARGETS, train_embeddings=False)
    model = add_adapters(base, settings, name="random Llama")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def twin(model: PeftModel) -> PeftModel:
    """Another tree of modules over the same weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def make_sample(shape: Shape, num_rejected: int) -> PreferenceSample:
    """The same random ids each time; a sample of fewer dis-preferred responses has the first ones."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(3, shape.vocabulary, (count,), generator=generator).tolist()

    prompt = [BOS, *draw(shape.prompt - 1)]
    responses = [
        Response(
            strategy="random", text="", token_ids=[*draw(shape.response - 1), EOS], ended=True, word_share=1, token_f1=1
        )
        for _ in range(1 + num_rejected)
    ]
    whole = ContextChunk(
        doc_id="", index=0, start=0, end=1, token_start=0, token_end=len(prompt), score=0, critical=True, text=""
    )
    return PreferenceSample(
        id="sample",
        doc_id="",
        question_id="",
        kind="other",
        question="",
        answers=[""],
        prompt_ids=prompt,
        chunks=[whole],
        chosen=responses[0],
        rejected=responses[1:],
        answer_in_critical=True,
    )
