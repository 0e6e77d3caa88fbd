"""Evaluation at the edges of its numbers: models that give none, one sample, equal ones, none, empty answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.common.json_files import strict_dumps
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.intervals import estimate_difference, estimate_mean, summarise
from logoeval.records import Metric, SampleRow, read_results
from logoeval.report.markdown_json import record
from logoeval.tasks.longbench.data import length_of
from logoeval.tasks.longbench.metrics import CODE_SIM, METRICS
from logoeval.tasks.longbench.score_files import read_predictions
from tests.conftest import make_model


def refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def strict(text: str) -> Any:
    """By a parser that takes no NaN and no Infinity."""
    return json.loads(text, parse_constant=refused)


@pytest.fixture
def edited_model(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., str]:
    """``edited_model(edit)``: the folder of a tiny model after ``edit(model)``."""

    def make(edit: Callable[[Any], None], name: str = "edited") -> str:
        model = make_model(len(tiny_tokenizer))
        with torch.no_grad():
            edit(model)
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def break_a_weight(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")


# Models that give no numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (["ppl", "ppl.lengths=[32]", "ppl.num_documents=1"], "the logits of LlamaForCausalLM are nan (try float32"),
        (
            ["niah", "niah.lengths=[700]", "niah.num_samples=1", "niah.haystacks=[noise]"],
            "the model's logits are nan (try float32",
        ),
    ],
)
def test_a_model_without_numbers_is_one_line_and_no_result(
    edited_model: Callable[..., str], tmp_path: Path, capsys: Any, task: list[str], said: str
) -> None:
    name, *overrides = task
    assert main([name, "--model", edited_model(break_a_weight), "-o", str(tmp_path / "out"), *overrides]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("logoeval: error: ")
    assert said in line
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_document_without_a_perplexity_is_named_and_the_others_are_kept(
    edited_model: Callable[..., str], tiny_model_dir: Path, tiny_tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    """A token of which the model knows nothing: mean, perplexity and interval of all documents would be NaN."""
    (letter,) = tiny_tokenizer.encode("Z", add_special_tokens=False)

    def forget_a_letter(model: Any) -> None:
        model.model.embed_tokens.weight[letter] = float("nan")

    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in (("a", "the old mill stood on a river " * 8), ("b", "the old mill stood on a Zzz " * 8)):
        (texts / f"{name}.txt").write_text(text)
    arguments = ["-o", str(tmp_path / "out"), "ppl.lengths=[32,64]", f"ppl.text={texts}"]
    assert main(["ppl", "--model", edited_model(forget_a_letter), *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "document b.txt: ppl@32: a mean negative log-likelihood of nan nats is no perplexity" in line
    shards = (tmp_path / "out" / "predictions" / "ppl.jsonl").read_text().splitlines()
    assert [strict(line)["id"] for line in shards] == ["a.txt"]
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_likelihood_beyond_a_perplexity_is_refused(
    edited_model: Callable[..., str], tmp_path: Path, capsys: Any
) -> None:
    """exp(mean) would be infinity, and no JSON."""
    name = edited_model(lambda model: model.lm_head.weight.mul_(1e5))
    assert main(["ppl", "--model", name, "-o", str(tmp_path / "out"), "ppl.lengths=[32]", "ppl.num_documents=1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a mean negative log-likelihood of" in said
    assert "is no perplexity" in said


def test_a_pair_without_a_likelihood_is_named_and_the_others_are_kept(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    from logoeval.tasks.pairs import PairsSettings, run
    from tests.logoeval.tasks.test_pairs import make_session

    (digit,) = tiny_tokenizer.encode("3", add_special_tokens=False)
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[digit] = float("nan")
    session = make_session(tiny_model, tiny_tokenizer, fake_answer)
    with pytest.raises(UserError, match="sample q3: log-probability of the preferred response is nan"):
        run(PairsSettings(data=make_build()), session, tmp_path)
    kept = (tmp_path / "pairs_logprobs.jsonl").read_text().splitlines()
    assert [strict(line)["id"] for line in kept] == ["q0", "q1", "q2"]


def test_the_harness_s_likelihoods_are_numbers_too() -> None:
    pytest.importorskip("lm_eval")
    from logoeval.tasks.short.model import HarnessModel
    from logoeval.tasks.short.outcome import _samples

    model = object.__new__(HarnessModel)
    model.label = "mmlu"
    with pytest.raises(UserError, match="mmlu: log-likelihood of an answer is -inf"):
        model.add_partial("loglikelihood", ("a", "b"), (-math.inf, False))
    sample = {"filter": "none", "acc": math.nan, "doc_id": 3}
    with pytest.raises(UserError, match="arc, document 3: acc is nan"):
        list(_samples(None, "arc", "acc,none", {"samples": {"arc": [sample]}}))  # type: ignore[arg-type]


# Few samples, equal ones, none ----------------------------------------------------------------------------------------


def test_one_sample_has_no_interval_in_any_file(make_run: Callable[..., Path]) -> None:
    """null, not an interval of no width: one sample says nothing of others."""
    runs = [make_run("before", [0.25]), make_run("after", [0.75], adapter="x")]
    (row,) = strict((runs[0] / "results.json").read_text())["tasks"]["ppl"]["summary"]
    assert (row["value"], row["low"], row["high"], row["num_samples"]) == (0.25, None, None, 1)
    comparison = compare(runs)
    (difference,) = comparison.rows[0].differences
    assert (difference.change.value, difference.change.low, difference.verdict) == (0.5, None, "too few to tell")
    (shown,) = strict(strict_dumps(record(comparison, [], {}).to_json()))["rows"]
    assert shown["values"][0]["low"] is None


def test_equal_values_have_an_interval_of_no_width_and_no_change(make_run: Callable[..., Path]) -> None:
    """Six samples that agree do say something; the bootstrap can only repeat them."""
    runs = [make_run("before", [0.1] * 6), make_run("after", [0.1] * 6, adapter="x")]
    (row,) = read_results(runs[0]).tasks["ppl"].summary
    assert (row.low, row.high) == pytest.approx((0.1, 0.1))
    (difference,) = compare(runs).rows[0].differences
    assert (difference.change.low, difference.change.high, difference.verdict) == (0.0, 0.0, "no clear change")
    found = estimate_mean([0.1] * 7, ["one"] * 7)
    assert (found.value, found.interval) == (pytest.approx(0.1), None)


def test_no_samples_are_no_rows_and_no_estimate() -> None:
    metric = Metric(key="score", label="Score", explanation="How good it is.", kind="share")
    assert summarise([metric], []) == []
    other = SampleRow(id="a", cluster="a", prompt_hash="h", scores={"other": 1.0})
    assert summarise([metric], [other]) == []
    with pytest.raises(ValueError, match="0 values for 0 cluster names"):
        estimate_mean([], [])
    with pytest.raises(ValueError, match="0 values for 0 cluster names"):
        estimate_difference([], [], [])


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_result_cannot_hold_what_is_no_number(make_run: Callable[..., Path], score: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        SampleRow(id="a", cluster="a", prompt_hash="h", scores={"score": score})
    # Nor is one read that an earlier version wrote.
    folder = make_run("old", [0.25])
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"score": 0.25', f'"score": {json.dumps(score)}'))
    with pytest.raises(UserError, match=r"results.json: not valid JSON: -?(NaN|Infinity) is not JSON"):
        read_results(folder)


@pytest.mark.parametrize(
    ("length", "found"), [("12", 12), ("12.0", 12), ("NaN", None), ("Infinity", None), ("null", None)]
)
def test_a_row_may_say_that_its_length_is_no_number(tmp_path: Path, length: str, found: int | None) -> None:
    """pandas writes NaN where a row has none; LongBench-E then puts it in no length group."""
    path = tmp_path / "qasper.jsonl"
    path.write_text(f'{{"pred": "a mill", "answers": ["the mill"], "all_classes": null, "length": {length}}}\n')
    ((prediction,),) = read_predictions(path, e=False)[0].values()
    assert prediction.length == length_of(json.loads(f'{{"length": {length}}}')) == found


# Empty answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METRICS, *(f"code_sim by {name}" for name in CODE_SIM)])
@pytest.mark.parametrize(("prediction", "gold"), [("", ""), ("", "x 1"), ("x 1", ""), (" \n", "."), ("。", "的")])
def test_scores_of_empty_answers_are_shares(name: str, prediction: str, gold: str) -> None:
    metric = CODE_SIM[name.removeprefix("code_sim by ")] if " by " in name else METRICS[name]  # type: ignore[index]
    gold = {"retrieval": "Paragraph 1", "retrieval_zh": "段落1"}.get(name, gold)
    score = metric(prediction, gold, ["x", "y"])
    assert 0.0 <= score <= 1.0
    if not prediction and gold.strip(".。"):
        assert score == 0.0
