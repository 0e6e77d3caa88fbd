"""Forward and backward of one training sample, our way and the ways it replaces, interleaved in one process.

``python benchmarks/step.py --device cpu --json FILE``; every figure of a shape is an option, ``--help`` lists them.

What makes the comparison fair:

- All variants hold the same weight tensors: a randomly filled Llama with LoRA on every linear layer. Trees of modules
  over them are separate, so that no setting of one (attention, recomputation, hooks) reaches another.
- All see the same token ids. Responses have one length, so the padded patterns compute no padding: their best case.
- Before any clock runs, losses and the gradients of all adapters are compared. The exit code is 1 if they differ.
- Each round runs every variant once and the next round starts with another one; figures are medians over rounds.
- TRL is its own CPOTrainer: its tokenisation, its collator, its concatenated forward, its loss. It has no LOGO loss, so
  it runs CPO, and our code runs CPO on the same pairs to be compared with it. The loss itself costs nothing.

A step is forward and backward of one sample. The optimizer is left out: it is the same for all, and adapters are small.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from logodata.common.errors import UserError, run_command
from logodata.contract import ContextChunk, PreferenceSample, Response
from logotrain.collate import SharedPrefixRow, collate
from logotrain.logprobs import response_logprobs
from logotrain.model import add_adapters
from logotrain.objective import sample_loss
from logotrain.recipe import CpoSettings, LogoSettings, LoraSettings, PositionSettings
from logotrain.shared_prefix import use_shared_prefix

LOGO, CPO = LogoSettings(), CpoSettings()
BOS, EOS = 1, 2
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest relative difference of gradients, in norm, that counts as equal."""


# The shape -----------------------------------------------------------------------------------------------------------


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


CPU_SHAPE = Shape(512, 1792, 8, 8, 2, 4000, rank=4, prompt=2048, response=64, rejected=2)
"""Llama-3-8B's proportions: head share, grouped heads, response to prompt, adapter rank to hidden size."""

CUDA_SHAPE = Shape(4096, 14336, 32, 32, 8, 128256, rank=32, prompt=8192, response=256, rejected=2)
"""Llama-3-8B."""


