"""A DPO step over a shared prompt by one implementation, beside two separate rows in the same environment.

``step.py --rival NAME=PYTHON`` runs this file by that Python. The projects pin versions of torch and transformers that
exclude one another, so each is measured against separate rows in an environment of its own. GPU.md says how to make
one. All get the same random Llama with LoRA on every linear layer, the same token ids, natural positions, a known
reference and full recomputation. The loss is written here, and is the same for all.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

BETA = 0.1
BLOCK = 128
"""dpo-prefix-sharing's rows are padded to a multiple of this."""

Forward = Callable[[], tuple[Tensor, Tensor]]
"""Computes the logits that score the preferred and the dis-preferred response, each [R, V]."""


class Case:
    """A random model and a pair under one prompt.

    Args:
        settings: the fields of :class:`shape.Shape`, and ``device``.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, LlamaConfig

        self.device = torch.device(settings["device"])
        self.on_gpu = self.device.type == "cuda"
        self.config = LlamaConfig(
            vocab_size=settings["vocabulary"],
            hidden_size=settings["hidden"],
            intermediate_size=settings["intermediate"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            num_key_value_heads=settings["kv_heads"],
            max_position_embeddings=2 * (settings["prompt"] + settings["response"]),
            initializer_range=1.28 * settings["hidden"] ** -0.5,
            tie_word_embeddings=False,
            use_cache=False,
        )
        names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        self.lora = LoraConfig(
            r=settings["rank"], lora_alpha=2 * settings["rank"], target_modules=names, task_type="CAUSAL_LM"
        )
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16 if self.on_gpu else torch.float32)  # every version calls its argument so
        with self.device:
            base = AutoModelForCausalLM.from_config(
                self.config, attn_implementation="flash_attention_2" if self.on_gpu else "sdpa"
            )
            self.model: Any = get_peft_model(base, self.lora)
        torch.set_default_dtype(torch.float32)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        recompute(self.model)
        generator = torch.Generator().manual_seed(1)
        lengths = (settings["prompt"], settings["response"], settings["response"])
        self.prompt, self.chosen, self.rejected = (
            torch.randint(3, settings["vocabulary"], (length,), generator=generator).to(self.device)
            for length in lengths
        )
        with torch.no_grad(), self.model.disable_adapter():
            self.reference = [sums.detach() for sums in self.sums(self.separate)]

    @property
    def rows(self) -> Tensor:
        """[2, P + R]."""
        return torch.stack([torch.cat([self.prompt, response]) for response in (self.chosen, self.rejected)])

    def separate(self) -> tuple[Tensor, Tensor]:
        """Two rows in one batch."""
        logits = self.model(input_ids=self.rows).logits
        chosen, rejected = logits[:, len(self.prompt) - 1 : -1]
        return chosen, rejected

    def sums(self, forward: Forward) -> list[Tensor]:
        """Log-probabilities of both responses."""
        with torch.autocast("cuda", dtype=torch.bfloat16) if self.on_gpu else nullcontext():
            scored = forward()
        return [
            logits.float().log_softmax(-1).gather(1, ids[:, None]).sum()
            for logits, ids in zip(scored, (self.chosen, self.rejected), strict=True)
        ]

    def step(self, forward: Forward, model: Any) -> float:
        """Forward and backward; the loss."""
        model.zero_grad(set_to_none=True)
        chosen, rejected = self.sums(forward)
        loss = -logsigmoid(BETA * (chosen - rejected - self.reference[0] + self.reference[1]))
        loss.backward()
        return float(loss.detach())


def recompute(model: Any) -> None:
    """Compute every layer again in the backward pass."""
    model.train()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})


def flash_preference(case: Case, _: ExitStack) -> tuple[Callable[[], float], Any]:
    """Its context manager around forward and backward."""
    from flash_pref import shared_prefix

    rows = case.rows

    def step() -> float:
        with shared_prefix(case.model.get_base_model(), input_ids=rows, attention_mask=torch.ones_like(rows)):
            return case.step(case.separate, case.model)

    return step, case.model


def dpo_prefix_sharing(case: Case, _: ExitStack) -> tuple[Callable[[], float], Any]:
    """Its model, its layout (the prompt's last token stands before the second response again) and its mask."""
    from modeling.dpo_flex_attn_masks import construct_dpo_mask
    from modeling.llama_patches import LlamaForCausalLMFlexAttn
    from peft import get_peft_model

    with case.device:
        model: Any = get_peft_model(LlamaForCausalLMFlexAttn(case.config).to(case.model.dtype), case.lora)
    model.load_state_dict(case.model.state_dict())
    recompute(model)
    prompt, response = len(case.prompt), len(case.chosen)
    row = torch.cat([case.prompt, case.chosen, case.prompt[-1:], case.rejected])
    filling = -len(row) % BLOCK
    ids = pad(row, (0, filling))[None]
    positions = torch.cat([torch.arange(prompt + response), torch.arange(prompt - 1, prompt + response)])
    positions = pad(positions, (0, filling))[None].to(case.device)
    first, second = prompt - 1, prompt + response
    starts = [torch.tensor([start], device=case.device) for start in (first, second)]
    mask = construct_dpo_mask(*starts, ids.shape[1], compile=True)

    def forward() -> tuple[Tensor, Tensor]:
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0]
        return logits[first : first + response], logits[second : second + response]

    return lambda: case.step(forward, model), model


