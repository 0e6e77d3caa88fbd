"""The loop: it learns, it resumes bit for bit, it stops when it should."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logodata.dataset.samples import read_samples
from logotrain import steps, trainer
from logotrain.checkpoints import saving
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run
from tests.data_sets import TIMES

Samples = Callable[..., PreferenceSample]
Recipes = Callable[..., TrainRecipe]
Builds = Callable[..., Path]


def metrics_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def interfere(monkeypatch: pytest.MonkeyPatch, at_call: int, action: Callable[[], None]) -> None:
    """Run ``action`` before the loss of sample number ``at_call`` (from 0) is computed."""
    original, calls = steps._sample_loss, iter(range(10**6))

    def patched(*arguments: Any) -> Any:
        if next(calls) == at_call:
            action()
        return original(*arguments)

    monkeypatch.setattr(steps, "_sample_loss", patched)


def crash() -> None:
    raise RuntimeError("power cut")


def assert_same_run(found: Path, expected: Path) -> None:
    assert metrics_of(found) == metrics_of(expected)
    name = "final/adapter_model.safetensors"
    assert (found / name).read_bytes() == (expected / name).read_bytes()


def test_margin_rises_on_two_samples(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path
) -> None:
    folder = make_build([make_sample("a"), make_sample("b")], name="two")
    recipe = make_recipe(**{"data.path": str(folder), "epochs": 30, "samples_per_step": 2, "optimizer.lr": 1e-2})
    run(recipe, tmp_path / "run")
    metrics = metrics_of(tmp_path / "run")
    assert len(metrics) == 30
    assert metrics[-1]["margin"] > metrics[0]["margin"] + 1
    assert metrics[-1]["preference_loss"] < 0.2 < metrics[0]["preference_loss"]
    assert metrics[-1]["accuracy"] == 1


def test_first_step_measures_the_base_model(
    make_recipe: Recipes, build_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Step 1 over all samples, against mean log-probabilities of plain rows."""
    recipe = make_recipe(**{"samples_per_step": 6, "epochs": 1, "positions.mode": "natural"})
    run(recipe, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)

    def mean_logprob(prompt: list[int], response: list[int]) -> float:
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return logprobs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean().item()

    samples = read_samples(build_dir)
    chosen = [mean_logprob(s.prompt_ids, s.chosen.token_ids) for s in samples]
    rejected = [[mean_logprob(s.prompt_ids, r.token_ids) for r in s.rejected] for s in samples]
    margins = [c - sum(r) / len(r) for c, r in zip(chosen, rejected, strict=True)]
    (line,) = metrics_of(tmp_path / "run")
    assert line["chosen_logp"] == pytest.approx(sum(chosen) / 6, abs=1e-5)
    assert line["margin"] == pytest.approx(sum(margins) / 6, abs=1e-5)
    assert line["rejected_logp"] == pytest.approx(line["chosen_logp"] - line["margin"], abs=1e-5)
    assert line["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 6)
    assert line["sft_loss"] == pytest.approx(-line["chosen_logp"])
    assert line["loss"] == pytest.approx(line["preference_loss"] + 0.1 * line["sft_loss"], rel=1e-6)
    assert (line["chosen_ended"], line["rejected_ended"]) == (1.0, 0.5)
    lengths = [len(s.prompt_ids) + len(s.chosen.token_ids) + sum(len(r.token_ids) for r in s.rejected) for s in samples]
    assert line["tokens"] == sum(lengths)


def test_gradient_is_the_mean_over_the_steps_samples(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path
) -> None:
    """The same sample three times in one step moves the weights as it does once."""
    same = [make_sample("a").model_copy(update={"id": name}) for name in ("a", "b", "c")]
    folders = [make_build(same[:count], name=f"x{count}") for count in (1, 3)]
    norms = []
    for count, folder in zip((1, 3), folders, strict=True):
        fields = {"epochs": 1, "samples_per_step": count, "positions": {"mode": "natural"}}  # others follow the id
        recipe = make_recipe(**{"data.path": str(folder)}, **fields)
        run(recipe, tmp_path / f"run{count}")
        norms.append(metrics_of(tmp_path / f"run{count}")[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_recompute_gives_the_same_run(make_recipe: Recipes, tmp_path: Path) -> None:
    for recompute in ("none", "full"):
        run(make_recipe(recompute=recompute), tmp_path / recompute)
    assert_same_run(tmp_path / "full", tmp_path / "none")


def test_bfloat16_follows_float32(make_recipe: Recipes, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        run(make_recipe(dtype=dtype), tmp_path / dtype)
    exact, rounded = metrics_of(tmp_path / "float32"), metrics_of(tmp_path / "bfloat16")
    for a, b in zip(exact, rounded, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)
    weights = load_file(tmp_path / "bfloat16" / "final" / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.parametrize("how", ["killed", "sigterm"])
@pytest.mark.parametrize("at_call", [1, 4, 7, 11])  # in the middle of steps 1, 2, 3; last sample of all
def test_resumed_run_equals_an_uninterrupted_one(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, at_call: int
) -> None:
    # A kill may come before a checkpoint in the background is whole: what is there then is up to luck.
    recipe = make_recipe(**{"lora.train_embeddings": True, "checkpoint.asynchronous": how == "sigterm"})
    run(recipe, tmp_path / "whole")

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interfere(patch, at_call, crash if how == "killed" else lambda: os.kill(os.getpid(), signal.SIGTERM))
        # A signal during the very last sample comes too late to stop anything.
        if how == "sigterm" and at_call == 11:
            run(recipe, out)
        else:
            with pytest.raises(RuntimeError if how == "killed" else KeyboardInterrupt):
                run(recipe, out)
            assert not (out / "final").exists()
            steps_done = at_call // 3
            saved = {int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*")}
            # SIGTERM saves the last whole step; a kill leaves what every_steps=2 wrote.
            assert max(saved, default=0) == (steps_done if how == "sigterm" else steps_done // 2 * 2)
    torch.rand(3)
    run(recipe, out)
    assert_same_run(out, tmp_path / "whole")


def run_until_a_crash(recipe: TrainRecipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the fourth step of four."""
    with monkeypatch.context() as patch:
        interfere(patch, 10, crash)
        with pytest.raises(RuntimeError):
            run(recipe, out)


def test_damaged_newest_checkpoint_falls_back(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(**{"checkpoint.every_steps": 1, "checkpoint.asynchronous": False})
    run(recipe, tmp_path / "whole")
    out = tmp_path / "cut"
    run_until_a_crash(recipe, out, monkeypatch)
    (weights,) = (out / "checkpoints" / "step-3").glob("*.distcp")
    weights.write_bytes(weights.read_bytes()[:100])
    run(recipe, out)
    said = capsys.readouterr().err
    assert "step-3 is damaged" in said
    assert "continuing after step 2 of 4" in said
    assert_same_run(out, tmp_path / "whole")


def test_a_half_written_metrics_line_is_cut(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    run(recipe, tmp_path / "whole")
    out = tmp_path / "cut"
    run_until_a_crash(recipe, out, monkeypatch)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    run(recipe, out)
    assert_same_run(out, tmp_path / "whole")


def test_a_run_that_fails_writes_nothing_once_it_has_ended(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is free for the next one, which may begin the same checkpoint."""
    sealed = saving.seal

    def late(*arguments: Any) -> None:
        time.sleep(0.5)
        sealed(*arguments)

    monkeypatch.setattr(saving, "seal", late)
    interfere(monkeypatch, 6, crash)
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power cut"):
        run(make_recipe(), out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-2"]


def test_an_operation_that_loses_gradients_ends_the_run(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch only warns of one."""
    library = torch.library.Library("logotest", "DEF")
    library.define("same(Tensor x) -> Tensor")
    library.impl("same", torch.clone, "CPU")
    original = steps._sample_loss

    def patched(*arguments: Any) -> Any:
        loss, metrics = original(*arguments)
        return torch.ops.logotest.same(loss), metrics

    monkeypatch.setattr(steps, "_sample_loss", patched)
    with pytest.raises(UserWarning, match="logotest::same: an autograd kernel was not registered"):
        run(make_recipe(), tmp_path / "run")


def test_final_loads_in_peft_and_gives_the_trained_models_logits(
    make_recipe: Recipes, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[PeftModel] = []
    export = trainer.export

    def spy(model: PeftModel, *arguments: Any, **options: Any) -> None:
        trained.append(model)
        export(model, *arguments, **options)

    monkeypatch.setattr(trainer, "export", spy)
    recipe = make_recipe(**{"optimizer.lr": 1e-2})
    final = run(recipe, tmp_path / "run")

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    ids = torch.tensor([[3, 14, 15, 92, 65]])
    with torch.no_grad():
        before = base(input_ids=ids).logits.clone()
        loaded = PeftModel.from_pretrained(base, final)
        after = loaded(input_ids=ids).logits
        torch.testing.assert_close(after, trained[0](input_ids=ids).logits)
    assert (after - before).abs().max() > 0.01
    names = {"adapter_config.json", "adapter_model.safetensors", "base_config.json", "files.json"}
    assert {path.name for path in final.iterdir()} == names
    config = json.loads((final / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == recipe.model
    assert (config["r"], config["lora_alpha"], config["bias"], config["modules_to_save"]) == (4, 8, "none", None)
    assert config["target_modules"] == sorted(config["target_modules"])  # PEFT's order differs from process to process


def test_finished_run_says_so_and_changes_nothing(
    make_recipe: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    final = run(recipe, tmp_path / "run")
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert run(recipe, tmp_path / "run") == final
    assert "already finished" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_settings_data_or_model_are_refused(
    make_recipe: Recipes,
    build_dir: Path,
    make_build: Builds,
    make_sample: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interfere(patch, 4, crash)
        with pytest.raises(RuntimeError):
            run(make_recipe(), out)
    with pytest.raises(UserError, match=r"started with optimizer.lr=0.002, now it is 0.1"):
        run(make_recipe(**{"optimizer.lr": 0.1}), out)
    shutil.rmtree(build_dir)
    make_build([make_sample(f"s{n}", responses=(2, 2)) for n in range(6)])
    with pytest.raises(UserError, match="started with data="):
        run(make_recipe(), out)


def test_a_refused_recipe_can_be_mended_in_the_same_folder(make_recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no layer 'c_attn'"):
        run(make_recipe(**{"lora.target_modules": ["c_attn"]}), tmp_path / "run")
    assert run(make_recipe(), tmp_path / "run").is_dir()


def test_warns_when_the_data_start_far_behind(
    make_recipe: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_recipe(), tmp_path / "near")
    said = capsys.readouterr().err
    assert "base model, 3 samples: margin" in said
    assert "warning" not in said
    run(make_recipe(**{"objective.beta": 1000.0, "positions.mode": "natural"}), tmp_path / "far")
    assert "warning: beta * margin is below -10" in capsys.readouterr().err


def test_a_loss_that_is_no_number_names_the_sample(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = steps._sample_loss, []

    def broken(sample: PreferenceSample, *rest: Any) -> Any:
        calls.append(sample.id)
        loss, metrics = original(sample, *rest)
        return (loss, metrics.model_copy(update={"loss": float("nan")})) if len(calls) == 8 else (loss, metrics)

    monkeypatch.setattr(steps, "_sample_loss", broken)
    with pytest.raises(UserError, match="loss is nan") as caught:
        run(make_recipe(), tmp_path / "run")
    assert caught.value.where == f"step 3, sample {calls[7]}"
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2]


def test_stops_when_the_model_collapses(make_recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 1: the model collapsed.*min_chosen_logp=-1"):
        run(make_recipe(**{"collapse.min_chosen_logp": -1.0}), tmp_path / "run")
    run(make_recipe(**{"collapse.min_chosen_logp": None}), tmp_path / "other")


@pytest.mark.parametrize(
    ("left", "lost", "last"),
    [(lambda lines: lines[0] + lines[1] + lines[2][:20], 3, 2), (lambda lines: lines[0] + lines[2], 2, 1)],
    ids=["cut", "gap"],
)
def test_lost_metrics_are_made_again(
    make_recipe: Recipes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    left: Callable[[list[bytes]], bytes],
    lost: int,
    last: int,
) -> None:
    """A checkpoint whose steps the log has lost is not gone on from: their lines would be missing for good."""
    recipe = make_recipe(**{"checkpoint.every_steps": 1, "checkpoint.keep": None, "checkpoint.asynchronous": False})
    run(recipe, tmp_path / "whole")
    out = tmp_path / "cut"
    run_until_a_crash(recipe, out, monkeypatch)
    metrics = out / "metrics.jsonl"
    metrics.write_bytes(left(metrics.read_bytes().splitlines(keepends=True)))
    run(recipe, out)
    said = capsys.readouterr().err
    assert f"step-3 is damaged (metrics.jsonl lacks step {lost})" in said
    assert f"continuing after step {last} of 4" in said
    assert_same_run(out, tmp_path / "whole")


def test_a_damaged_result_is_written_again(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    weights = run(recipe, out) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with monkeypatch.context() as patch:
        interfere(patch, 0, crash)  # no step is done again
        run(recipe, out)
    assert "final is damaged (adapter_model.safetensors is not as it was written)" in capsys.readouterr().err
    assert weights.read_bytes() == whole
    assert (out / "final.damaged").is_dir()
    run(recipe, out)
    assert "already finished" in capsys.readouterr().err


def test_a_final_folder_that_is_not_the_runs_own_is_refused_and_left_alone(
    make_recipe: Recipes, tmp_path: Path
) -> None:
    foreign = tmp_path / "run" / "final"
    foreign.mkdir(parents=True)
    for names in ([], ["notes.txt"]):
        for name in names:
            (foreign / name).touch()
        with pytest.raises(UserError, match=r"final: holds no files\.json.*move it elsewhere"):
            run(make_recipe(), tmp_path / "run")
        assert [path.name for path in foreign.iterdir()] == names
    foreign.rename(tmp_path / "elsewhere")
    assert (run(make_recipe(), tmp_path / "run") / "files.json").is_file()


def test_a_run_of_no_epochs_is_bound_to_its_recipe_too(make_recipe: Recipes, tmp_path: Path) -> None:
    """It logs no step, but its result belongs to one scaling."""

    def recipe(factor: int) -> TrainRecipe:
        return make_recipe(**{"data.path": None}, epochs=0, rope={"type": "yarn", "factor": factor})

    out = tmp_path / "run"
    final = run(recipe(4), out)
    with pytest.raises(UserError, match=r"started with rope.factor=4.0, now it is 2.0"):
        run(recipe(2), out)
    assert json.loads((out / "recipe.resolved.json").read_text())["rope"]["factor"] == 4
    assert run(recipe(4), out) == final
