"""Log-probabilities of a data set's responses: against one whole forward a response, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from logodata.cli import main
from logodata.contract import PreferenceSample, Response
from logodata.dataset import log_probs
from logodata.dataset.log_probs import BARE_REFERENCE, advice, measure, response_logprobs
from logodata.dataset.samples import write_samples
from logodata.models.facts import model_fingerprint
from logodata.prompts import encode_text
from tests.conftest import make_model
from tests.data_sets import write_manifest


def whole_forward(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """A row of its own, no cache, all logits."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(rows[range(len(response)), list(response)].mean())


def sample_of(tokenizer: Any, number: int, chosen: str, *rejected: str, ended: bool = True) -> PreferenceSample:
    def response(strategy: str, text: str) -> Response:
        ids = [*encode_text(tokenizer, text), *([2] if ended else [])]
        return Response(strategy=strategy, text=text, token_ids=ids, ended=ended, word_share=1.0, token_f1=1.0)

    return PreferenceSample(
        id=f"q{number}",
        doc_id=f"d{number // 2}",
        question_id=f"q{number}",
        kind="other",
        question="Who?",
        answers=[f"the miller {number}", "a miller"],
        prompt_ids=[1, *encode_text(tokenizer, f"The old mill has {number} wheels. Who? " * (1 + number % 3)), 2],
        chunks=[],
        chosen=response("guided", chosen),
        rejected=[response(f"mixed-0.{n}", text) for n, text in enumerate(rejected)],
        answer_in_critical=True,
    )


def write_build(folder: Path, samples: list[PreferenceSample], model: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    write_samples(folder / "data" / "train-00000-of-00001.parquet", samples)
    write_manifest(folder, model=str(model), model_fingerprint=model_fingerprint(str(model)), samples=len(samples))
    return folder


@pytest.fixture
def samples(tiny_tokenizer: Any) -> list[PreferenceSample]:
    return [
        sample_of(tiny_tokenizer, n, f"It was miller {n}.", "Nobody knows it.", f"The {'very ' * n}old owl.")
        for n in range(6)
    ]


def test_equals_a_whole_forward_in_float64(tiny_model: Any) -> None:
    model = tiny_model.double()
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 200, (count,), generator=generator).tolist()

    for prompt_length in (2, 3, 150):
        prompt, responses = ids(prompt_length), [ids(count) for count in (1, 7, 30, 2)]
        expected = [whole_forward(model, prompt, response) for response in responses]
        assert response_logprobs(model, prompt, responses) == pytest.approx(expected, abs=1e-10)