def logotrain(case: Case, stack: ExitStack) -> tuple[Callable[[], float], Any]:
    """The trainer's own rows and log-probabilities, over the same weights."""
    from patterns import shared_prefix
    from shape import Shape, make_sample, twin

    lengths = {"prompt": len(case.prompt), "response": len(case.chosen), "rejected": 1}
    sample = make_sample(Shape(1, 1, 1, 1, 1, vocabulary=case.config.vocab_size, rank=1, **lengths), 1)
    chosen = sample.chosen.model_copy(update={"token_ids": case.chosen.tolist()})
    rejected = sample.rejected[0].model_copy(update={"token_ids": case.rejected.tolist()})
    changes = {"prompt_ids": case.prompt.tolist(), "chosen": chosen, "rejected": [rejected]}
    model = twin(case.model)
    logprobs = shared_prefix(model, sample.model_copy(update=changes), case.device, stack, recompute="full")

    def step() -> float:
        model.zero_grad(set_to_none=True)
        ours, theirs = (values.sum() for values in logprobs())
        loss = -logsigmoid(BETA * (ours - theirs - case.reference[0] + case.reference[1]))
        loss.backward()
        return float(loss.detach())

    return step, model


RIVALS = {
    "logotrain": logotrain,
    "flash-preference": flash_preference,
    "dpo-prefix-sharing": dpo_prefix_sharing,
}
PACKAGES = ("torch", "transformers", "peft", "trl", "flash-attn", "flash-pref")


def measure(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Compare losses and gradients, then time both ways in rounds."""
    torch.set_num_threads(settings["threads"])
    case = Case(settings)
    with ExitStack() as stack:
        step, model = RIVALS[name](case, stack)
        ways: dict[str, tuple[Callable[[], float], Any]] = {
            "separate": (lambda: case.step(case.separate, case.model), case.model),
            "shared": (step, model),
        }
        losses, gradients, peaks = {}, {}, {}
        for way, (run, trained) in ways.items():
            run()  # what is compiled and loaded on first use
            if case.on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            losses[way] = run()
            peaks[way] = torch.cuda.max_memory_allocated() - before if case.on_gpu else None
            gradients[way] = torch.cat([p.grad.flatten().float() for p in trained.parameters() if p.requires_grad])
        off = (gradients["shared"] - gradients["separate"]).norm() / gradients["separate"].norm()
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(settings["rounds"]):
            for way in list(ways) if number % 2 else list(ways)[::-1]:
                started = time.perf_counter()
                ways[way][0]()
                if case.on_gpu:
                    torch.cuda.synchronize()
                seconds[way].append(time.perf_counter() - started)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "losses": losses,
        "gradient_difference": float(off),
        "peak_bytes": peaks,
        "seconds": seconds,
        "ratio": medians["separate"] / medians["shared"],
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    _name, _settings, _result = sys.argv[1:]
    Path(_result).write_text(json.dumps(measure(_name, json.loads(_settings))) + "\n")
