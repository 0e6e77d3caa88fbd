"""Models of all kinds train, stop, go on and merge through the command line, and what they compute is their own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from logodata.dataset.samples import read_samples
from logodata.models.loading import load_model
from logotrain.attention.choice import choose_attention
from logotrain.cli import main
from logotrain.loss.logprobs import LogprobModel
from logotrain.plan.shape import model_shape
from logotrain.recipe.settings import PositionSettings
from logotrain.rows.collate import Collator, Row
from logotrain.trainable import read_traits
from tests.data_sets import TIMES
from tests.distributed.folders import RunFolders
from tests.tiny_models import MODELS, VOCABULARY, make_tiny, save_tiny

pytestmark = pytest.mark.slow

Make = Callable[..., str]

SEPARATE = {"qwen3_5", "bloom", "gemma2", "stablelm", "falcon_h1"}
"""Models whose responses get separate rows on a CPU: no kernel there caps Gemma 2's scores."""


@pytest.fixture
def make_model_dir(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Make:
    return lambda name: save_tiny(name, tiny_tokenizer, tmp_path / name)


def own_logprobs(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """Of the row's targets, by the model's own forward of each response after its prompt, one by one."""
    found = []
    for start, firsts, sample in zip(
        row.layout.sample_starts, row.layout.response_starts, row.layout.samples, strict=True
    ):
        prompt = list(range(start, start + sample.prompt_length))
        for first, length in zip(firsts, sample.response_lengths, strict=True):
            indices = [*prompt, *range(first, first + length)]
            ids, positions = row.input_ids[:, indices], row.position_ids[:, indices]
            with torch.no_grad():
                output = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids))
            at = torch.arange(len(prompt) - 1, len(indices) - 1)
            found.append(output.logits[0].float().log_softmax(-1)[at, ids[0, len(prompt) :]])
    return torch.cat(found)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_goes_on_and_merges(
    name: str, make_model_dir: Make, build_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first margin is that of the model's own forward. A run that was killed after its second step goes on to the
    losses and the adapter of the uninterrupted one."""
    folder = make_model_dir(name)
    positions = "natural" if name == "bloom" else "mixed"
    settings = [
        "dtype=float32",
        "samples_per_step=6",  # all samples of the folder
        "epochs=4",
        "optimizer.lr=2e-3",
        "lora.rank=4",
        "collapse.max_new_tokens=5",
        f"positions.mode={positions}",
        "checkpoint.every_steps=1",
        "checkpoint.keep=null",
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train = ["run", "--model", folder, "--data", str(build_dir), *settings]
    assert main([*train, "-o", str(whole)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("a row for each response" in said) == (name in SEPARATE)

    RunFolders(tmp_path).cut("whole", "cut", after=2)
    assert main([*train, "-o", str(cut)]) == 0
    assert "continuing after step 2 of 4" in " ".join(capsys.readouterr().err.split())
    assert metrics(cut) == metrics(whole)
    adapters = [load_file(run / "final" / "adapter_model.safetensors") for run in (whole, cut)]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())

    model = load_model(folder, dtype="float32")
    model.set_attn_implementation(read_traits(model.config).separate)
    samples = read_samples(build_dir)
    collator = Collator(PositionSettings(mode=positions), 256, seed=0)
    margins = []
    for sample in samples:
        row = collator([(0, sample)])
        means = [values.mean() for values in own_logprobs(model, row).split(list(row.num_targets[0][1:]))]
        margins.append(float(means[0] - torch.stack(means[1:]).mean()))
    assert metrics(whole)[0]["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)

    assert not any(part in name for name in adapters[0] for part in ("vision", "visual", "projector", "merger"))

    merged = tmp_path / "merged"
    assert main(["merge", str(whole / "final"), "--model", folder, "-o", str(merged)]) == 0
    one = load_model(str(merged), dtype="float32")
    assert type(one) is type(model)
    other = PeftModel.from_pretrained(load_model(folder, dtype="float32"), str(whole / "final"))
    ids = torch.tensor([samples[0].prompt_ids])
    with torch.no_grad():
        torch.testing.assert_close(
            one(input_ids=ids).logits, other(input_ids=ids).logits, rtol=0, atol=2e-4, check_dtype=False
        )


def test_full_tuning_leaves_what_sees_as_it_was_and_goes_on(
    make_model_dir: Make, build_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole, cut = make_model_dir("llava"), tmp_path / "whole", tmp_path / "cut"
    train = ["run", "--model", folder, "--data", str(build_dir), "tuning=full", "dtype=float32", "max_steps=3"]
    train += ["samples_per_step=2", "checkpoint.every_steps=1", "checkpoint.keep=null", "collapse.num_prompts=0"]
    train += ["optimizer.lr=1e-3", "optimizer.weight_decay=0.1"]
    assert main([*train, "-o", str(whole)]) == 0
    counts = re.findall(r"([\d,]+) of ([\d,]+) weights are trained", " ".join(capsys.readouterr().err.split()))
    RunFolders(tmp_path).cut("whole", "cut", after=1)
    assert main([*train, "-o", str(cut)]) == 0
    assert "continuing after step 1 of 3" in " ".join(capsys.readouterr().err.split())
    assert metrics(cut) == metrics(whole)

    base, tuned, again = (load_model(str(path), dtype="float32") for path in (folder, whole / "final", cut / "final"))
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in again.named_parameters())
    kept = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert kept == {name for name in before if "vision_tower" in name or "multi_modal_projector" in name}
    shape = model_shape(base.config)
    assert shape.unread_parameters == sum(before[name].numel() for name in kept)
    assert counts == [(f"{shape.parameters - shape.unread_parameters:,}", f"{shape.parameters:,}")]


def test_a_model_without_attention_trains(
    tiny_tokenizer: PreTrainedTokenizerBase, build_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sizes = tmp_path / "mamba", {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
    make_tiny("mamba", vocab_size=VOCABULARY, max_position_embeddings=256, **sizes).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    run = ["run", "--model", str(folder), "--data", str(build_dir), "dtype=float32", "max_steps=1"]
    run += ["positions.mode=natural", "lora.target_modules=[in_proj,x_proj]"]
    assert main([*run, "-o", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert len(metrics(tmp_path / "run")) == 1
    run[-1] = "lora.target_modules=all-linear"
    assert main([*run, "-o", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "lora.target_modules: PEFT has no adapters for out_proj: " in error
    assert "leave them out: lora.target_modules=[dt_proj,in_proj,x_proj]" in error


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The log of a run, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_the_models_own_forward(name: str, make_model_dir: Make, build_dir: Path) -> None:
    """In float32, as the run computes them on this device; also without sharing."""
    folder = make_model_dir(name)
    model = load_model(folder, dtype="float32")
    traits = read_traits(model.config)
    choice = choose_attention(traits, torch.device("cpu"), torch.float32)
    assert choice.shared == (name not in SEPARATE)
    scorer = LogprobModel(model, plain_attention=traits.separate)
    mode = "mixed" if traits.takes_gaps else "natural"
    row = Collator(PositionSettings(mode=mode), 256, seed=0)([(0, sample) for sample in read_samples(build_dir)[:2]])
    model.set_attn_implementation(traits.separate)
    expected = own_logprobs(model, row)
    with torch.no_grad():
        torch.testing.assert_close(scorer(row), expected, rtol=0, atol=1e-4)
        with choice.of(model):
            torch.testing.assert_close(scorer(row), expected, rtol=0, atol=1e-4)
    assert math.isfinite(float(expected.sum()))