@dataclass(frozen=True)
class Work:
    """What a pattern has to multiply."""

    tokens: int  # through the layers
    attended: int  # pairs of tokens, per head and layer
    logits: int  # positions whose logits are computed
    recompute: bool  # the layers a second time in the backward pass

    @classmethod
    def separate_rows(cls, shape: Shape, rows: int, *, all_logits: bool, recompute: bool) -> Work:
        length = shape.prompt + shape.response
        logits = length if all_logits else shape.response
        return cls(rows * length, rows * length * (length + 1) // 2, rows * logits, recompute)

    @classmethod
    def shared_prefix(cls, shape: Shape, rows: int, *, recompute: bool) -> Work:
        prompt, response = shape.prompt, shape.response
        attended = prompt * (prompt + 1) // 2 + rows * (response * prompt + response * (response + 1) // 2)
        return cls(prompt + rows * response, attended, rows * response, recompute)

    def flops(self, shape: Shape) -> int:
        """Floating-point operations, two a multiply-add, of matrix products alone.

        Frozen weights have one product forward and one backward, adapters one and two, attention two and five (its
        scores are never stored). Masked scores do not count, nor do our head's logits of the response tokens, which are
        computed twice.
        """
        passes = 2 if self.recompute else 1
        frozen = self.tokens * shape.weights_per_token * (passes + 1)
        adapters = self.tokens * shape.adapter_weights * (passes + 2)
        attention = self.attended * shape.hidden * shape.layers * (2 * passes + 5)
        head = self.logits * shape.head_weights * 2
        return 2 * (frozen + adapters + attention + head)


# Model and data ------------------------------------------------------------------------------------------------------


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> PeftModel:
    """A Llama with random weights and adapters that are not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2 * (shape.prompt + shape.response),
        initializer_range=1.28 * shape.hidden**-0.5,  # logits of size 1: the losses tell the variants apart
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with device:
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
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
        Response(strategy="random", text="", token_ids=[*draw(shape.response - 1), EOS], ended=True)
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


# The patterns --------------------------------------------------------------------------------------------------------

Logprobs = Callable[[], list[Tensor]]
"""Token log-probabilities of each response, [R_j], with a graph behind them."""


def reference_pattern(model: PeftModel, sample: PreferenceSample, device: torch.device) -> Logprobs:
    """M+1 full rows in one batch, the logits of all tokens, log-softmax of all of them in float32."""
    responses = [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected)]
    ids = torch.tensor([sample.prompt_ids + response for response in responses], device=device)
    first = len(sample.prompt_ids) - 1

    def logprobs() -> list[Tensor]:
        with autocast(device):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        scored = logits[:, :-1].float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])
        return list(scored[:, first:, 0])

    return logprobs


def separate_rows(model: PeftModel, sample: PreferenceSample, device: torch.device) -> Logprobs:
    """M+1 full rows, one after the other, logits of response tokens only."""
    responses = [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected)]
    rows = [torch.tensor([sample.prompt_ids + response], device=device) for response in responses]
    first = len(sample.prompt_ids)

    def logprobs() -> list[Tensor]:
        found = []
        for ids in rows:
            targets = ids[0, first:]
            with autocast(device):
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(targets) + 1).logits[0, :-1]
            found.append(logits.float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0])
        return found

    return logprobs


def shared_prefix(model: PeftModel, sample: PreferenceSample, device: torch.device) -> Logprobs:
    """What ``logotrain`` does. ``model`` is inside ``use_shared_prefix``."""
    length = model.config.max_position_embeddings
    row = collate(sample, settings=PositionSettings(mode="natural"), target_length=length, seed=0, epoch=0).to(device)
    return lambda: trainer_logprobs(model, row)


def trainer_logprobs(model: PeftModel, row: SharedPrefixRow) -> list[Tensor]:
    """The trainer's own call."""
    return response_logprobs(model, row)


def recompute_all(model: PeftModel) -> PeftModel:
    """Recompute every layer in the backward pass, as the trainer does."""
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model


def autocast(device: torch.device) -> Any:
    """On a GPU transformers' Trainer and TRL run a bfloat16 model under autocast; on a CPU all is float32."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


# TRL -----------------------------------------------------------------------------------------------------------------


def make_trl_loss(
    model: PeftModel, sample: PreferenceSample, device: torch.device, folder: str, **changes: Any
) -> Callable[[], Tensor]:
    """``compute_loss`` of TRL's CPOTrainer on the sample's pairs, M of them, as one batch.

    Args:
        model: TRL's own tree; it sets hooks and recomputation.
        sample: its ids reach TRL as words, and are checked after TRL's tokenisation and collation.
        device: where.
        folder: for the trainer's output, of which there is none.
        changes: settings of CPOConfig that are not its defaults.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    disable_progress_bar()
    pairs = [(sample.chosen.token_ids, rejected.token_ids) for rejected in sample.rejected]
    words = [
        {"prompt": _words(sample.prompt_ids), "chosen": _words(chosen), "rejected": _words(rejected)}
        for chosen, rejected in pairs
    ]
    length = len(sample.prompt_ids) + len(sample.chosen.token_ids)
    on_cpu = device.type == "cpu"
    arguments = CPOConfig(
        output_dir=folder,
        beta=CPO.beta,
        cpo_alpha=CPO.sft_weight,
        max_length=length,
        per_device_train_batch_size=len(pairs),
        bf16=not on_cpu,
        use_cpu=on_cpu,
        report_to="none",
        **changes,
    )
    trainer = CPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(words),
        processing_class=word_tokenizer(model.config.vocab_size),
    )
    if arguments.gradient_checkpointing:  # transformers' Trainer does this when training starts
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(pairs))])
    expected = [[sample.prompt_ids + response for response in side] for side in zip(*pairs, strict=True)]
    if [batch["chosen_input_ids"].tolist(), batch["rejected_input_ids"].tolist()] != expected:
        raise AssertionError("TRL's batch does not hold the sample's ids")
    batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}

    def loss() -> Tensor:
        with autocast(device):
            return trainer.compute_loss(model, batch)

    return loss


def _words(ids: Sequence[int]) -> str:
    return "".join(f"{token} " for token in ids)


