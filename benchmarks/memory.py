"""The memory estimate of ``logotrain plan`` against the trainer's own step on fake tensors, at the shape of Llama-3-8B.

    python benchmarks/memory.py --json FILE [--layers 32] [--quick]

Prints a Markdown table: predicted and simulated peak of a process that has made its first step, in GiB as torch counts
allocated memory. No GPU, no weights; a case takes seconds to a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from transformers import LlamaConfig

from benchmarks.simulate import simulate_step
from logotrain.plan.memory import estimate_memory
from logotrain.plan.shape import model_shape
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import Recompute, Strategy, TrainRecipe
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from shape import CUDA_SHAPE, LORA_TARGETS, model_config

PROMPT, RESPONSE = CUDA_SHAPE.prompt, CUDA_SHAPE.response
RECIPES: dict[str, dict[str, Any]] = {
    "LoRA on attention": {"lora": {"train_embeddings": False}},
    "LoRA on attention, embedding": {"lora": {"train_embeddings": True}},
    "LoRA everywhere": {"lora": {"target_modules": LORA_TARGETS, "train_embeddings": False}},
    "full tuning": {"tuning": "full"},
}
Case = tuple[str, int, str, int | None]
"""Recipe, M, recompute, processes that share the weights."""


def cases(quick: bool) -> Iterator[Case]:
    """What is compared."""
    for name in ("LoRA on attention",) if quick else RECIPES:
        shards = 8 if name == "full tuning" else None
        for num_rejected in (2,) if quick else (2, 8):
            for recompute in get_args(Recompute):
                yield name, num_rejected, recompute, shards


def measure(config: LlamaConfig, case: Case) -> dict[str, Any]:
    """Predicted and simulated bytes of a case."""
    name, num_rejected, recompute, shards = case
    recipe = TrainRecipe.model_validate({"model": "llama3-8b", **RECIPES[name]})
    row = RowLayout((SharedPrefixLayout(PROMPT, (RESPONSE,) * (1 + num_rejected)),))
    strategy: Strategy = "shard" if shards else "replicate"
    step = StepPlan(model_shape(config), recipe, row, recompute, strategy, shards or 1)  # type: ignore[arg-type]
    started = time.perf_counter()
    found = simulate_step(config, step)
    seconds = time.perf_counter() - started
    expected = estimate_memory(step)
    return {
        "trained": name,
        "num_rejected": num_rejected,
        "recompute": recompute,
        "shards": shards,
        "predicted": expected.allocated,
        "simulated": found.peak,
        "error": expected.allocated / found.peak - 1,
        "parts": expected.parts,
        "moment": expected.moment,
        "simulated_kept": found.kept,
        "simulated_states": found.states,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--layers", type=int, default=32, metavar="N", help="layers of the model (default 32)")
    parser.add_argument("--quick", action="store_true", help="five cases instead of 40")
    arguments = parser.parse_args()
    config = model_config(CUDA_SHAPE, num_hidden_layers=arguments.layers)
    print(f"Llama-3-8B's shape, {arguments.layers} layers, prompt {PROMPT}, responses {RESPONSE}, bfloat16, flash\n")
    print("| trained | M | recompute | predicted GiB | simulated GiB | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for case in cases(arguments.quick):
        row = measure(config, case)
        rows.append(row)
        name = row["trained"] + (f", over {row['shards']}" if row["shards"] else "")
        sizes = f"{row['predicted'] / 2**30:.1f} | {row['simulated'] / 2**30:.1f}"
        print(f"| {name} | {row['num_rejected']} | {row['recompute']} | {sizes} | {row['error']:+.1%} |", flush=True)
    worst = max(abs(row["error"]) for row in rows)
    print(f"\nLargest error {worst:.1%}.")
    if arguments.json is not None:
        facts = {"layers": arguments.layers, "prompt": PROMPT, "response": RESPONSE, "torch": torch.__version__}
        result = {**facts, "transformers": transformers.__version__, "largest_error": worst, "cases": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
