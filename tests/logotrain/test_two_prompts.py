"""Objectives that read a sample under a short and a whole prompt: rows, losses, references, runs and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerBase

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logodata.models.loading import load_config
from logodata.prompts import ANSWER_TEMPLATE, PromptFormat
from logotrain import steps
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.data.loading import load_data
from logotrain.guards import check_chosen
from logotrain.interrupt import Stopped
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.loss.objective import dpo, ipo, longpo, orpo, simpo, solopo
from logotrain.loss.routers import RouterRecord
from logotrain.recipe.objectives import (
    DpoSettings,
    IpoSettings,
    LogoSettings,
    LongpoSettings,
    ObjectiveSettings,
    OrpoSettings,
    RowPart,
    SimpoSettings,
    SolopoSettings,
    WrappedSettings,
)
from logotrain.recipe.settings import CollapseSettings, PositionSettings, TrainRecipe
from logotrain.rows.collate import Collator, short_prompt
from logotrain.run import run
from logotrain.schedule import Schedule
from tests.distributed.folders import RunFolders
from tests.distributed.gradients import in_float64
from tests.logotrain.attention.test_shared_prefix import ExactNorm
from tests.logotrain.test_trainer import interfere, metrics_of
from tests.tiny_models import save_tiny

Samples = Callable[..., PreferenceSample]
Recipes = Callable[..., TrainRecipe]
Builds = Callable[..., Path]

SOLOPO = SolopoSettings(loss=SimpoSettings(beta=2.0, gamma=0.5), alpha=0.7)
SOLOPO_DPO = SolopoSettings(loss=DpoSettings(beta=0.5), alpha=0.7)
WRAPPED: tuple[WrappedSettings, ...] = (
    SimpoSettings(beta=2.0, gamma=0.5),
    DpoSettings(beta=0.5),
    OrpoSettings(preference_weight=0.3),
    LogoSettings(beta=2.0, gamma=0.5, sft_weight=0.1),
)


# Prompts and rows ----------------------------------------------------------------------------------------------------


def test_a_short_prompt_is_the_prompt_of_the_critical_chunks_alone(
    tiny_tokenizer: PreTrainedTokenizerBase, make_sample: Samples
) -> None:
    prompts = PromptFormat(tiny_tokenizer, ANSWER_TEMPLATE)
    chunks = [tiny_tokenizer.encode(text, add_special_tokens=False) for text in ("One.", "Two owls", "", "Four ")]
    whole = prompts.encode(chunks, question="Who?")
    sample = make_sample("a", chunks=4)
    for critical in product([True, False], repeat=4):
        placed = [
            chunk.model_copy(update={"token_start": start, "token_end": end, "critical": is_critical})
            for chunk, (start, end), is_critical in zip(sample.chunks, whole.chunk_spans, critical, strict=True)
        ]
        found = short_prompt(sample.model_copy(update={"prompt_ids": list(whole.ids), "chunks": placed}))
        kept = [chunk for chunk, is_critical in zip(chunks, critical, strict=True) if is_critical]
        assert found == list(prompts.encode(kept, question="Who?").ids)


def collator(settings: ObjectiveSettings, *, mode: str = "continuous", reference: bool = False) -> Collator:
    parts = settings.reference_parts if reference else settings.parts
    return Collator(PositionSettings.model_validate({"mode": mode}), 500, seed=0, parts=parts)


def test_a_row_of_two_prompts(make_sample: Samples) -> None:
    sample = make_sample("a", responses=(3, 1, 2))
    head, first, _, last, tail = (
        sample.prompt_ids[at] for at in (slice(3), slice(3, 11), slice(11, 19), slice(19, 27), slice(27, None))
    )
    responses = [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected)]
    row = collator(SOLOPO)([(0, sample)])
    short = [*head, *first, *last, *tail]
    assert short_prompt(sample) == short
    assert row.input_ids[0].tolist() == [
        *short,
        *responses[0],
        *responses[1],
        *responses[2],
        *sample.prompt_ids,
        *responses[0],
    ]
    assert row.num_targets == ((0, 3, 1, 2), (0, 3))
    assert row.targets.tolist() == [*responses[0], *responses[1], *responses[2], *responses[0]]
    assert row.gather_index.tolist() == [22, 23, 24, 22, 22, 27, 29 + 30, 29 + 31, 29 + 32]
    positions = row.position_ids[0].tolist()
    assert positions[:29] == [*range(23), 23, 24, 25, 23, 23, 24]
    # The whole prompt has the gaps that it has in a run without a short one, with the same response to make room for.
    alone = collator(SOLOPO).parts[1:]
    assert (
        positions[29:]
        == Collator(PositionSettings(mode="continuous"), 500, 0, alone)([(0, sample)]).position_ids[0].tolist()
    )
    assert positions[29:60] != list(range(31))


def test_a_longpo_reference_sees_the_short_prompt_at_natural_positions(make_sample: Samples) -> None:
    sample = make_sample("a")
    rows = [collator(LongpoSettings(), reference=True)([(epoch, sample)]) for epoch in (0, 1)]
    assert rows[0].input_ids[0, :23].tolist() == short_prompt(sample)
    assert rows[0].position_ids[0, :23].tolist() == list(range(23))
    assert torch.equal(rows[0].position_ids, rows[1].position_ids)
    assert rows[0].num_targets == ((0, 5, 3, 4),)
    assert collator(LongpoSettings())([(0, sample)]).num_targets == ((30, 5, 3, 4),)


# Losses on shared rows, against separate ones -------------------------------------------------------------------------


def logprobs_alone(
    model: LlamaForCausalLM, prompt: Sequence[int], positions: Sequence[int], response: Sequence[int]
) -> Tensor:
    """[P - 1 + R], by the model's own forward of one sequence."""
    ids = torch.tensor([[*prompt, *response]])
    places = torch.tensor([[*positions, *range(positions[-1] + 1, positions[-1] + 1 + len(response))]])
    logits = model(input_ids=ids, position_ids=places, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def by_formula(
    settings: ObjectiveSettings,
    short: list[Tensor],
    whole: list[Tensor],
    prompt: Tensor,
    references: dict[str, list[Tensor]],
) -> Tensor:
    """The loss from the log-probabilities of all sequences, each put into the paper's formula here."""

    def sums(values: list[Tensor]) -> tuple[Tensor, Tensor]:
        return values[0].sum()[None], torch.stack([value.sum() for value in values[1:]])[None]

    def means(values: list[Tensor]) -> tuple[Tensor, Tensor]:
        return values[0].mean()[None], torch.stack([value.mean() for value in values[1:]])[None]

    ones = torch.ones(1), torch.ones(1, len(whole) - 1)  # lengths do not matter to the loss
    match settings:
        case OrpoSettings(preference_weight=weight):
            return orpo(*means(whole), preference_weight=weight).loss
        case IpoSettings(tau=tau):
            return ipo(*means(whole), *means(references["whole"]), tau=tau).loss
        case LongpoSettings(beta=beta, preference_weight=weight):
            preference = dpo(*sums(whole), *sums(references["short"]), *ones, beta=beta)
            nll = -(prompt.sum() + whole[0].sum()) / (len(prompt) + len(whole[0]))
            return longpo(preference, nll[None], preference_weight=weight).loss
        case SolopoSettings(loss=SimpoSettings(beta=beta, gamma=gamma), alpha=alpha):
            rewards = [beta * values[0].mean()[None] for values in (short, whole)]
            return solopo(simpo(*means(short), beta=beta, gamma=gamma), *rewards, alpha=alpha).loss
        case SolopoSettings(loss=DpoSettings(beta=beta), alpha=alpha):
            pairs = ((short, references["short"]), (whole, references["whole"]))
            rewards = [beta * (values[0].sum() - of[0].sum())[None] for values, of in pairs]
            return solopo(dpo(*sums(short), *sums(references["short"]), *ones, beta=beta), *rewards, alpha=alpha).loss
    raise AssertionError(settings)


def shared_loss(
    model: LogprobModel,
    sample: PreferenceSample,
    settings: ObjectiveSettings,
    reference: LogprobModel,
    *,
    mode: str = "continuous",
) -> Tensor:
    """The loss of a sample that shares its row with another one, before it and behind it, as training computes it."""
    other = sample.model_copy(update={"id": "other", "chosen": sample.rejected[0]})
    expected = None
    if settings.reference_parts:
        row = collator(settings, mode=mode, reference=True)([(0, sample)])
        with use_shared_prefix(reference.causal_lm), torch.no_grad():
            parts = split_logprobs(reference(row), row)
        expected = torch.stack([values.sum() for part in parts for values in part.responses])
    row = collator(settings, mode=mode)([(0, other), (0, sample), (0, other)])
    count = len(settings.parts)
    with use_shared_prefix(model.causal_lm):
        parts = split_logprobs(model(row), row)[count : 2 * count]
    loss, _ = steps._sample_loss(sample, parts, settings, expected)
    return loss


@pytest.fixture
def models(tiny_model: LlamaForCausalLM) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A model, and another one as its reference, in float64 throughout."""
    torch.manual_seed(1)
    both = tiny_model.double(), LlamaForCausalLM(tiny_model.config).double()
    for model in both:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = ExactNorm(module)
    return both


@pytest.mark.parametrize(
    "settings",
    [
        OrpoSettings(preference_weight=0.3),
        IpoSettings(tau=0.4),
        LongpoSettings(preference_weight=0.5),
        SOLOPO,
        SOLOPO_DPO,
    ],
    ids=["orpo", "ipo", "longpo", "solopo", "solopo-dpo"],
)
def test_shared_rows_equal_separate_ones(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], make_sample: Samples, settings: ObjectiveSettings
) -> None:
    model, reference = models
    sample = make_sample("a")
    responses = [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected)]
    place = len(settings.parts) - 1
    row = collator(settings)([(0, sample)])
    start = row.layout.sample_starts[place]
    positions = row.position_ids[0, start : start + 31].tolist()

    def alone(causal_lm: LlamaForCausalLM, *, short: bool) -> tuple[Tensor, list[Tensor]]:
        prompt, at = (short_prompt(sample), list(range(23))) if short else (sample.prompt_ids, positions)
        found = [logprobs_alone(causal_lm, prompt, at, response) for response in responses]
        return found[0][: len(prompt) - 1], [values[len(prompt) - 1 :] for values in found]

    with torch.no_grad():
        references = {name: alone(reference, short=name == "short")[1] for name in ("short", "whole")}
    prompt, whole = alone(model, short=False)
    expected = by_formula(settings, alone(model, short=True)[1], whole, prompt, references)[0]
    expected_gradients = torch.autograd.grad(expected, list(model.parameters()))
    found = shared_loss(LogprobModel(model), sample, settings, LogprobModel(reference))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(found, list(model.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-3
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wrapped", WRAPPED, ids=lambda settings: settings.name)
def test_solopo_of_two_equal_prompts_is_the_wrapped_loss(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], make_sample: Samples, wrapped: WrappedSettings
) -> None:
    sample = make_sample("a")
    chunks = [chunk.model_copy(update={"critical": True}) for chunk in sample.chunks]
    sample = sample.model_copy(update={"chunks": chunks})
    assert short_prompt(sample) == sample.prompt_ids
    model, reference = (LogprobModel(one) for one in models)
    expected = shared_loss(model, sample, wrapped, reference, mode="natural")
    parameters = list(model.parameters())
    expected_gradients = torch.autograd.grad(expected, parameters)
    for alpha in (0.0, 5.0):
        found = shared_loss(model, sample, SolopoSettings(loss=wrapped, alpha=alpha), reference, mode="natural")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        for gradient, other in zip(torch.autograd.grad(found, parameters), expected_gradients, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)


# Runs ----------------------------------------------------------------------------------------------------------------

OBJECTIVES: dict[str, dict[str, Any]] = {
    "orpo": {"name": "orpo"},
    "ipo": {"name": "ipo", "tau": 0.5},
    "solopo-orpo": {"name": "solopo", "loss": {"name": "orpo"}},
    "solopo-dpo": {"name": "solopo", "loss": {"name": "dpo"}, "alpha": 3},
    "longpo": {"name": "longpo", "preference_weight": 0.5},
}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


def recipe_of(make_recipe: Recipes, name: str, **fields: Any) -> TrainRecipe:
    """Four steps of three samples; epsilon is large, so that Adam does not turn rounding errors into whole steps."""
    settings = {"objective": OBJECTIVES[name], "optimizer.eps": 1e-3, "collapse": {"num_prompts": 0}}
    return make_recipe(**{**settings, **fields})


WAYS: dict[str, dict[str, Any]] = {
    "packed": {"row_tokens": 250},
    "recomputed": {"recompute": "full"},
    "separate": {"sharing": "none"},
    "compiled": {"compile": True, "max_steps": 1},
}


@each_objective
def test_ways_to_compute_a_step_give_the_same_run(make_recipe: Recipes, tmp_path: Path, name: str) -> None:
    folders = RunFolders(tmp_path)
    with in_float64():
        folders.alone(recipe_of(make_recipe, name, max_steps=2).model_dump(mode="json"), "plain")
        expected = metrics_of(tmp_path / "plain")
        for way, fields in WAYS.items():
            if way == "compiled" and name != "solopo-dpo":  # it takes ten seconds
                continue
            recipe = recipe_of(make_recipe, name, **{"max_steps": 2, **fields})
            folders.alone(recipe.model_dump(mode="json"), way)
            # Backward, transformers' norms go through float32: sums over responses are rounded before or after.
            tolerance = 1e-5 if way == "separate" else 1e-9
            folders.check_gradients("plain", way, rtol=tolerance, atol=tolerance / 100)
            for ours, theirs in zip(metrics_of(tmp_path / way), expected, strict=way != "compiled"):
                assert {**ours, "lr": 0} == pytest.approx({**theirs, "lr": 0}, rel=tolerance, abs=tolerance), way


@each_objective
def test_a_stopped_run_with_held_out_samples_goes_on(
    make_recipe: Recipes,
    make_build: Builds,
    make_sample: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    held_out = make_build([make_sample(f"h{n}") for n in range(2)], name="held-out")
    fields = {"data.validation": str(held_out), "validation": {"every_steps": 2}}
    whole = run(recipe_of(make_recipe, name, **fields), tmp_path / "whole").parent

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        interfere(patch, 2 + 3 + 1, stop)  # held-out samples, a step, and the middle of the next one
        with pytest.raises((KeyboardInterrupt, Stopped)):
            run(recipe_of(make_recipe, name, **fields), tmp_path / "run")
    run(recipe_of(make_recipe, name, **fields), tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    files = [
        "validation.jsonl",
        *(["reference.jsonl"] if recipe_of(make_recipe, name).objective.reference_parts else []),
    ]
    for file in files:
        found, expected = ((out / file).read_text().splitlines() for out in (tmp_path / "run", whole))
        assert len(found) == len(expected) > 0
    lines = metrics_of(whole)
    short = {"short_margin", "short_chosen_logp", "short_rejected_logp", "short_accuracy", "distance"}
    for line in lines:
        assert short <= line.keys() if name.startswith("solopo") else not short & line.keys()
        assert ("margin" in line) != name.startswith("solopo")
        has_reference = bool(recipe_of(make_recipe, name).objective.reference_parts)
        assert ("reward_margin" in line or "short_reward_margin" in line) == has_reference


def test_references_are_of_the_prompts_that_the_loss_reads(make_recipe: Recipes, tmp_path: Path) -> None:
    """A line a sample where positions are natural, else one an epoch; after two prompts stand 3 + 1 responses."""
    lengths = {}
    for name in ("longpo", "solopo-dpo", "ipo"):
        run(recipe_of(make_recipe, name, max_steps=4), tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "reference.jsonl").read_text().splitlines()]
        lengths[name] = len(lines), {len(line["logprobs"]) for line in lines}
    assert lengths == {"longpo": (6, {3}), "solopo-dpo": (12, {4}), "ipo": (12, {3})}


@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk"])
def test_the_reference_of_longpo_keeps_its_own_rope(
    make_recipe: Recipes, build_dir: Path, tmp_path: Path, tiny_model_dir: Path, kind: str
) -> None:
    recipe = recipe_of(make_recipe, "longpo", rope={"type": kind, "factor": 4}, max_steps=2)
    run(recipe, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    samples = {sample.id: sample for sample in load_data(recipe).samples}
    for line in (tmp_path / "run" / "reference.jsonl").read_text().splitlines():
        value = json.loads(line)
        sample = samples[value["id"]]
        prompt = short_prompt(sample)
        for response, found in zip((sample.chosen, *sample.rejected), value["logprobs"], strict=True):
            with torch.no_grad():
                tokens = logprobs_alone(model, prompt, list(range(len(prompt))), response.token_ids)
            assert found == pytest.approx(float(tokens[len(prompt) - 1 :].sum()), abs=1e-4)
    # The trained model has the scaled one: its first log-probabilities differ from those of the plain model.
    plain = recipe_of(make_recipe, "longpo", max_steps=2)
    run(plain, tmp_path / "plain")
    assert abs(metrics_of(tmp_path / "run")[0]["sft_loss"] - metrics_of(tmp_path / "plain")[0]["sft_loss"]) > 1e-4


def test_the_guard_watches_both_prompts(make_recipe: Recipes, tmp_path: Path) -> None:
    settings = CollapseSettings(min_chosen_logp=-5)
    check_chosen(settings, -4.9, 1, short_chosen_logp=-4.9)
    with pytest.raises(UserError, match=r"preferred responses have -5\.10 nats a token under the short prompt"):
        check_chosen(settings, -4.9, 1, short_chosen_logp=-5.1)
    with pytest.raises(UserError, match=r"preferred responses have -5\.10 nats a token, collapse"):
        check_chosen(settings, -5.1, 1, short_chosen_logp=-4.9)
    recipe = recipe_of(make_recipe, "solopo-orpo", **{"collapse": {"min_chosen_logp": -0.01, "num_prompts": 0}})
    with pytest.raises(UserError, match="the model collapsed"):
        run(recipe, tmp_path / "run")


def test_the_router_loss_of_two_prompts_is_the_mean_of_both(
    make_recipe: Recipes, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = save_tiny("mixtral", tiny_tokenizer, tmp_path / "mixtral")
    recipe = recipe_of(make_recipe, "solopo-orpo", model=folder, router_loss=0.5, samples_per_step=1, max_steps=1)
    run(recipe, tmp_path / "run")
    (line,) = metrics_of(tmp_path / "run")
    scorer, found = LogprobModel(AutoModelForCausalLM.from_pretrained(folder)), []
    data = load_data(recipe)
    draws = [(epoch, data.samples[index]) for epoch, index in Schedule(recipe, len(data.samples)).samples(0)]
    for part in recipe.objective.parts:
        record = RouterRecord(loss=True)
        with use_shared_prefix(scorer.causal_lm), torch.no_grad():
            scorer(Collator(recipe.positions, data.target_length, recipe.seed, (part,))(draws), record)
        found += [loss.item() for loss in record.losses]
    assert len(found) == 2
    assert line["router_loss"] == pytest.approx(sum(found) / 2, rel=1e-5)
    assert abs(found[0] - found[1]) > 1e-4


# Data that will not do ------------------------------------------------------------------------------------------------


def with_critical(sample: PreferenceSample, *critical: bool) -> PreferenceSample:
    chunks = [chunk.model_copy(update={"critical": it}) for chunk, it in zip(sample.chunks, critical, strict=True)]
    return sample.model_copy(update={"chunks": chunks})


@pytest.mark.parametrize("name", ["solopo-orpo", "longpo"])
def test_samples_without_other_chunks_are_counted_and_left_out(
    make_recipe: Recipes,
    make_build: Builds,
    make_sample: Samples,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    samples = [make_sample(f"s{n}") for n in range(4)]
    folder = make_build([*samples[:3], with_critical(samples[3], True, True, True)], name="mixed")
    held_out = make_build([make_sample("h0"), with_critical(make_sample("h1"), True, True, True)], name="held-out")
    fields = {"data.path": str(folder), "data.validation": str(held_out), "max_steps": 1}
    recipe = recipe_of(make_recipe, name, **fields)
    data = load_data(recipe)
    assert ([sample.id for sample in data.samples], [sample.id for sample in data.validation]) == (
        ["s0", "s1", "s2"],
        ["h0"],
    )
    assert data.left_out == 2
    lengths = {
        str(name): int(str(value)) for name, value in zip(*(it.cells for it in data.lengths().columns[:2]), strict=True)
    }
    row = 31 + 5 + (23 + 5 + 3 + 4 if name == "solopo-orpo" else 3 + 4)
    assert (lengths["prompt"], lengths["short prompt"], lengths["row"]) == (31, 23, row)
    for _ in range(2):  # and when the run is looked at again
        capsys.readouterr()
        run(recipe, tmp_path / "run")
        assert "samples left out because all their chunks are critical: 2" in capsys.readouterr().err
    load_data(recipe)
    said = capsys.readouterr().err
    assert f"1 of 4 samples in {folder} are left out: all their chunks are critical" in said
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["num_left_out"] == 2
    everything = load_data(make_recipe(**fields))
    assert (len(everything.samples), everything.left_out) == (4, 0)


def test_critical_chunks_belong_to_the_data_of_these_objectives_alone(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples
) -> None:
    sample = make_sample("a")
    folders = [
        str(make_build([with_critical(sample, *critical)], name=f"build{number}"))
        for number, critical in enumerate([(True, False, False), (False, True, False)])
    ]

    def fingerprints(**fields: Any) -> set[str]:
        return {load_data(make_recipe(**fields, **{"data.path": folder})).fingerprint() for folder in folders}

    assert len(fingerprints()) == 1
    assert len(fingerprints(objective=OBJECTIVES["longpo"])) == 2


@pytest.mark.parametrize("name", ["solopo-orpo", "longpo"])
def test_data_without_critical_chunks_are_refused(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, tmp_path: Path, name: str
) -> None:
    sample = make_sample("a")
    without = make_build([with_critical(sample, False, False, False)], name="without")
    with pytest.raises(UserError, match="needs prompts of critical chunks, and sample a has no critical chunk"):
        load_data(recipe_of(make_recipe, name, **{"data.path": str(without)}))
    every = make_build([with_critical(sample, True, True, True)], name="every")
    with pytest.raises(UserError, match="without uncritical chunks, and every one is critical"):
        load_data(recipe_of(make_recipe, name, **{"data.path": str(every)}))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Owls?", "chosen": " Yes.", "rejected": " No."}) + "\n")
    with pytest.raises(UserError, match=r"pairs\.jsonl: .*needs critical chunks, which pairs do not have"):
        run(recipe_of(make_recipe, name, **{"data.path": str(pairs)}), tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_a_short_prompt_beyond_the_window_without_rope_is_refused(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples
) -> None:
    folder = str(make_build([make_sample("a", chunk_length=1100)], name="long"))
    fields = {"data.path": folder, "rope": {"type": "linear", "factor": 4}}
    assert load_config(make_recipe().model).max_position_embeddings == 2048
    with pytest.raises(
        UserError, match=r"sample a: short prompt and response of 2212 tokens do not fit under the 2048"
    ):
        load_data(recipe_of(make_recipe, "longpo", **fields))
    load_data(recipe_of(make_recipe, "solopo-dpo", **fields))  # its reference is the scaled model, as DPO's is


@pytest.mark.parametrize("metric", ["margin", "accuracy"])
def test_solopo_has_no_margin_under_the_whole_prompt_to_choose_by(make_recipe: Recipes, metric: str) -> None:
    with pytest.raises(ValueError, match=f"objective solopo computes no {metric} under the whole prompt"):
        recipe_of(make_recipe, "solopo-orpo", **{"data.validation": 0.5, "validation": {"metric": metric}})


def test_parts_of_every_objective() -> None:
    adapter = TypeAdapter(ObjectiveSettings)
    one, both = (RowPart(),), (RowPart(short=True), RowPart(rejected=False))
    expected = {
        "logo": (one, ()),
        "simpo": (one, ()),
        "cpo": (one, ()),
        "orpo": (one, ()),
        "dpo": (one, one),
        "ipo": (one, one),
        "sft": ((RowPart(rejected=False),), ()),
        "solopo": (both, ()),
        "longpo": ((RowPart(scores_prompt=True),), (RowPart(short=True),)),
    }
    for name, parts in expected.items():
        settings: Any = adapter.validate_python({"name": name})
        assert (settings.parts, settings.reference_parts) == parts
    assert (SOLOPO_DPO.parts, SOLOPO_DPO.reference_parts) == (both, both)
