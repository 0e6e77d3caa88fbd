"""Two processes on gloo give what one gives: gradients, losses, weights; and continue what one began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
)

from logodata.dataset.samples import write_samples
from logodata.models.facts import model_fingerprint, tokenizer_fingerprint
from tests.data_sets import write_manifest
from tests.distributed.folders import RunFolders
from tests.logotrain.conftest import sample_of
from tests.logotrain.test_trackers import read_tensorboard

pytestmark = pytest.mark.slow

CASES: dict[str, dict[str, Any]] = {
    "replicate": {"strategy": "replicate", "report_to": ["tensorboard"]},
    "shard": {"strategy": "shard", "train_embeddings": True},
    "shard-recompute": {"strategy": "shard", "recompute": "full"},
    "shard-packed": {"strategy": "shard", "row_tokens": 120},
    # Rows are longer than a tile, which has 64 tokens in this model.
    "shard-tiles": {"strategy": "shard", "row_tokens": 120, "recompute": "offloaded", "lora": "all-linear"},
    "full-tiles": {"strategy": "shard", "row_tokens": 120, "recompute": "tiled", "tuning": "full"},
    "replicate-packed": {"strategy": "replicate", "row_tokens": 120},
    "full": {"strategy": "shard", "tuning": "full"},
    "sft": {"strategy": "replicate", "objective": {"name": "sft", "tokens": "sequence"}},
    "dpo": {"strategy": "shard", "objective": {"name": "dpo"}},
    # Samples with two prompts, and a reference that sees another prompt under another RoPE.
    "solopo": {"strategy": "replicate", "row_tokens": 240, "objective": {"name": "solopo", "loss": {"name": "dpo"}}},
    "solopo-separate": {"strategy": "shard", "sharing": "none", "objective": {"name": "solopo"}},
    "longpo": {
        "strategy": "shard",
        "objective": {"name": "longpo", "preference_weight": 0.5},
        "rope": {"type": "yarn", "factor": 4},
    },
    "keep-gathered": {"strategy": "shard", "reshard_after_forward": False},
    # Samples have two or three responses, and sharded processes must all run equally often.
    "separate": {"strategy": "shard", "sharing": "none", "train_embeddings": True},
    "separate-full": {"strategy": "shard", "sharing": "none", "tuning": "full", "recompute": "full"},
    "separate-replicate": {"strategy": "replicate", "sharing": "none", "row_tokens": 120},
    # Its router loss counts with every sample, on whichever process.
    "mixture": {"strategy": "shard", "model": "mixture", "tuning": "full", "recompute": "full", "router_loss": 0.5},
    "mixture-separate": {
        "strategy": "shard",
        "model": "mixture",
        "sharing": "none",
        "router_loss": 0.5,
        "experts": True,
    },
    # Pairs of somebody else, which one process imports for both.
    "pairs": {"strategy": "shard", "pairs": True},
    # Samples of a build, spread, and pairs among them, which are not.
    "mix": {"strategy": "shard", "mix": True, "row_tokens": 120, "objective": {"name": "dpo"}},
}


class Runs(RunFolders):
    """Every case, by one process and by two; two processes also continue runs of one, and the other way round."""

    def __init__(self, root: Path, model: Path, data: Path, held_out: Path) -> None:
        super().__init__(root)
        self.model, self.data, self.held_out = model, data, held_out

    def recipe(self, case: str) -> dict[str, Any]:
        settings = dict(CASES[case])
        of_pairs = self.root / "pairs.jsonl", self.root / "held-out.jsonl"
        data, held_out = of_pairs if settings.pop("pairs", False) else (self.data, self.held_out)
        mix = {"path": str(self.root / "short.jsonl"), "share": 0.4} if settings.pop("mix", False) else None
        model = self.root / "mixture" if settings.pop("model", None) else self.model
        parallel = {name: settings.pop(name) for name in ("strategy", "reshard_after_forward") if name in settings}
        lora = {"rank": 4, "alpha": 8, "train_embeddings": settings.pop("train_embeddings", False)}
        if targets := settings.pop("lora", None):
            lora["target_modules"] = [targets]
        if settings.pop("experts", False):
            lora["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        return {
            "model": str(model),
            "data": {"path": str(data), "validation": str(held_out), "mix": mix},
            "validation": {"every_steps": 2, "final": "best"},
            "objective": {"name": "logo", "beta": 2.5, "gamma": 0.25},
            "lora": lora,
            # A large eps: otherwise Adam turns rounding errors of gradients near zero into whole steps.
            "optimizer": {"lr": 5e-3, "eps": 1e-3},
            "epochs": 2,
            "samples_per_step": 3,
            "max_steps": 3,  # the last one spans both epochs
            "recompute": "none",
            "dtype": "float32",
            "checkpoint": {"every_steps": 1, "keep": None},
            "collapse": {"num_prompts": 1, "max_new_tokens": 8, "every_steps": 2},
            "parallel": parallel,
            **settings,
        }

    def task(self, case: str, name: str, **extra: Any) -> dict[str, Any]:
        return {"recipe": self.recipe(case), "out": str(self.root / name), **extra}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> Runs:
    root = tmp_path_factory.mktemp("pair")
    # Seven samples of unequal lengths, three a step: processes get unequal numbers, and a step spans two epochs. Of
    # four held-out ones the last block has one, so that one process only repeats it.
    lengths = [(5 + n % 3, 3, 4 + n % 2)[: 2 + n % 2] for n in range(7)]
    for name, count in (("build", 7), ("held-out", 4)):
        (root / name / "data").mkdir(parents=True)
        samples = [sample_of(f"{name[0]}{n}", responses=lengths[n], chunks=2 + n % 4) for n in range(count)]
        write_samples(root / name / "data" / "samples.parquet", samples)
        write_manifest(
            root / name,
            model=str(tiny_model_dir),
            model_fingerprint=model_fingerprint(str(tiny_model_dir)),
            tokenizer_fingerprint=tokenizer_fingerprint(tiny_tokenizer),
        )
    for name, count in (("pairs", 7), ("held-out", 4), ("short", 7)):
        answers = [(n, ["No.", "Owls sleep."][: 1 + n % 2]) for n in range(count)]
        pairs = [{"prompt": f"{name}, {n}?", "chosen": f" There are {n}.", "rejected": said} for n, said in answers]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    torch.manual_seed(0)
    base = AutoConfig.from_pretrained(tiny_model_dir).to_dict()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    fields = {name: base[name] for name in (*sizes, "vocab_size", "max_position_embeddings")}
    mixture = MixtralConfig(**fields, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    MixtralForCausalLM(mixture).save_pretrained(root / "mixture")
    tiny_tokenizer.save_pretrained(root / "mixture")
    runs = Runs(root, tiny_model_dir, root / "build", root / "held-out")
    for case in CASES:
        runs.alone(runs.recipe(case), f"one-{case}")
    for case in ("replicate", "shard"):
        runs.cut(f"one-{case}", f"one-then-two-{case}", after=1)
    tasks = [
        *(runs.task(case, f"two-{case}") for case in CASES),
        *(runs.task(case, f"one-then-two-{case}") for case in ("replicate", "shard")),
        runs.task("shard", "one-replicate"),  # refused: the folder belongs to another recipe
        runs.task("dpo", "sigterm-dpo", sigterm_in_references=1),
        runs.task("shard", "sigint", sigint_in_validation=1),
        runs.task("shard", "sigterm", sigterm_rank=1),  # last: its patch stays
    ]
    (root / "tasks.json").write_text(json.dumps(tasks))
    runs.together(2, "worker", root / "tasks.json", by_torchrun=True)
    for case in ("replicate", "shard"):
        runs.cut(f"two-{case}", f"two-then-one-{case}", after=1)
        runs.alone(runs.recipe(case), f"two-then-one-{case}")
    return runs


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_one_process(runs: Runs, case: str) -> None:
    runs.check_gradients(f"one-{case}", f"two-{case}", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_equal_those_of_one_process(runs: Runs, case: str) -> None:
    expected, found = runs.metrics(f"one-{case}"), runs.metrics(f"two-{case}")
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert {"repetition" in line for line in found} == {True, False}
    held_out = [runs.metrics(f"{count}-{case}", "validation.jsonl") for count in ("one", "two")]
    assert [line["step"] for line in held_out[0]] == [0, 2, 3]
    for ours, theirs in zip(*held_out, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    weights, whole = runs.final(f"one-{case}"), runs.final(f"two-{case}")
    assert weights.keys() == whole.keys()
    for name, value in weights.items():
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["replicate", "shard"])
@pytest.mark.parametrize("order", ["one-then-two", "two-then-one"])
def test_a_run_continues_on_another_number_of_processes(runs: Runs, order: str, case: str) -> None:
    expected, found = runs.metrics(f"one-{case}"), runs.metrics(f"{order}-{case}")
    assert [line["step"] for line in found] == [1, 2, 3]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for name, value in runs.final(f"one-{case}").items():
        torch.testing.assert_close(runs.final(f"{order}-{case}")[name], value, rtol=0, atol=1e-5)


def test_one_process_of_the_two_reports(runs: Runs) -> None:
    found = read_tensorboard(runs.root / "two-replicate" / "tensorboard")
    lines = runs.metrics("two-replicate")
    assert {step: value for (name, step), value in found.items() if name == "train/loss"} == pytest.approx(
        {line["step"]: line["loss"] for line in lines}, rel=1e-6
    )


def test_full_tuning_ends_in_a_model_folder(runs: Runs, tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs.root / "two-full" / "final")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True)]
    assert all(moved)
    assert (runs.root / "two-full" / "final" / "tokenizer.json").is_file()


def test_a_signal_to_one_process_stops_both_and_the_run_goes_on(runs: Runs) -> None:
    assert [(runs.root / f"sigterm.rank{rank}").read_text() for rank in (0, 1)] == ["interrupted", "interrupted"]
    for ours, theirs in zip(runs.metrics("sigterm"), runs.metrics("two-shard"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-7)


def test_a_signal_to_one_process_stops_the_reference_pass_of_both(runs: Runs) -> None:
    assert [(runs.root / f"sigterm-dpo.rank{rank}").read_text() for rank in (0, 1)] == ["interrupted", "interrupted"]
    lines = [(runs.root / name / "reference.jsonl").read_text() for name in ("sigterm-dpo", "two-dpo")]
    assert sorted(lines[0].splitlines()) == sorted(lines[1].splitlines())
    for ours, theirs in zip(runs.metrics("sigterm-dpo"), runs.metrics("two-dpo"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-7)


def test_a_signal_to_one_process_stops_a_measurement_of_both(runs: Runs) -> None:
    assert [(runs.root / f"sigint.rank{rank}").read_text() for rank in (0, 1)] == ["interrupted", "interrupted"]
    for file in ("metrics.jsonl", "validation.jsonl"):
        for ours, theirs in zip(runs.metrics("sigint", file), runs.metrics("two-shard", file), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-7)


def test_one_process_imports_pairs_for_both(runs: Runs) -> None:
    assert (runs.root / "stderr").read_text().count("pairs.jsonl: read as TRL's pairs of plain text") == 1
    one, two = ((runs.root / name / "data" / "stats.json").read_bytes() for name in ("one-pairs", "two-pairs"))
    assert one == two


def test_what_the_main_process_refuses_is_refused_by_all_and_said_once(runs: Runs) -> None:
    said = [(runs.root / f"one-replicate.rank{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "this folder was started with lora.train_embeddings=False, now it is True" in said[0]
    assert (runs.root / "stderr").read_text().count("attention: sdpa") == len(
        CASES
    ) + 8  # one process of the two speaks