def word_tokenizer(vocabulary: int) -> Any:
    """Token id 17 is the word "17"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({str(token): token for token in range(vocabulary)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="0", bos_token=str(BOS), eos_token=str(EOS), pad_token=str(EOS)
    )


# The variants --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """Something to time.

    Attributes:
        name: its key in the JSON file.
        says: what it is.
        losses: what can be computed and compared with other variants that have the same key; the first one is timed.
        work: what it has to multiply.
    """

    name: str
    says: str
    losses: dict[str, Callable[[], Tensor]]
    work: Work


def make_variants(
    shape: Shape, model: PeftModel, device: torch.device, stack: ExitStack, *, trl: bool
) -> list[Variant]:
    """All variants, those that the others are compared with first."""
    sample, pair = make_sample(shape, shape.rejected), make_sample(shape, 1)
    many, rows = f"M={shape.rejected}", 1 + shape.rejected
    variants: list[Variant] = []

    def add(name: str, says: str, logprobs: Logprobs, keys: Sequence[str], work: Work) -> None:
        losses = {
            key: lambda key=key: sample_loss(LOGO if key.startswith("logo") else CPO, logprobs()).loss[0]
            for key in keys
        }
        variants.append(Variant(name, says, losses, work))

    plain = recompute_all(twin(model))
    add(
        "reference",
        f"{rows} full rows, all logits, full recompute",
        reference_pattern(plain, sample, device),
        [f"logo {many}"],
        Work.separate_rows(shape, rows, all_logits=True, recompute=True),
    )
    if trl:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for name, says, of, changes in (
            ("trl_same_data", f"TRL CPO, {shape.rejected} pairs, its default recompute", sample, {}),
            (
                "trl_same_data_no_recompute",
                f"TRL CPO, {shape.rejected} pairs, gradient_checkpointing=False",
                sample,
                {"gradient_checkpointing": False},
            ),
            ("trl_one_pair", "TRL CPO, 1 pair, its default recompute", pair, {}),
        ):
            loss = make_trl_loss(twin(model), of, device, folder, **changes)
            work = Work.separate_rows(shape, 2 * len(of.rejected), all_logits=True, recompute=not changes)
            variants.append(Variant(name, says, {f"cpo M={len(of.rejected)}": loss}, work))
    add(
        "separate_rows",
        f"{rows} full rows, response logits, full recompute",
        separate_rows(plain, sample, device),
        [f"logo {many}"],
        Work.separate_rows(shape, rows, all_logits=False, recompute=True),
    )
    for suffix, recompute in (("", True), ("_no_recompute", False)):
        ours = recompute_all(twin(model)) if recompute else twin(model)
        stack.enter_context(use_shared_prefix(ours.get_base_model()))
        how = "full recompute" if recompute else "no recompute"
        add(
            f"shared{suffix}",
            f"logotrain, M={shape.rejected}, {how}",
            shared_prefix(ours, sample, device),
            [f"logo {many}", f"cpo {many}"],
            Work.shared_prefix(shape, rows, recompute=recompute),
        )
        add(
            f"shared{suffix}_one_pair",
            f"logotrain, M=1, {how}",
            shared_prefix(ours, pair, device),
            ["cpo M=1"],
            Work.shared_prefix(shape, 2, recompute=recompute),
        )
    return variants


RATIOS = {
    "separate_rows_vs_reference": ("reference", "separate_rows"),
    "shared_vs_reference": ("reference", "shared"),
    "shared_no_recompute_vs_reference": ("reference", "shared_no_recompute"),
    "shared_vs_trl_same_data": ("trl_same_data", "shared"),
    "shared_no_recompute_vs_trl_same_data": ("trl_same_data", "shared_no_recompute"),
    "shared_no_recompute_vs_trl_same_data_no_recompute": ("trl_same_data_no_recompute", "shared_no_recompute"),
    "shared_vs_trl_one_pair": ("trl_one_pair", "shared_one_pair"),
    "shared_no_recompute_vs_trl_one_pair": ("trl_one_pair", "shared_no_recompute_one_pair"),
}
"""Time of the first over time of the second: how many times faster the second is."""


# Measuring -----------------------------------------------------------------------------------------------------------


class Meter:
    """Time, memory and the rate of a matrix product on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        size = 8192 if device.type == "cuda" else 2048
        self._factors = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(2)]
        self._product_flops = 2 * size**3

    def seconds(self, work: Callable[[], object]) -> float:
        self._synchronize()
        started = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - started

    def product_rate(self) -> float:
        """FLOP/s of a large square matrix product, the best of five."""
        return self._product_flops / min(self.seconds(lambda: torch.mm(*self._factors)) for _ in range(5))

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """Most memory held during ``work`` above what was held before it.

        CUDA: the allocator's figure. Linux: the kernel's high-water mark of resident memory, after free memory was
        handed back; other systems have none.
        """
        if self.device.type == "cuda":
            self._synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            self._synchronize()
            return torch.cuda.max_memory_allocated() - before
        if platform.system() != "Linux":
            work()
            return None
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _resident("VmRSS")
        work()
        return _resident("VmHWM") - before

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Stepper:
    """Runs steps and reads the gradients they leave."""

    def __init__(self, model: PeftModel) -> None:
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(self, loss: Callable[[], Tensor]) -> Tensor:
        """Forward and backward; returns the loss."""
        for parameter in self._trained:
            parameter.grad = None
        value = loss()
        value.backward()
        return value.detach()

    def gradient(self) -> Tensor:
        """All gradients of the last step in one row."""
        return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self._trained])


