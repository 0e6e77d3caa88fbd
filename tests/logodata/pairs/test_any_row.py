"""Whatever a row holds, it is a pair, or left out with a reason: no row ends an import with a traceback."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logodata.contract import PairFormat
from logodata.pairs.formats import PairRow, form_of
from logodata.pairs.messages import PairFault
from logodata.pairs.reading import Pair, read_pair, repeats_prompt

TEXT = st.sampled_from(
    ["", " ", "a", "b", "a b", "\n\nAssistant: x", "[]", '[{"role": "user"}]', "\0", "\ud83d", "nan"]
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.floats(), TEXT)
KEYS = st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls", "response", "overall_score"])
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "USER", "narrator"])
MESSAGE = st.fixed_dictionaries({"role": ROLES, "content": TEXT})
ANY = st.recursive(
    st.one_of(SCALAR, MESSAGE, st.lists(MESSAGE, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
COLUMNS = (
    *("history", "completions", "ratings", "tools", "system", "input", "context", "query", "id"),
    *("score_chosen", "rejected_strategies", "rejected_ended"),
)
TALK = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.just("a b")}), min_size=1, max_size=3)
ASKED = st.one_of(st.just("a b"), TALK, ANY)
GIVEN = st.fixed_dictionaries(
    {
        "prompt": st.one_of(ASKED, st.none()),
        "chosen": st.one_of(ASKED, MESSAGE),
        "rejected": st.one_of(ASKED, MESSAGE, st.lists(ASKED)),
        "instruction": st.one_of(st.just("a b"), ANY),
        "conversations": st.one_of(TALK, ANY),
    }
)
OTHERS = st.dictionaries(st.sampled_from(COLUMNS), st.one_of(SCALAR, ANY), max_size=2)
"""Few at a time: the first fault of a row hides the others."""


@pytest.mark.parametrize("is_table", [False, True])
@given(row=GIVEN, others=OTHERS)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_row_is_a_pair_or_has_a_reason(row: dict[str, Any], others: dict[str, Any], is_table: bool) -> None:
    pair_row = PairRow({**row, **others}, "f:1", {}, is_table)
    form_of(pair_row)
    repeats_prompt(pair_row)
    for form in get_args(PairFormat):
        try:
            pair = read_pair(pair_row, form)
        except PairFault as error:
            fault = error
        else:
            fault = None
            assert isinstance(pair, Pair)
        if fault is not None:
            assert fault.reason.isidentifier()
            assert len(fault.detail) > 5
            continue
        said = [answer if isinstance(answer, str) else answer["content"] for answer in (pair.chosen, *pair.rejected)]
        assert all(isinstance(text, str) for text in said)
        assert said[0] not in said[1:] or not all(text.strip() for text in said)
