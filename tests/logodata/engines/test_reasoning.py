"""Reasoning and answer of a response. ``reasoning_cases.json`` holds what lm-evaluation-harness 4e7e0d4 keeps."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from logodata.common.chat_template import render_chat
from logodata.common.errors import UserError
from logodata.common.words import reasoning_markers
from logodata.engines import GenerationResult, Sampling
from logodata.engines.reasoning import LONG_THINKING_TOKENS, THINKING_TOKENS, Reasoning, Reply
from logodata.models.loading import load_tokenizer
from logodata.prompts import PromptFormat, encode_text
from tests.conftest import CHATML

CASES = json.loads(Path(__file__).with_name("reasoning_cases.json").read_text())
ANSWER = Sampling(150, (2,))

# The harness scores the whole text of these, which never came to an answer, or searches an unfinished block.
CUT = {
    "cut inside the reasoning",
    "cut in the end tag",
    "second block not finished",
    "space in the tag",  # no marker of this model, so the block never ended
}


@pytest.fixture(params=["text", "tokens"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Any:
    """Markers that are tokens of their own, as in most models that reason, and markers that are text."""
    found = copy.deepcopy(tiny_tokenizer)
    if request.param == "tokens":
        found.add_tokens(["<think>", "</think>"])
    return found


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def split(tokenizer: Any, text: str, *, ended: bool = True, opened: bool = False, tokens: int = 200) -> Reply:
    result = GenerationResult("a", encode(tokenizer, text), "stop" if ended else "length")
    return Reasoning(tokenizer, tokens=tokens).split(result, ANSWER, opened=opened)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["about"])
def test_the_answer_is_the_harness_s_except_where_no_answer_came(tokenizer: Any, case: dict[str, str]) -> None:
    found = split(tokenizer, case["response"])
    if case["about"] in CUT:
        assert found == Reply((), "", "length", case["response"], len(encode(tokenizer, case["response"])), cut=True)
        return
    assert not found.cut
    assert found.text == case["harness"]
    assert tokenizer.decode(found.token_ids) == case["harness"]
    assert (found.reasoning is None) == ("</think>" not in case["response"])


def test_reasoning_that_the_prompt_opened_and_that_did_not_end_is_no_answer(tokenizer: Any) -> None:
    assert split(tokenizer, "B? Let me check", opened=True).cut
    assert split(tokenizer, "B? Let me check", ended=False).cut  # in a run that expects reasoning
    assert split(tokenizer, "B? Let me check", ended=False, tokens=0).text == "B? Let me check"
    assert split(tokenizer, "B? </think>A", opened=True).text == "A"


def test_each_part_has_its_own_budget(tokenizer: Any) -> None:
    text = "<think>" + "a b c " * 10 + "</think>"
    size = len(encode(tokenizer, text))
    reply = split(tokenizer, text + "x" * 160, tokens=size, ended=False)
    assert (reply.text, reply.finish_reason, len(reply.token_ids)) == ("x" * 150, "length", 150)
    assert reply.num_reasoning_tokens == size
    assert split(tokenizer, text + "x", tokens=size).finish_reason == "stop"
    assert split(tokenizer, text + "x", tokens=size - 1).cut


def test_a_task_s_stops_hold_for_the_answer_only(tokenizer: Any) -> None:
    (newline,) = encode(tokenizer, "\n")
    answer = Sampling(50, (2, newline), min_new_tokens=1)
    reasoning = Reasoning(tokenizer, tokens=100)
    assert reasoning.sampling(answer, (2,)) == Sampling(150, (2,))
    result = GenerationResult("a", encode(tokenizer, "<think>a\nb</think>\nfirst\nsecond"), "length")
    assert reasoning.split(result, answer).text == "first"
    assert reasoning.split(result, answer).finish_reason == "stop"
    assert Reasoning(tokenizer, tokens=0).sampling(answer, (2,)) is answer


def test_a_token_may_hold_the_end_of_the_marker_and_the_answer(tiny_tokenizer: Any) -> None:
    glued = copy.deepcopy(tiny_tokenizer)
    glued.add_tokens([">The"])
    ids = (*encode(tiny_tokenizer, "<think>x</think"), glued.convert_tokens_to_ids(">The"), *encode(glued, " mill"))
    reply = Reasoning(glued, tokens=50).split(GenerationResult("a", ids, "stop"), ANSWER)
    assert (reply.text, reply.reasoning) == ("The mill", "<think>x")
    assert reply.token_ids == tuple(encode_text(glued, "The mill"))


TRL = Path(find_spec("trl").origin).parent / "chat_templates"  # type: ignore[union-attr, arg-type]
THINK = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("name", "markers", "budget"),
    [
        ("llama3", THINK, 0),  # no model that reasons
        ("qwen3", THINK, 0),  # it may reason, and the template does not say
        ("qwen3_6", THINK, THINKING_TOKENS),
        ("qwen3_5_nothink", THINK, 0),
        ("deepseek_r1_distill", THINK, THINKING_TOKENS),
        ("gptoss", ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"), 0),
        ("gemma4_v5", ("<|channel>thought", "<channel|>"), 0),
    ],
)
def test_markers_and_budget_are_those_of_real_templates(
    tiny_tokenizer: Any, name: str, markers: tuple[str, str], budget: int
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (TRL / f"{name}.jinja").read_text(encoding="utf-8")
    found = Reasoning(tokenizer, window=8192)
    assert (found.opening, found.closing) == markers
    assert found.budget == budget


def test_other_markers() -> None:
    assert reasoning_markers("{{ content.split('[/THINK]')[-1] }}") == ("[THINK]", "[/THINK]")
    assert reasoning_markers("<seed:think>{{ x }}</seed:think>") == ("<seed:think>", "</seed:think>")


def test_variables_of_a_template_become_a_part_of_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    qwen3 = TRL / "qwen3.jinja"
    asked = load_tokenizer(str(tiny_model_dir), qwen3)
    not_thinking = load_tokenizer(str(tiny_model_dir), qwen3, template_args={"enable_thinking": False})
    messages = [{"role": "user", "content": "Why?"}]
    direct = asked.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert render_chat(not_thinking, "Why?") == direct
    assert direct.endswith("<think>\n\n</think>\n\n")
    assert render_chat(asked, "Why?") == direct.removesuffix("<think>\n\n</think>\n\n")
    assert PromptFormat(asked, "{question}").fingerprint != PromptFormat(not_thinking, "{question}").fingerprint
    with pytest.raises(UserError, match=r"reads no variable 'thinking'.*enable_thinking"):
        load_tokenizer(str(tiny_model_dir), qwen3, template_args={"thinking": False})
    quoted = tmp_path / "quoted.jinja"
    quoted.write_text(CHATML + "{{ a }}|{{ b }}|{{ c is none }}|{{ d }}")
    values = {"a": '"{{ 1 }}" %} é\n', "b": 1.5, "c": None, "d": True}
    tokenizer = load_tokenizer(str(tiny_model_dir), quoted, template_args=values)
    assert render_chat(tokenizer, "x").endswith('"{{ 1 }}" %} é\n|1.5|True|True')


def test_a_template_that_opens_the_reasoning_gives_it_a_budget(tiny_tokenizer: Any) -> None:
    plain = Reasoning(tiny_tokenizer)
    assert plain.budget == 0
    opening = copy.deepcopy(tiny_tokenizer)
    opening.chat_template += "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    assert Reasoning(opening, window=8192).budget == THINKING_TOKENS
    assert Reasoning(opening, window=262_144).budget == LONG_THINKING_TOKENS
    assert Reasoning(opening, tokens=0).budget == 0
    assert Reasoning(opening).opens(encode(opening, "question <think>\n"))
    assert not Reasoning(opening).opens(encode(opening, "what is <think> for?"))