@dataclass(frozen=True)
class Found:
    """What was seen of a variant before the clock ran."""

    losses: dict[str, float]
    differences: dict[str, dict[str, Any]]  # by loss: from which variant, and how far off
    peak_bytes: int | None


def examine(variants: list[Variant], stepper: Stepper, meter: Meter) -> dict[str, Found]:
    """Loss, gradients and memory of every variant; one that does not fit into memory is named and left out."""
    baselines: dict[str, tuple[str, float, Tensor]] = {}
    found: dict[str, Found] = {}
    for variant in variants:
        losses: dict[str, float] = {}
        differences: dict[str, dict[str, Any]] = {}
        peak: int | None = None
        try:
            for key, loss in variant.losses.items():
                step: list[Tensor] = []
                peak_now = meter.peak_bytes(lambda loss=loss, step=step: step.append(stepper.step(loss)))
                peak = peak_now if peak is None else peak
                losses[key] = value = step[0].item()
                gradient = stepper.gradient()
                if key not in baselines:
                    baselines[key] = (variant.name, value, gradient)
                    continue
                against, expected, expected_gradient = baselines[key]
                norm = expected_gradient.norm()
                differences[key] = {
                    "against": against,
                    "loss": abs(value - expected) / abs(expected),
                    "gradient": ((gradient - expected_gradient).norm() / norm).item(),
                }
        except torch.OutOfMemoryError:
            print(f"{variant.name}: out of memory, left out", flush=True)
            continue
        found[variant.name] = Found(losses, differences, peak)
        print(f"  {variant.name:32} {_show_losses(losses, differences)}", flush=True)
    return found


def _show_losses(losses: dict[str, float], differences: dict[str, dict[str, Any]]) -> str:
    parts = []
    for key, value in losses.items():
        text = f"{key}: {value:.6f}"
        if key in differences:
            off = differences[key]
            text += f" (off {off['against']} by {off['loss']:.1e}, gradients by {off['gradient']:.1e})"
        parts.append(text)
    return ", ".join(parts)


