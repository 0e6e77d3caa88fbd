"""Training at the edges of its numbers: NaN and infinity, updates too large or too small, samples of odd shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logodata.models import logprobs
from logotrain import guards, steps, trainer
from logotrain.cli import main
from logotrain.data.loading import load_data
from logotrain.loss.logprobs import SampleLogprobs
from logotrain.loss.objective import logo
from logotrain.recipe.objectives import LogoSettings
from logotrain.recipe.settings import PositionSettings, TrainRecipe
from logotrain.rows.collate import Collator
from logotrain.run import run
from tests.conftest import make_model

Samples = Callable[..., PreferenceSample]
Recipes = Callable[..., TrainRecipe]
Builds = Callable[..., Path]


def refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def metrics_of(out: Path) -> list[dict[str, Any]]:
    """Its lines, by a parser that takes no NaN and no Infinity."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refused) for line in lines]


def checkpoints_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.fixture
def command(make_recipe: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``command(out, **fields)``: the exit code of ``logotrain run`` and what it said; an error is its last line."""

    def call(out: Path, **fields: Any) -> tuple[int, str]:
        values = make_recipe(**fields).model_dump(mode="json")
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"train": values}))
        code = main(["run", str(tmp_path / "recipe.yaml"), "-o", str(out)])
        return code, capsys.readouterr().err.strip()

    return call


@pytest.fixture
def edited_model(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """``edited_model(edit, **config)``: the folder of a tiny model after ``edit(model)``."""

    def make(edit: Callable[[Any], None] = lambda _: None, name: str = "edited", **config: Any) -> str:
        model = make_model(len(tiny_tokenizer), **config)
        with torch.no_grad():
            edit(model)
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


# What is no number ----------------------------------------------------------------------------------------------------


def break_a_weight(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")


def overflow_the_head(model: Any) -> None:
    model.lm_head.weight.fill_(3e38)


@pytest.mark.parametrize("edit", [break_a_weight, overflow_the_head])
def test_a_model_without_numbers_stops_before_any_update(
    command: Callable[..., tuple[int, str]], edited_model: Callable[..., str], tmp_path: Path, edit: Any
) -> None:
    out = tmp_path / "run"
    code, said = command(out, model=edited_model(edit))
    assert code == 2
    line = said.splitlines()[-1]
    assert line.startswith("logotrain: error: step 1, sample s")
    assert "loss is nan (no update was made yet: try dtype=float32" in line
    assert not (out / "metrics.jsonl").exists()
    # Nothing binds the folder yet: the same command with a sound model.
    assert command(out)[0] == 0


@pytest.mark.parametrize("field", [{"objective.beta": 1e300}, {"objective.gamma": 1e300}])
def test_settings_beyond_float32_stop_with_one_line(
    command: Callable[..., tuple[int, str]], tmp_path: Path, field: dict[str, float]
) -> None:
    code, said = command(tmp_path / "run", **field)
    assert code == 2
    assert "loss is inf (no update was made yet" in said.splitlines()[-1]


@pytest.mark.parametrize("text", [".inf", ".nan", "1e999"])
def test_settings_are_numbers(make_recipe: Recipes, tmp_path: Path, capsys: Any, text: str) -> None:
    values = make_recipe().model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"train": values}))
    assert main(["run", str(tmp_path / "recipe.yaml"), f"optimizer.max_grad_norm={text}", "-o", str(tmp_path)]) == 2
    assert "optimizer.max_grad_norm" in capsys.readouterr().err


def test_an_impossible_response_is_named_though_its_loss_is_finite(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dis-preferred token of probability zero: an infinite margin, a preference loss of 0, and no number to log."""
    impossible = 268
    sample = make_sample("a", responses=(4, 3))
    worse = sample.rejected[0].model_copy(update={"token_ids": [7, impossible, 9]})
    folder = make_build([sample.model_copy(update={"rejected": [worse]})], name="impossible")
    original = logprobs.token_logprobs

    def masked(logits: Tensor, targets: Tensor) -> Tensor:
        return original(logits, targets).masked_fill(targets == impossible, -torch.inf)

    monkeypatch.setattr(logprobs, "token_logprobs", masked)
    with pytest.raises(UserError, match="step 1, sample a: margin is inf"):
        run(make_recipe(**{"data.path": str(folder)}), tmp_path / "run")
    certain = SampleLogprobs(torch.empty(0), [torch.tensor([-1.0]), torch.tensor([-torch.inf])])
    _, metrics = steps._sample_loss(sample, [certain], LogoSettings(), None)
    assert metrics.loss == pytest.approx(0.1)


def test_an_untrained_model_without_numbers_leaves_no_reference(
    make_recipe: Recipes, edited_model: Callable[..., str], tmp_path: Path
) -> None:
    recipe = make_recipe(objective={"name": "dpo"}, model=edited_model(break_a_weight))
    with pytest.raises(UserError, match=r"sample s\d: log-probability of the preferred response is nan"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "reference.jsonl").exists()


def break_gradient(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    """Let the loss of sample number ``at_call`` (from 0) be a number and its gradient none."""
    original, calls = steps._sample_loss, iter(range(10**6))

    def patched(*arguments: Any) -> Any:
        loss, metrics = original(*arguments)
        if next(calls) == at_call:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss, metrics

    monkeypatch.setattr(steps, "_sample_loss", patched)


def test_a_gradient_that_is_no_number_changes_nothing(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(**{"checkpoint.every_steps": 1})
    run(recipe, tmp_path / "whole")
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        break_gradient(patch, at_call=4)
        with pytest.raises(UserError, match=r"step 2, samples s\d, s\d, s\d: gradient norm is nan"):
            run(recipe, out)
    assert checkpoints_of(out) == ["step-1"]
    run(recipe, out)  # the same command goes on
    assert [line["loss"] for line in metrics_of(out)] == [line["loss"] for line in metrics_of(tmp_path / "whole")]


def test_of_many_samples_an_error_names_the_first(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_gradient(monkeypatch, at_call=4)
    with pytest.raises(UserError, match=r"step 1, samples s\d, s\d, s\d and 3 more: gradient norm is nan"):
        run(make_recipe(samples_per_step=6), tmp_path / "run")


# Updates that are too large or too small ------------------------------------------------------------------------------


def test_an_exploding_gradient_is_clipped_and_logged_as_it_was(make_recipe: Recipes, tmp_path: Path) -> None:
    norms: list[float] = []

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norms.append(torch.linalg.vector_norm(torch.cat([weight.grad.flatten() for weight in weights])).item())

    hook = register_optimizer_step_pre_hook(measure)
    try:
        run(make_recipe(**{"objective.beta": 1e4, "optimizer.max_grad_norm": 0.5, "max_steps": 1}), tmp_path / "run")
    finally:
        hook.remove()
    (line,) = metrics_of(tmp_path / "run")
    assert line["grad_norm"] > 1000
    assert norms == pytest.approx([0.5], rel=1e-4)


def test_a_learning_rate_of_one_collapses_and_keeps_what_was(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """All weights of a model move by one each: nothing of it is left."""
    out = tmp_path / "run"
    fields = {"tuning": "full", "epochs": 5, "checkpoint.every_steps": 1}
    code, said = command(out, **fields, **{"optimizer.lr": 1.0})
    assert code == 2
    line = said.splitlines()[-1]
    assert line.startswith("logotrain: error: step 2: the model collapsed: preferred responses have -")
    assert "start again in another -o with a lower optimizer.lr" in line
    assert checkpoints_of(out) == ["step-1"]
    assert not (out / "final").exists()
    # The same command meets the same step again; another learning rate is refused here, and trains elsewhere.
    code, said = command(out, **fields, **{"optimizer.lr": 1.0})
    assert (code, said.splitlines()[-1]) == (2, line)
    assert "continuing after step 1 of 10" in said
    code, said = command(out, **fields, **{"optimizer.lr": 1e-4})
    assert code == 2
    assert "started with optimizer.lr=1.0, now it is 0.0001" in said
    assert command(tmp_path / "other", **fields, **{"optimizer.lr": 1e-4})[0] == 0


@pytest.mark.parametrize("epochs", [1, 5])
def test_weights_that_are_no_numbers_reach_no_checkpoint(
    command: Callable[..., tuple[int, str]], tmp_path: Path, epochs: int
) -> None:
    """The step's loss and gradient are numbers; its update is not. As the only step of a run, and as the first."""
    out = tmp_path / "run"
    fields = {"optimizer.lr": 1e38, "checkpoint.every_steps": 1, "collapse.num_prompts": 0}
    code, said = command(out, samples_per_step=6, epochs=epochs, **fields)
    assert code == 2
    assert "step 1: the update made weights infinite or NaN (checkpoints from before" in said.splitlines()[-1]
    assert [line["step"] for line in metrics_of(out)] == [1]
    assert not (out / "final").exists()
    assert not list((out / "checkpoints").glob("step-*"))


def test_what_the_last_update_did_is_looked_at(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.1, 0.9])
    monkeypatch.setattr(guards, "measure_repetition", lambda *_: next(rates))
    with pytest.raises(UserError, match="step 1: the model collapsed: its continuations repeat 90%"):
        run(make_recipe(max_steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_updates_too_small_for_bfloat16_are_not_lost(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tuning: str
) -> None:
    """Adam's first step moves a weight by the learning rate: here a thousandth of the spacing of bfloat16 near it."""
    trained: list[Any] = []
    monkeypatch.setattr(trainer, "export", lambda model, *_, **__: trained.append(model))
    settings = {"optimizer.lr": 1e-6, "optimizer.weight_decay": 0.0, "lora.train_embeddings": True}
    run(make_recipe(tuning=tuning, dtype="bfloat16", max_steps=1, **settings), tmp_path / "run")
    after = trained[0].get_input_embeddings().weight
    if tuning == "full":
        after = after.full_tensor()
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir).get_input_embeddings().weight
    if tuning == "lora":
        before = before.bfloat16().float()  # what a frozen model in bfloat16 starts from
    moved = (after - before).abs()
    assert after.dtype == torch.float32
    assert (moved > 0).float().mean() > 0.2  # tokens of the samples
    assert moved.max().item() == pytest.approx(1e-6, rel=0.1)
    assert (after.bfloat16() == before.bfloat16()).float().mean() > 0.99  # there it would be lost


@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("gamma", [0.0, 3.0, 1e6])
def test_the_loss_of_extreme_settings_is_that_of_float64(beta: float, gamma: float) -> None:
    """sigmoid itself is 0 in float32 from an argument of -104 on, and its logarithm minus infinity."""
    found: list[tuple[Tensor, ...]] = []
    for dtype in (torch.float32, torch.float64):
        chosen = torch.tensor([-0.5, -3.0, -40.0], dtype=dtype, requires_grad=True)
        rejected = torch.tensor([[-4.0, -2.0], [-1.0, -2.0], [-0.5, -0.25]], dtype=dtype, requires_grad=True)
        loss = logo(chosen, rejected, beta=beta, gamma=gamma, sft_weight=0.1).loss
        found.append((loss, *torch.autograd.grad(loss.sum(), (chosen, rejected))))
    for single, double in zip(*found, strict=True):
        assert single.isfinite().all()
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-12)


# Data of odd shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "per_step", "warned"), [(1, 64, True), (6, 1000, True), (6, 12, False)])
def test_fewer_samples_than_a_step_takes_are_one_step_and_say_so(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path, capsys: Any,
    count: int, per_step: int, warned: bool,
) -> None:  # fmt: skip
    folder = make_build([make_sample(f"s{n}") for n in range(count)], name="few")
    run(make_recipe(**{"data.path": str(folder)}, samples_per_step=per_step), tmp_path / "run")
    said = f"warning: {2 * count} samples in all epochs, samples_per_step={per_step}: the whole run is one step"
    assert (said in capsys.readouterr().err) == warned
    (line,) = metrics_of(tmp_path / "run")
    assert line["tokens"] == 2 * count * (31 + 5 + 3 + 4)  # each sample twice, nothing filled up
    assert line["lr"] == 2e-3


def test_equal_responses_have_no_margin_and_are_warned_of(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path, capsys: Any
) -> None:
    sample = make_sample("a")
    equal = sample.model_copy(update={"rejected": [sample.chosen] * 2})
    folder = make_build([equal, make_sample("b")], name="equal")
    recipe = make_recipe(**{"data.path": str(folder), "samples_per_step": 1, "epochs": 1})
    run(recipe, tmp_path / "run")
    assert "warning: 1 of 2 samples, the first is a, have a dis-preferred response equal" in capsys.readouterr().err
    line = min(metrics_of(tmp_path / "run"), key=lambda line: abs(line["margin"]))
    assert line["margin"] == pytest.approx(0.0, abs=1e-5)
    assert line["preference_loss"] == pytest.approx(-torch.tensor(-0.25).sigmoid().log().item(), abs=1e-4)
    run(recipe.model_copy(update={"objective": make_recipe(objective={"name": "sft"}).objective}), tmp_path / "sft")
    assert "warning" not in capsys.readouterr().err  # which reads no dis-preferred one


def mean_logprob(model: Any, prompt: list[int], response: list[int]) -> float:
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        found = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return found.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean().item()


@pytest.mark.parametrize("lengths", [(1, 1, 1), (10_000, 3)])
def test_responses_of_one_token_and_of_ten_thousand(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, edited_model: Callable[..., str], tmp_path: Path,
    lengths: tuple[int, ...],
) -> None:  # fmt: skip
    sample = make_sample("a", responses=lengths)
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    name = edited_model(max_position_embeddings=16_384, **small)
    folder = make_build([sample], name="odd")
    fields = {"data.path": str(folder), "positions.mode": "natural", "epochs": 1, "collapse.num_prompts": 0}
    run(make_recipe(model=name, **fields), tmp_path / "run")
    (line,) = metrics_of(tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(name)
    chosen, *rejected = (
        mean_logprob(model, sample.prompt_ids, response.token_ids) for response in (sample.chosen, *sample.rejected)
    )
    assert line["chosen_logp"] == pytest.approx(chosen, abs=1e-4)
    assert line["rejected_logp"] == pytest.approx(sum(rejected) / len(rejected), abs=1e-4)
    assert line["tokens"] == 31 + sum(lengths)


def test_samples_of_a_step_may_have_different_numbers_of_responses(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path
) -> None:
    samples = [make_sample(f"m{n}", responses=(5, *range(2, 3 + n))) for n in range(3)]
    lines = []
    for name, part in (("all", samples), *((sample.id, [sample]) for sample in samples)):
        recipe = make_recipe(**{"data.path": str(make_build(part, name=name)), "epochs": 1, "row_tokens": 200})
        run(recipe, tmp_path / f"run-{name}")
        lines += metrics_of(tmp_path / f"run-{name}")
    together, *alone = lines
    for figure in ("loss", "margin", "rejected_logp", "accuracy", "rejected_ended"):
        assert together[figure] == pytest.approx(sum(line[figure] for line in alone) / 3, abs=1e-5), figure


@pytest.mark.parametrize(
    "objective",
    [{"name": "logo"}, {"name": "dpo"}, {"name": "sft", "tokens": "response"}, {"name": "sft", "tokens": "sequence"}],
)
def test_a_prompt_of_one_token(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path, tiny_model_dir: Path, objective: Any
) -> None:
    sample = make_sample("a").model_copy(update={"prompt_ids": [5], "chunks": []})
    folder = make_build([sample], name="short")
    run(make_recipe(**{"data.path": str(folder), "epochs": 1, "objective": objective}), tmp_path / "run")
    (line,) = metrics_of(tmp_path / "run")
    expected = mean_logprob(AutoModelForCausalLM.from_pretrained(tiny_model_dir), [5], sample.chosen.token_ids)
    assert line["chosen_logp"] == pytest.approx(expected, abs=1e-5)
    if objective["name"] == "sft":  # a prompt's first token is predicted by nothing
        assert line["loss"] == pytest.approx(-expected, abs=1e-5)


@pytest.mark.parametrize("token", [269, -1])
@pytest.mark.parametrize("place", ["prompt", "response"])
def test_ids_outside_the_vocabulary_name_their_sample(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, token: int, place: str
) -> None:
    sample = make_sample("bad")
    if place == "prompt":
        sample = sample.model_copy(update={"prompt_ids": [*sample.prompt_ids[:-1], token]})
    else:
        worse = sample.rejected[1].model_copy(update={"token_ids": [268, token]})
        sample = sample.model_copy(update={"rejected": [sample.rejected[0], worse]})
    folder = make_build([make_sample("good"), sample], name="outside")
    with pytest.raises(UserError, match=rf"sample bad: token id {token} is outside the model's vocabulary of 269"):
        load_data(make_recipe(**{"data.path": str(folder)}))


@pytest.mark.parametrize("mode", ["natural", "continuous", "sparse", "pose", "randpos"])
def test_a_sample_that_fills_the_window_has_natural_positions_in_every_mode(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, edited_model: Callable[..., str], tmp_path: Path,
    mode: Any,
) -> None:  # fmt: skip
    sample = make_sample("a", responses=(10, 4))  # 31 and 10 tokens
    row = Collator(PositionSettings(mode=mode), 41, seed=0)([(0, sample)])
    assert row.position_ids[0].tolist() == [*range(31), *range(31, 41), *range(31, 35)]
    recipe = make_recipe(
        model=edited_model(max_position_embeddings=41),
        **{"data.path": str(make_build([sample], name="full")), "positions.mode": mode, "epochs": 1},
    )
    run(recipe, tmp_path / "run")
    assert len(metrics_of(tmp_path / "run")) == 1


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_stored_in_another_type_are_computed_in_the_recipes(
    make_recipe: Recipes, edited_model: Callable[..., str], tmp_path: Path, stored: torch.dtype
) -> None:
    narrow = edited_model(lambda model: model.to(stored), name="narrow")
    wide = edited_model(lambda model: model.to(stored).float(), name="wide")
    for name in (narrow, wide):
        run(make_recipe(model=name, epochs=1, max_steps=1), tmp_path / f"run-{Path(name).name}")
    assert metrics_of(tmp_path / "run-narrow")[0]["loss"] == metrics_of(tmp_path / "run-wide")[0]["loss"]
    weights = load_file(tmp_path / "run-narrow" / "final" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_no_epochs_with_data_leave_the_model_as_it_was(
    make_recipe: Recipes, tiny_model_dir: Path, tmp_path: Path
) -> None:
    final = run(make_recipe(epochs=0), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    base, ids = AutoModelForCausalLM.from_pretrained(tiny_model_dir), torch.tensor([[3, 14, 15]])
    with torch.no_grad():
        before = base(input_ids=ids).logits.clone()
        assert torch.equal(PeftModel.from_pretrained(base, final)(input_ids=ids).logits, before)


def test_files_of_a_run_are_json_for_everybody(make_recipe: Recipes, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(make_recipe(objective={"name": "dpo"}), out)
    metrics_of(out)
    for file in [path for path in out.rglob("*.json*") if "checkpoints" not in path.parts]:
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(text, parse_constant=refused)