def test_sliding_windows_are_kept(tiny_tokenizer: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16, initializer_range=0.2,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval().double()
    prompt, responses = list(range(3, 63)), [list(range(80, 110)), [5], [9, 8, 7]]
    expected = [whole_forward(model, prompt, response) for response in responses]
    assert response_logprobs(model, prompt, responses) == pytest.approx(expected, abs=1e-10)


def test_the_head_sees_one_position_of_the_prompt(tiny_model: Any) -> None:
    seen: list[int] = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    response_logprobs(tiny_model, list(range(3, 203)), [[5, 6, 7], [8]])
    assert seen == [1, 6]


def test_logits_in_bfloat16_are_summed_in_float32(tiny_model: Any) -> None:
    model = tiny_model.bfloat16()
    prompt, response = list(range(3, 40)), [50, 60, 70]
    (found,) = response_logprobs(model, prompt, [response])
    assert found == pytest.approx(whole_forward(model, prompt, response), abs=0.02)
    assert float(torch.tensor(found).bfloat16()) != found


def test_groups_gaps_and_the_bare_reference(
    tmp_path: Path, tiny_model: Any, tiny_model_dir: Path, tiny_tokenizer: Any, samples: list[PreferenceSample]
) -> None:
    report = measure(write_build(tmp_path / "data-set", samples, tiny_model_dir), device="cpu")
    expected: dict[str, list[float]] = {name: [] for name in ("guided", "mixed-0.0", "mixed-0.1", BARE_REFERENCE)}
    for sample in samples:
        bare = [*encode_text(tiny_tokenizer, sample.answers[0]), 2]
        for response in (sample.chosen, *sample.rejected):
            expected[response.strategy].append(whole_forward(tiny_model, sample.prompt_ids, response.token_ids))
        expected[BARE_REFERENCE].append(whole_forward(tiny_model, sample.prompt_ids, bare))
    means = {name: sum(values) / 6 for name, values in expected.items()}
    assert {row.strategy: row.mean for row in report.responses} == pytest.approx(means, abs=1e-5)
    behind = (means["mixed-0.0"] + means["mixed-0.1"]) / 2
    gap = report.gaps["preferred"]
    assert gap.mean == pytest.approx(means["guided"] - behind, abs=1e-5)
    assert gap.interval
    assert gap.interval[0] < gap.mean < gap.interval[1]
    assert (gap.responses, gap.documents) == (6, 3)
    assert report.gaps[BARE_REFERENCE].mean == pytest.approx(means[BARE_REFERENCE] - behind, abs=1e-5)
    assert [entry.argument for entry in gap.objectives] == pytest.approx([10 * gap.mean - 3, 2.5 * gap.mean - 0.25])


def test_the_same_samples_are_taken_of_every_build(
    tmp_path: Path, tiny_model_dir: Path, samples: list[PreferenceSample]
) -> None:
    """Whatever else a build holds, and in whatever order."""
    whole = measure(write_build(tmp_path / "a", samples, tiny_model_dir), num_samples=2)
    turned = measure(write_build(tmp_path / "b", samples[::-1], tiny_model_dir), num_samples=2)
    assert whole.responses == turned.responses
    assert whole.samples == 2


@pytest.mark.parametrize(
    ("gap", "warned", "shared"), [(-0.99, False, False), (-1.01, True, False), ((-2.0, 1.0), False, True)]
)
def test_a_loss_that_starts_saturated_is_warned_of(gap: Any, warned: bool, shared: bool) -> None:
    values = [("d", value) for value in (gap if isinstance(gap, tuple) else (gap,))]
    lines = advice(log_probs._starts(values))
    assert any(line.startswith("warning: beta * gap") for line in lines) == warned
    assert any("50% of the samples" in line for line in lines) == shared
    assert sum("the loss starts at" in line for line in lines) == 2


def test_responses_that_never_end_leave_the_bare_reference_out(
    tmp_path: Path, tiny_model_dir: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = [sample_of(tiny_tokenizer, 0, "so on", "and so on", ended=False)]
    report = measure(write_build(tmp_path / "out", endless, tiny_model_dir))
    assert list(report.gaps) == ["preferred"]
    assert report.gaps["preferred"].interval is None
    assert "no response ended" in capsys.readouterr().err


def test_references_that_are_not_there_or_too_long_are_left_out_aloud(
    tmp_path: Path, tiny_model_dir: Path, samples: list[PreferenceSample], capsys: pytest.CaptureFixture[str]
) -> None:
    samples[1] = samples[1].model_copy(update={"answers": []})
    samples[2] = samples[2].model_copy(update={"answers": ["mill " * 1000]})
    report = measure(write_build(tmp_path / "out", samples, tiny_model_dir))
    assert report.gaps["preferred"].responses == 6
    assert report.gaps[BARE_REFERENCE].responses == 4
    assert "2 samples have no reference, or one beyond the window" in capsys.readouterr().err


def test_rope_that_depends_on_the_length_gets_a_row_for_each_response(
    tmp_path: Path, tiny_tokenizer: Any, samples: list[PreferenceSample]
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

    def fresh() -> Any:
        return make_model(len(tiny_tokenizer), max_position_embeddings=16, rope_parameters=rope)

    model = fresh()
    for sample in samples[:2]:
        responses = [response.token_ids for response in (sample.chosen, *sample.rejected)]
        expected = [whole_forward(fresh(), sample.prompt_ids, response) for response in responses]
        assert response_logprobs(model, sample.prompt_ids, responses) == pytest.approx(expected, abs=1e-5)


def test_the_command(
    tmp_path: Path, tiny_model_dir: Path, samples: list[PreferenceSample], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_build(tmp_path / "out", samples, tiny_model_dir)
    assert main(["stats", str(folder), "--log-probs", "-n", "3"]) == 0
    shown = capsys.readouterr().out
    assert "guided (3)" in shown
    assert "beta 2.5, gamma 0.25" in shown
    assert main(["stats", str(folder), "--log-probs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 6


def test_bad_commands(
    tmp_path: Path, tiny_model_dir: Path, samples: list[PreferenceSample], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_build(tmp_path / "out", samples, tiny_model_dir)
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    for arguments, message in (
        ([str(folder), "--log-probs", "--model", str(other)], f"built with model {tiny_model_dir}"),
        ([str(folder), "--log-probs", "--model", "/nowhere"], "/nowhere: no such model folder"),
        ([str(tmp_path / "none"), "--log-probs"], "no such file or folder (give the folder that logodata build"),
        ([str(folder), "-n", "3"], "--num says how to score responses (add --log-probs"),
    ):
        assert main(["stats", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
