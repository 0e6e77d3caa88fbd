"""Four processes: models read straight into shards are the models that transformers reads whole, in less memory; and
copies of the shards (HSDP) train as one process does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from logodata.dataset.samples import write_samples
from logodata.models.facts import model_fingerprint, tokenizer_fingerprint
from logotrain.checkpoints.export import export
from logotrain.model.loading import load_trainable
from logotrain.parallel import World
from logotrain.recipe.settings import TrainRecipe
from tests.data_sets import write_manifest
from tests.distributed.folders import RunFolders
from tests.logotrain.conftest import sample_of
from tests.tiny_models import SIZES, make_tiny

pytestmark = pytest.mark.slow

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "tied": ("llama", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", SIZES),
    "gemma3": ("gemma3", {}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": (
        "qwen3_moe",
        {**SIZES, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gpt_oss": ("gpt_oss", {}),
    "qwen2_5_vl": ("qwen2_5_vl", {}),
}
"""The kinds that are read. Files of mixtral and qwen3_moe name each expert, and the model stacks them."""

FULL: dict[str, Any] = {"tuning": "full", "dtype": "float32"}

EQUAL: dict[str, dict[str, Any]] = {
    **{f"{name}-lora": {"model": name} for name in MODELS},
    **{f"{name}-full": {"model": name, **FULL} for name in ("llama", "tied", "mixtral", "gpt_oss", "qwen2_5_vl")},
    "bfloat16": {"model": "llama", "dtype": "bfloat16"},
    "full-bfloat16": {"model": "mixtral", "tuning": "full"},
    "copies": {"model": "qwen3_moe", "parallel": {"shard_size": 2}},
    "frozen-embedding": {"model": "llama", "lora": {"train_embeddings": False}},
    "tied-embedding": {"model": "tied", "lora": {"train_embeddings": True}},
    "tied-by-config-only": {"model": "parted", **FULL},
    "tied-by-config-only-lora": {"model": "parted"},
    "rope": {"model": "llama", "rope": {"type": "yarn", "factor": 4.0}},
    "experts": {
        "model": "mixtral",
        "lora": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    },
    "rslora": {"model": "llama", "lora": {"use_rslora": True, "target_modules": ["all-linear"]}},
    "init": {"model": "llama", "lora": {"rank": 4, "init_adapter": "adapter"}},
}

CASES: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "alpha": 8, "train_embeddings": True}},
    "full": {"tuning": "full", "recompute": "full"},
    "dora": {"lora": {"rank": 4, "alpha": 8, "use_dora": True}},
    "context": {"parallel": {"context_size": 2}},
}
"""What trains on two copies of two shards, in float64."""


def make_models(root: Path) -> None:
    for name, (kind, fields) in MODELS.items():
        make_tiny(kind, **fields).save_pretrained(root / name, max_shard_size="20KB")
        assert len([*(root / name).glob("*.safetensors")]) > 2
    # The config ties what the files hold as two weights: transformers reads both and warns.
    shutil.copytree(root / "llama", root / "parted")
    config = json.loads((root / "parted" / "config.json").read_text())
    (root / "parted" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))


def make_large(folder: Path) -> None:
    """A mixture of 300 MB in float32, whose experts have files of their own, in several files of bfloat16."""
    sizes = {"hidden_size": 512, "intermediate_size": 384, "num_hidden_layers": 14, "num_local_experts": 8}
    config = AutoConfig.for_model("mixtral", **{**SIZES, **sizes, "num_experts_per_tok": 2, "head_dim": 128})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.5)
    model.save_pretrained(folder, max_shard_size="40MB")


class Runs(RunFolders):
    """Runs of one process and of four, and what the four found of models."""

    def __init__(self, root: Path, model: Path) -> None:
        super().__init__(root)
        self.model = model

    def recipe(self, case: str, **parallel: Any) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "data": {"path": str(self.root / "build")},
            "objective": {"name": "logo", "beta": 2.5, "gamma": 0.25},
            "optimizer": {"lr": 5e-3, "eps": 1e-3},
            "epochs": 1,
            "samples_per_step": 5,
            "recompute": "none",
            "dtype": "float32",
            "checkpoint": {"every_steps": 1, "keep": None},
            "collapse": {"num_prompts": 0},
            **CASES[case],
            "parallel": parallel,
        }

    def task(self, case: str, name: str) -> dict[str, Any]:
        parallel = {"strategy": "shard", "shard_size": 2, **CASES[case].get("parallel", {})}
        return {"recipe": self.recipe(case, **parallel), "out": str(self.root / name), "float64": True}

    def said(self, name: str) -> list[Any]:
        return [json.loads((self.root / f"{name}.rank{rank}").read_text()) for rank in range(4)]


def save_adapter(runs: Runs) -> None:
    """Write an adapter to start from, whose second matrices are not zero."""
    recipe = TrainRecipe.model_validate(
        {"model": str(runs.root / "llama"), "data": {"path": "none"}, "dtype": "float32", "lora": {"rank": 4}}
    )
    model = load_trainable(recipe, torch.device("cpu"))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight)
    export(model, runs.root / "adapter", World(), name=recipe.model, dtype=torch.float32)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> Runs:
    root = tmp_path_factory.mktemp("large")
    make_models(root)
    make_large(root / "mixture")
    (root / "build" / "data").mkdir(parents=True)
    samples = [sample_of(f"s{n}", responses=(5 + n % 3, 3, 4 + n % 2), chunks=2 + n % 4) for n in range(10)]
    write_samples(root / "build" / "data" / "samples.parquet", samples)
    write_manifest(
        root / "build",
        model=str(tiny_model_dir),
        model_fingerprint=model_fingerprint(str(tiny_model_dir)),
        tokenizer_fingerprint=tokenizer_fingerprint(tiny_tokenizer),
    )
    runs = Runs(root, tiny_model_dir)
    for case in CASES:
        runs.alone_in_float64(runs.recipe(case), f"one-{case}")
    runs.cut("one-full", "one-then-four", after=1)
    save_adapter(runs)

    def at(settings: dict[str, Any]) -> dict[str, Any]:
        recipe = {"data": {"path": "none"}, "dtype": "float32", **settings, "model": str(root / settings["model"])}
        if "init_adapter" in recipe.get("lora", {}):
            recipe["lora"] = {**recipe["lora"], "init_adapter": str(root / "adapter")}
        return recipe

    (root / "equal.json").write_text(json.dumps({name: at(settings) for name, settings in EQUAL.items()}))
    (root / "memory.json").write_text(json.dumps([at({"model": name, **FULL}) for name in ("mixtral", "mixture")]))
    tasks = [*(runs.task(case, f"four-{case}") for case in CASES), runs.task("full", "one-then-four")]
    (root / "tasks.json").write_text(json.dumps(tasks))
    # glibc keeps what is freed in blocks below a threshold, which it raises up to 32 MB unless it is set.
    runs.together(4, "large_models_worker", root, MALLOC_MMAP_THRESHOLD_="131072")
    return runs


@pytest.mark.parametrize("name", EQUAL)
def test_what_is_read_into_shards_equals_what_transformers_reads_whole(runs: Runs, name: str) -> None:
    assert runs.said(name) == [[], [], [], []]


def test_no_process_holds_the_model(runs: Runs) -> None:
    found = runs.said("memory")
    weights = found[0]["weights"]
    assert weights > 300e6
    assert found[0]["whole"] > 0.95 * weights
    assert max(process["sharded"] for process in found) < 0.6 * weights


@pytest.mark.parametrize("case", CASES)
def test_copies_of_shards_have_the_gradients_of_one_process(runs: Runs, case: str) -> None:
    runs.check_gradients(f"one-{case}", f"four-{case}", rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("one", "four"), [*((case, f"four-{case}") for case in CASES), ("full", "one-then-four")])
def test_copies_of_shards_train_as_one_process_does(runs: Runs, one: str, four: str) -> None:
    expected, found = runs.metrics(f"one-{one}"), runs.metrics(four)
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-10)
    weights, whole = runs.final(f"one-{one}"), runs.final(four)
    assert weights.keys() == whole.keys()
    for name, value in weights.items():
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-6)


def test_what_cannot_be_read_into_shards_is_read_whole_and_said_once(runs: Runs) -> None:
    said = (runs.root / "stderr").read_text()
    note = "weights: every process reads the whole model into host memory, 0 MiB: DoRA starts from the lengths of the"
    assert said.count(note) == 1
    assert said.count("reads the whole model") == 1
