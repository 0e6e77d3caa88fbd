"""Numbers that are none: what a model computes of a data set, and what may stand in a file of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from logodata.cli import main
from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.files import read_json, write_json
from logodata.common.json_files import strict_dumps
from logodata.engines import GenerationRequest, Sampling
from logodata.judge.measures import contains_reference, number_share, repetition, token_f1, word_share
from tests.conftest import make_model
from tests.logodata.dataset.test_log_probs import sample_of, write_build


@pytest.fixture
def edited_model(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """``edited_model(edit)``: the folder of a tiny model after ``edit(model)``."""

    def make(edit: Callable[[Any], None]) -> Path:
        model = make_model(len(tiny_tokenizer))
        with torch.no_grad():
            edit(model)
        model.save_pretrained(tmp_path / "edited")
        tiny_tokenizer.save_pretrained(tmp_path / "edited")
        return tmp_path / "edited"

    return make


def break_a_weight(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")


# What a model computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_log_probabilities_that_are_no_numbers_name_their_sample(
    edited_model: Callable[..., Path], tiny_tokenizer: Any, tmp_path: Path, capsys: Any, flags: list[str]
) -> None:
    model = edited_model(break_a_weight)
    folder = write_build(tmp_path / "out", [sample_of(tiny_tokenizer, 0, "It was so.", "No.")], model)
    assert main(["stats", str(folder), "--log-probs", *flags]) == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("logodata: error: sample q0: log-probability of the preferred response is nan (try float32")
    assert captured.out == ""


def test_an_impossible_response_names_its_sample(
    tiny_model_dir: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary may be masked: a mean with minus infinity in it would be no number, nor would its interval."""
    from logodata.dataset import log_probs

    monkeypatch.setattr(log_probs, "response_logprobs", lambda *_: [-1.0, -math.inf, -2.0])
    samples = [sample_of(tiny_tokenizer, 0, "It was so.", "No.")]
    with pytest.raises(UserError, match="sample q0: log-probability of dis-preferred response 1 is -inf"):
        log_probs.measure(write_build(tmp_path / "out", samples, tiny_model_dir))
    monkeypatch.setattr(log_probs, "response_logprobs", lambda *_: [-1.0, -2.0, -math.inf])
    with pytest.raises(UserError, match="sample q0: log-probability of the bare reference is -inf"):
        log_probs.measure(tmp_path / "out")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_chosen_of_logits_that_are_no_numbers(
    tiny_model: Any, tiny_tokenizer: Any, temperature: float
) -> None:
    """The largest of NaNs is token 0: an answer of exclamation marks, as from a model of float16 that overflows."""
    from logodata.engines.transformers_engine import TransformersEngine

    (letter,) = tiny_tokenizer.encode("Z", add_special_tokens=False)
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[letter] = float("nan")
    engine = TransformersEngine(tiny_model)
    sampling = Sampling(max_new_tokens=3, stop_ids=(2,), temperature=temperature)
    sound = GenerationRequest("sound", (1, 40, 41), sampling)
    assert [result.id for result in engine.generate([sound])] == ["sound"]
    with pytest.raises(UserError, match="request broken: the model's logits are nan"):
        list(engine.generate([sound, GenerationRequest("broken", (1, letter, 41), sampling)]))


@pytest.mark.parametrize("response", ["", " \n", "."])
@pytest.mark.parametrize("answers", [[], [""], ["the"], ["12"], ["a mill", ""]])
def test_measures_of_empty_answers_are_numbers(response: str, answers: list[str]) -> None:
    assert word_share(response, answers) == token_f1(response, answers) == 0.0
    assert number_share(response, answers) in (0.0, None)
    assert not contains_reference(response, answers)
    assert repetition(response) == 0.0


# What may stand in a file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_writer_writes_and_no_reader_reads_what_is_no_json(tmp_path: Path, number: float) -> None:
    path, log = tmp_path / "a.json", AppendLog(tmp_path / "b.jsonl")
    write_json(path, {"score": 0.5})
    log.append({"id": "a", "score": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"scores": [0.5, {"deep": number}]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"id": "b", "score": number})
    assert (read_json(path), list(AppendLog(log.path))) == ({"score": 0.5}, ["a"])  # nothing is half written
    path.write_text(json.dumps({"score": number}))
    log.path.write_text(json.dumps({"id": "a", "score": number}) + "\n")
    with pytest.raises(UserError, match=r"not valid JSON: -?(NaN|Infinity) is not JSON"):
        read_json(path)
    with pytest.raises(UserError, match=r"b\.jsonl:1: damaged record"):
        AppendLog(log.path)


def test_text_stays_as_it_is_and_a_terminal_gets_ascii() -> None:
    value = {"text": "Müller \u2028 的", "numbers": [0.1, -0.0, 1e308]}
    assert json.loads(strict_dumps(value)) == value
    assert "Müller" in strict_dumps(value)
    assert strict_dumps(value, ascii_only=True).isascii()
