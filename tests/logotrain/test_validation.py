"""Held-out figures while training: they are right, they change nothing, they survive a stop, and they choose a step."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logodata.dataset.samples import read_samples
from logotrain import guards, steps, trainer
from logotrain.data.loading import load_data
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run
from tests.data_sets import TIMES
from tests.logotrain.conftest import sample_of

Recipes = Callable[..., TrainRecipe]
Builds = Callable[..., Path]


def lines_of(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def held_out_of(out: Path) -> list[dict[str, Any]]:
    return lines_of(out / "validation.jsonl")


@pytest.fixture
def held_out(make_build: Builds) -> Path:
    """Five samples, none of which is trained on."""
    return make_build([sample_of(f"v{n}", responses=(4 + n, 3, 5)) for n in range(5)], name="held-out")


def margins(model: Any, samples: list[PreferenceSample]) -> tuple[float, float]:
    """The mean margin and the mean log-probability of preferred responses, by plain rows."""

    def mean_logprob(prompt: list[int], response: list[int]) -> float:
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return logprobs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean().item()

    chosen = [mean_logprob(s.prompt_ids, s.chosen.token_ids) for s in samples]
    rejected = [[mean_logprob(s.prompt_ids, r.token_ids) for r in s.rejected] for s in samples]
    lead = [c - sum(r) / len(r) for c, r in zip(chosen, rejected, strict=True)]
    return sum(lead) / len(lead), sum(chosen) / len(chosen)


@pytest.mark.parametrize("sharing", ["prompt", "none"])
def test_figures_are_those_of_plain_rows_before_and_after(
    make_recipe: Recipes, held_out: Path, tiny_model_dir: Path, tmp_path: Path, sharing: str
) -> None:
    recipe = make_recipe(
        **{"data.validation": str(held_out), "positions.mode": "natural", "optimizer.lr": 1e-2, "sharing": sharing}
    )
    final = run(recipe, tmp_path / "run")
    first, last = held_out_of(tmp_path / "run")
    assert (first["step"], last["step"]) == (0, 4)
    samples = read_samples(held_out)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    margin, chosen = margins(base, samples)
    assert (first["margin"], first["chosen_logp"]) == pytest.approx((margin, chosen), abs=1e-5)
    trained = PeftModel.from_pretrained(base, final)
    margin, chosen = margins(trained, samples)
    assert (last["margin"], last["chosen_logp"]) == pytest.approx((margin, chosen), abs=1e-5)
    assert abs(last["margin"] - first["margin"]) > 1e-3


@pytest.mark.parametrize("objective", [{}, {"name": "dpo"}, {"name": "sft", "tokens": "sequence"}])
def test_training_is_the_same_with_and_without(
    make_recipe: Recipes, held_out: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    fields = {"objective": objective} if objective else {}
    run(make_recipe(**fields), tmp_path / "without")
    validated = make_recipe(**{"data.validation": str(held_out), "validation.every_steps": 1}, **fields)
    run(validated, tmp_path / "with")
    assert lines_of(tmp_path / "with" / "metrics.jsonl") == lines_of(tmp_path / "without" / "metrics.jsonl")
    name = "final/adapter_model.safetensors"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert [line["step"] for line in held_out_of(tmp_path / "with")] == [0, 1, 2, 3, 4]


def test_dpo_starts_at_ln_2_on_held_out_samples_too(make_recipe: Recipes, held_out: Path, tmp_path: Path) -> None:
    run(make_recipe(**{"data.validation": str(held_out)}, objective={"name": "dpo"}), tmp_path / "run")
    first, last = held_out_of(tmp_path / "run")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert last["loss"] != pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("how", ["killed", "sigterm"])
@pytest.mark.parametrize("at_call", [0, 3, 7, 12, 20, 26])  # in validations at 0, 1, 2 and in steps
def test_a_stopped_run_goes_on_to_the_same_figures(
    make_recipe: Recipes, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, at_call: int
) -> None:
    recipe = make_recipe(
        **{
            "data.validation": str(held_out),
            "validation.every_steps": 1,
            "validation.final": "best",
            "checkpoint.keep": 1,
            "checkpoint.asynchronous": how == "sigterm",  # what a kill leaves of a write in the background is luck
        },
        objective={"name": "dpo"},
    )
    run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        original, calls = steps._sample_loss, iter(range(10**6))

        def interfere(*arguments: Any) -> Any:
            if next(calls) == at_call:
                if how == "killed":
                    raise RuntimeError("power cut")
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        patch.setattr(steps, "_sample_loss", interfere)
        with pytest.raises(RuntimeError if how == "killed" else KeyboardInterrupt):
            run(recipe, tmp_path / "cut")
    assert not (tmp_path / "cut" / "final").exists()
    run(recipe, tmp_path / "cut")
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert lines_of(tmp_path / "cut" / name) == lines_of(tmp_path / "whole" / name)
    name = "final/adapter_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_was_measured_before_the_settings_changed_is_measured_anew(
    make_recipe: Recipes, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be stopped after the held-out samples of the untrained model and before its first step."""

    def recipe(**more: Any) -> TrainRecipe:
        return make_recipe(**{"data.validation": str(held_out), **more}, objective={"name": "dpo"})

    changed = {"rope.type": "yarn", "rope.factor": 2}
    run(recipe(**changed), tmp_path / "fresh")
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> None:
            raise UserError("stopped")

        patch.setattr(trainer, "train_step", fail)
        with pytest.raises(UserError, match="stopped"):
            run(recipe(), tmp_path / "run")
    assert [line["step"] for line in held_out_of(tmp_path / "run")] == [0]
    run(recipe(**changed), tmp_path / "run")
    for name in ("metrics.jsonl", "validation.jsonl", "validation-reference.jsonl"):
        assert lines_of(tmp_path / "run" / name) == lines_of(tmp_path / "fresh" / name)