def time_rounds(
    variants: list[Variant], stepper: Stepper, meter: Meter, rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each variant in each round, and the rate of the matrix product in each round."""
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    rates = []
    for number in range(rounds):
        first = number % len(variants)
        for variant in variants[first:] + variants[:first]:
            loss = next(iter(variant.losses.values()))
            seconds[variant.name].append(meter.seconds(lambda loss=loss: stepper.step(loss)))
        rates.append(meter.product_rate())
        shown = ", ".join(f"{name} {values[-1]:.2f}" for name, values in seconds.items())
        print(f"  round {number + 1} of {rounds}, seconds: {shown}", flush=True)
    return seconds, rates


# Report --------------------------------------------------------------------------------------------------------------


def make_report(
    shape: Shape,
    variants: list[Variant],
    found: dict[str, Found],
    seconds: dict[str, list[float]],
    rates: list[float],
) -> dict[str, Any]:
    rate = statistics.median(rates)
    table = {}
    for variant in variants:
        times, flops = seconds[variant.name], variant.work.flops(shape)
        achieved = flops / statistics.median(times)
        table[variant.name] = {
            "is": variant.says,
            "timed_loss": next(iter(variant.losses)),
            "seconds_median": statistics.median(times),
            "seconds_min": min(times),
            "seconds_max": max(times),
            "seconds": times,
            "flops": flops,
            "flops_per_second": achieved,
            "share_of_matrix_product": achieved / rate,
            "peak_bytes": found[variant.name].peak_bytes,
            "differences": found[variant.name].differences,
        }
    ratios, ranges, counted = {}, {}, {}
    for name, (slow, fast) in RATIOS.items():
        if slow not in table or fast not in table:
            ratios[name] = None
            continue
        ratios[name] = table[slow]["seconds_median"] / table[fast]["seconds_median"]
        by_round = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
        ranges[name] = [min(by_round), max(by_round)]
        counted[name] = table[slow]["flops"] / table[fast]["flops"]
    return {
        "ratios": ratios,
        "ratios_lowest_and_highest_round": ranges,
        "ratios_of_flops": counted,
        "losses": {name: item.losses for name, item in found.items()},
        "variants": table,
        "matrix_product_flops_per_second": rate,
    }


def print_report(report: dict[str, Any]) -> None:
    print(
        f"\n{'variant':32} {'median s':>9} {'lowest':>8} {'highest':>8} {'TFLOP':>8} {'of matmul':>9} {'peak MiB':>9}"
    )
    for name, row in report["variants"].items():
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        times = f"{row['seconds_median']:9.3f} {row['seconds_min']:8.3f} {row['seconds_max']:8.3f}"
        print(f"{name:32} {times} {row['flops'] / 1e12:8.3f} {row['share_of_matrix_product']:9.0%} {peak:>9}")
    print(f"matrix product: {report['matrix_product_flops_per_second'] / 1e12:.3f} TFLOP/s; peak: above the weights")
    print(f"\n{'times as fast':50} {'measured':>8} {'rounds':>12} {'by FLOPs':>9}")
    for name, ratio in report["ratios"].items():
        if ratio is None:
            print(f"{name:50} {'-':>8}")
            continue
        low, high = report["ratios_lowest_and_highest_round"][name]
        print(f"{name:50} {ratio:8.2f} {low:6.2f}-{high:.2f} {report['ratios_of_flops'][name]:9.2f}")


def environment(device: torch.device) -> dict[str, Any]:
    versions = {}
    for package in ("torch", "transformers", "peft", "trl"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


# Command -------------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median needs 5 (default)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default 1)")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), help="float32 on cpu, bfloat16 on cuda")
    group = parser.add_argument_group("shape", "defaults for cpu, and for cuda")
    for field in fields(Shape):
        defaults = f"{getattr(CPU_SHAPE, field.name)}, {getattr(CUDA_SHAPE, field.name)}"
        group.add_argument(f"--{field.name.replace('_', '-')}", type=int, metavar="N", help=defaults)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device", mend="use --device cpu")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if the variants disagree."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dtype = arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    given = {field.name: getattr(arguments, field.name) for field in fields(Shape)}
    shape = replace(
        CUDA_SHAPE if device.type == "cuda" else CPU_SHAPE, **{k: v for k, v in given.items() if v is not None}
    )
    facts = environment(device)
    trl = facts["versions"]["trl"] is not None
    if not trl:
        print("TRL is not installed, its variants are left out: pip install trl==1.16.0", file=sys.stderr)
    print(
        f"{facts['hardware']}, {facts['threads']} threads, {dtype}; {asdict(shape)}; head share {shape.head_share:.1%}"
    )

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*trl.experimental")
        model = make_model(shape, device, getattr(torch, dtype))
        variants = make_variants(shape, model, device, stack, trl=trl)
        stepper, meter = Stepper(model), Meter(device, getattr(torch, dtype))
        print("losses, and how far they and the gradients are from the first variant's that computes the same:")
        found = examine(variants, stepper, meter)
        variants = [variant for variant in variants if variant.name in found]
        seconds, rates = time_rounds(variants, stepper, meter, arguments.repeats)

    report = make_report(shape, variants, found, seconds, rates)
    worst = max((off["gradient"] for item in found.values() for off in item.differences.values()), default=0.0)
    report = {
        **report,
        "largest_gradient_difference": worst,
        "shape": {**asdict(shape), "head_share": shape.head_share},
        "dtype": dtype,
        "repeats": arguments.repeats,
        **facts,
    }
    print_report(report)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if worst > TOLERANCE[dtype]:
        print(f"the variants disagree: gradients differ by {worst:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command("step.py", main, resume_hint="nothing was written"))
