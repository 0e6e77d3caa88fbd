"""Rows split over two and over four processes give what one process gives, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from logodata.dataset.samples import write_samples
from logodata.models.facts import tokenizer_fingerprint
from tests.data_sets import write_manifest
from tests.distributed.folders import RunFolders
from tests.logotrain.conftest import sample_of
from tests.tiny_models import SIZES as TINY
from tests.tiny_models import make_tiny

pytestmark = pytest.mark.slow

FULL = {"strategy": "replicate", "tuning": "full"}
LORA = {"strategy": "replicate"}

CASES: dict[str, dict[str, Any]] = {
    # Two key and value heads: four processes get a copy of each.
    "llama": {"strategy": "replicate", "lora": {"train_embeddings": True}},
    "llama-shard": {"strategy": "shard"},
    "llama-full-shard": {"strategy": "shard", "tuning": "full", "recompute": "full"},
    "one-key-head": {"model": "one-key-head", **FULL, "recompute": "selective"},
    "tied": {"model": "tied", **FULL},
    # Six heads over three of keys: four processes fill two more up, and take keys and values of every head. Two take
    # three heads each, and keys and values twice.
    "uneven": {"model": "uneven", **FULL},
    "packed": {**LORA, "row_tokens": 120, "recompute": "selective"},
    "packed-shard": {"strategy": "shard", "row_tokens": 120},
    # One layer: each is compiled by itself.
    "compiled": {"model": "one-layer", **LORA, "compile": True, "recompute": "full"},
    "simpo": {**LORA, "objective": {"name": "simpo"}},
    "cpo": {**LORA, "objective": {"name": "cpo"}},
    "dpo": {"strategy": "shard", "objective": {"name": "dpo"}},
    "sft": {**LORA, "objective": {"name": "sft"}},
    "sft-sequence": {"strategy": "shard", "objective": {"name": "sft", "tokens": "sequence"}},
    "orpo": {**LORA, "objective": {"name": "orpo"}},
    "ipo": {**LORA, "objective": {"name": "ipo"}},
    "solopo": {"strategy": "shard", "objective": {"name": "solopo", "loss": {"name": "dpo"}}},
    "longpo": {**LORA, "objective": {"name": "longpo"}, "rope": {"type": "yarn", "factor": 4}},
    "randpos": {**LORA, "positions": {"mode": "randpos"}},
    # Sinks are split with the heads, and windows and chunks are those of the whole row.
    "gpt_oss": {"model": "gpt_oss", **FULL, "router_loss": 0.5},
    "llama4": {"model": "llama4", **FULL, "router_loss": False},
    "olmo3": {"model": "olmo3", **LORA},
    "deepseek_v3": {"model": "deepseek_v3", **FULL, "router_loss": False},
    "mixtral": {"model": "mixtral", "strategy": "shard", "tuning": "full", "router_loss": 0.5, "recompute": "full"},
}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "one-layer": ("llama", {**TINY, "num_hidden_layers": 1}),
    "one-key-head": ("mistral", {"num_key_value_heads": 1, "sliding_window": None}),
    "tied": ("granite", {"tie_word_embeddings": True}),
    "uneven": ("gpt_oss", {"num_attention_heads": 6, "num_key_value_heads": 3}),
}

IN_FLOAT32 = {"llama4": 1e-6, "deepseek_v3": 1e-6}
"""Tolerances for models that compute a part in float32 themselves: their rotary embedding, their router."""

SIZES = [*((case, 4) for case in CASES), *((case, 2) for case in ("llama", "llama-full-shard", "packed", "uneven"))]
"""By how many processes a row of a case is computed; with 2 there are two groups."""

BY_THREE = [("llama", 3), ("uneven", 3)]
"""Three processes, which share four heads, or six, and no row of tokens evenly."""


class Runs(RunFolders):
    """Every case by one process, and by four of which two and four compute a row together."""

    def __init__(self, root: Path, model: Path) -> None:
        super().__init__(root)
        self.model = model

    def recipe(self, case: str, size: int) -> dict[str, Any]:
        settings = dict(CASES[case])
        model = settings.pop("model", None)
        lora = {"rank": 4, "alpha": 8, "train_embeddings": False, **settings.pop("lora", {})}
        return {
            "model": str(self.root / model if model else self.model),
            "data": {"path": str(self.root / "build"), "validation": str(self.root / "held-out")},
            "validation": {"every_steps": 1},
            "objective": {"name": "logo", "beta": 2.5, "gamma": 0.25},
            "lora": lora,
            "optimizer": {"lr": 5e-3, "eps": 1e-3},
            "epochs": 1,
            "samples_per_step": 3,
            "max_steps": 2 if case == "packed" else 1,  # it is broken off after the first
            "recompute": "none",
            "dtype": "float32",
            "checkpoint": {"every_steps": 1 if case == "packed" else 50, "keep": None},
            "collapse": {"num_prompts": 0},
            "parallel": {"strategy": settings.pop("strategy"), "context_size": size},
            **settings,
        }

    def task(self, case: str, size: int, name: str) -> dict[str, Any]:
        return {"recipe": self.recipe(case, size), "out": str(self.root / name), "float64": True}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> Runs:
    root = tmp_path_factory.mktemp("context")
    lengths = [(5 + n % 3, 3, 4 + n % 2)[: 2 + n % 2] for n in range(6)]
    for name, count in (("build", 6), ("held-out", 2)):
        (root / name / "data").mkdir(parents=True)
        samples = [sample_of(f"{name[0]}{n}", responses=lengths[n], chunks=2 + n % 4) for n in range(count)]
        write_samples(root / name / "data" / "samples.parquet", samples)
        write_manifest(root / name, tokenizer_fingerprint=tokenizer_fingerprint(tiny_tokenizer))
    for name in {str(case["model"]) for case in CASES.values() if "model" in case}:
        kind, fields = KINDS.get(name, (name, {}))
        make_tiny(kind, **fields).save_pretrained(root / name)
        tiny_tokenizer.save_pretrained(root / name)
    runs = Runs(root, tiny_model_dir)
    for case in CASES:
        runs.alone_in_float64(runs.recipe(case, 1), f"1-{case}")
    runs.cut("1-packed", "1-then-4", after=1)
    tasks = [runs.task(case, size, f"{size}-{case}") for case, size in SIZES]
    (root / "tasks.json").write_text(json.dumps([*tasks, runs.task("packed", 4, "1-then-4")]))
    runs.together(4, "worker", root / "tasks.json")
    (root / "by-three.json").write_text(json.dumps([runs.task(case, 3, f"3-{case}") for case, _ in BY_THREE]))
    runs.together(3, "worker", root / "by-three.json")
    runs.cut("2-packed", "2-then-1", after=1)
    runs.alone_in_float64(runs.recipe("packed", 1), "2-then-1")
    return runs


@pytest.mark.parametrize(("case", "size"), [*SIZES, *BY_THREE])
def test_gradients_and_losses_equal_those_of_one_process(runs: Runs, case: str, size: int) -> None:
    tolerance = IN_FLOAT32.get(case, 1e-10)
    runs.check_gradients(f"1-{case}", f"{size}-{case}", rtol=tolerance, atol=tolerance)
    for file in ("metrics.jsonl", "validation.jsonl"):
        for ours, theirs in zip(runs.metrics(f"{size}-{case}", file), runs.metrics(f"1-{case}", file), strict=True):
            assert ours == pytest.approx(theirs, rel=10 * tolerance, abs=tolerance)
    weights, whole = runs.final(f"1-{case}"), runs.final(f"{size}-{case}")
    for name, value in weights.items():
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["1-then-4", "2-then-1"])
def test_a_run_continues_on_another_number_of_processes_a_row(runs: Runs, name: str) -> None:
    for ours, theirs in zip(runs.metrics(name), runs.metrics("1-packed"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-10)