def test_a_run_that_is_given_up_is_asked_whether_it_collapsed(
    make_recipe: Recipes, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, [9.0, 1.0, 2.0, 3.0, 0.0])
    rates = iter([0.0, 0.9])  # of the untrained model, and of the last one
    monkeypatch.setattr(guards, "measure_repetition", lambda *_: next(rates))
    fields = {"data.validation": str(held_out), "validation.every_steps": 1, "validation.patience": 2}
    recipe = make_recipe(**fields, **{"collapse.every_steps": 100, "collapse.num_prompts": 1})
    with pytest.raises(UserError, match=r"step 3: the model collapsed: its continuations repeat 90%"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()


def spoil(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let measurements after steps 0, 1, ... have these losses."""
    original = trainer.measure

    def measure(run: Any, *arguments: Any, step: int, **options: Any) -> Any:
        found = original(run, *arguments, step=step, **options)
        return found.model_copy(update={"loss": losses[step]})

    monkeypatch.setattr(trainer, "measure", measure)


@pytest.mark.parametrize(
    ("losses", "fields", "trained", "best"),
    [
        ([9.0, 3.0, 1.0, 2.0, 4.0], {}, 4, 2),
        ([9.0, 3.0, 1.0, 2.0, 4.0], {"validation.patience": 2}, 4, 2),
        ([9.0, 1.0, 2.0, 3.0, 0.0], {"validation.patience": 2}, 3, 1),
        ([0.0, 1.0, 1.0, 1.0, 1.0], {"validation.patience": 3}, 4, 1),  # the first of equals; step 0 is no result
    ],
)
def test_the_best_step_is_kept_and_exported(
    make_recipe: Recipes,
    held_out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    losses: list[float],
    fields: dict[str, Any],
    trained: int,
    best: int,
) -> None:
    spoil(monkeypatch, losses)
    always = {"data.validation": str(held_out), "validation.every_steps": 1, "checkpoint.keep": 1}
    out = tmp_path / "run"
    final = run(make_recipe(**always, **{"validation.final": "best"}, **fields), out)
    assert len(lines_of(out / "metrics.jsonl")) == trained
    assert {path.name for path in (out / "checkpoints").glob("step-*")} == {f"step-{best}", f"step-{trained}"}
    adapter = "adapter_model.safetensors"
    expected = (out / "checkpoints" / f"step-{best}" / "adapter" / adapter).read_bytes()
    assert (final / adapter).read_bytes() == expected
    said = capsys.readouterr().err
    assert f"best step by loss: {best} (" in said
    assert ("no step is better than the model was before training" in said) == (min(losses) == losses[0])
    assert ("final/ holds it" in said) == (best != trained)


def test_documents_are_held_out_whole(make_recipe: Recipes, make_build: Builds) -> None:
    samples = [sample_of(f"s{n}").model_copy(update={"doc_id": f"d{n % 5}"}) for n in range(15)]
    folder = make_build(samples, name="five")
    recipe = make_recipe(**{"data.path": str(folder), "data.validation": 0.4})
    data = load_data(recipe)
    held_out, trained = ({sample.doc_id for sample in part} for part in (data.validation, data.samples))
    assert (len(held_out), len(trained)) == (2, 3)
    assert not held_out & trained
    assert sorted(sample.id for sample in (*data.samples, *data.validation)) == sorted(sample.id for sample in samples)
    assert {sample.doc_id for sample in load_data(recipe).validation} == held_out
    drawn = [
        {sample.doc_id for sample in load_data(recipe.model_copy(update={"seed": seed})).validation}
        for seed in range(8)
    ]
    assert len({tuple(sorted(documents)) for documents in drawn}) > 1
    for share, count in ((0.01, 1), (0.99, 4)):
        data = load_data(make_recipe(**{"data.path": str(folder), "data.validation": share}))
        assert len({sample.doc_id for sample in data.validation}) == count


def test_one_document_cannot_be_shared(make_recipe: Recipes) -> None:
    with pytest.raises(UserError, match=r"data\.validation=0\.5 holds out documents, and all samples are of one"):
        load_data(make_recipe(**{"data.validation": 0.5}))


def test_documents_that_are_trained_on_are_named(
    make_recipe: Recipes, held_out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_data(make_recipe(**{"data.validation": str(held_out)}))
    assert "warning: 5 of 5 samples" in capsys.readouterr().err


def test_lost_figures_are_missed(make_recipe: Recipes, held_out: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = make_recipe(**{"data.validation": str(held_out), "validation.every_steps": 1})
    run(recipe, out)
    (out / "final").rename(tmp_path / "elsewhere")
    lines = (out / "validation.jsonl").read_text().splitlines(keepends=True)
    (out / "validation.jsonl").write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(UserError, match="lacks the figures of step 1"):
        run(recipe, out)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 2, "loss": NaN', "loss is nan"),
        ('{"step": 1, "loss": 1.0', "its step is not after the one before"),
    ],
)
def test_damaged_figures_are_no_best_step(
    make_recipe: Recipes, held_out: Path, tmp_path: Path, line: str, said: str
) -> None:
    out = tmp_path / "run"
    recipe = make_recipe(**{"data.validation": str(held_out), "validation.every_steps": 1})
    run(recipe, out)
    (out / "final").rename(tmp_path / "elsewhere")
    lines = (out / "validation.jsonl").read_text().splitlines()
    rest = lines[2][lines[2].index(', "preference_loss"') :]
    (out / "validation.jsonl").write_text("\n".join([*lines[:2], line + rest, *lines[3:]]) + "\n")
    with pytest.raises(UserError, match=said):
        run(recipe, out)


@pytest.mark.parametrize("field", [{"validation.final": "best"}, {"validation.patience": 2}])
def test_a_choice_among_measurements_needs_held_out_samples(make_recipe: Recipes, field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"there are no held-out samples; set data\.validation"):
        make_recipe(**field)


@pytest.mark.parametrize("share", [0.0, 1.0, 5])
def test_a_share_is_less_than_all(make_recipe: Recipes, share: float) -> None:
    with pytest.raises(ValueError, match="a share lies between 0 and 1"):
        make_recipe(**{"data.validation": share})


def test_a_metric_that_is_not_computed_is_refused(make_recipe: Recipes) -> None:
    with pytest.raises(ValueError, match="objective sft computes no margin"):
        make_recipe(**{"validation.metric": "margin"}, objective={"name": "sft"})
