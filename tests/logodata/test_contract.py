"""What the records of a data set become in its files."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pytest
from pydantic import Field

from logodata.common.errors import UserError
from logodata.common.records import ABSENT, Int32, Record, arrow_schema
from logodata.contract import PreferenceSample, QuestionOutcome


def schema_by_hand() -> pa.Schema:
    """The columns of a data set, as programs that read it may expect them."""
    response = pa.struct(
        [
            ("strategy", pa.string()),
            ("text", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("ended", pa.bool_()),
            ("word_share", pa.float64()),
            ("token_f1", pa.float64()),
            ("contains_reference", pa.bool_()),
            ("number_share", pa.float64()),
            ("similarity", pa.float64()),
            ("verdict", pa.string()),
            ("origin", pa.string()),
        ]
    )
    chunk = pa.struct(
        [
            ("doc_id", pa.string()),
            ("index", pa.int32()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("token_start", pa.int32()),
            ("token_end", pa.int32()),
            ("score", pa.float64()),
            ("critical", pa.bool_()),
            ("text", pa.string()),
        ]
    )
    return pa.schema(
        [
            ("schema_version", pa.int32()),
            ("id", pa.string()),
            ("doc_id", pa.string()),
            ("question_id", pa.string()),
            ("kind", pa.string()),
            ("question", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("prompt_ids", pa.list_(pa.int32())),
            ("chunks", pa.list_(chunk)),
            ("chosen", response),
            ("rejected", pa.list_(response)),
            ("answer_in_critical", pa.bool_()),
        ]
    )


def test_the_columns_of_a_data_set() -> None:
    assert arrow_schema(PreferenceSample).equals(schema_by_hand(), check_metadata=True)


class _Inner(Record):
    name: str | None = None


class _Head(Record):
    first: Int32


class _Row(_Inner, _Head):
    second: int | None = None
    third: list[Int32] = Field(min_length=1)
    kind: Literal["a", "b"] | None = None
    inner: list[_Inner]


def test_a_schema_follows_from_a_record() -> None:
    """Fields of base classes come first, those of the last base before all; a limit on a list changes nothing."""
    inner = pa.list_(pa.struct([("name", pa.string())]))
    expected = [("first", pa.int32()), ("name", pa.string()), ("second", pa.int64()), ("third", pa.list_(pa.int32()))]
    assert arrow_schema(_Row).equals(pa.schema([*expected, ("kind", pa.string()), ("inner", inner)]))


class _Note(Record):
    text: str
    lines: list[_Inner] = Field(default_factory=list)
    yield_: float | None = Field(default=None, validation_alias="yield", serialization_alias="yield")
    author: str | None = ABSENT


def test_json_of_a_record() -> None:
    """A field that may be absent is left out; another one that is None is null."""
    assert _Note(text="a").to_json() == {"text": "a", "lines": [], "yield": None}
    whole = {"text": "a", "lines": [{"name": None}], "yield": 0.5, "author": "b"}
    assert _Note.from_json(whole, where="", mend="").to_json() == whole


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "not a JSON object"),
        ({}, "lacks 'text'"),
        ({"text": "a", "x": 1}, "has an unknown 'x'"),
        ({"text": 1}, "'text': input should be a valid string"),
        ({"text": "a", "lines": [{}, {"name": 1}]}, "'lines.1.name': input should be a valid string"),
        ({"text": "a", "lines": [3]}, "'lines.0': not a JSON object"),
    ],
)
def test_a_damaged_record_is_one_line(value: object, fault: str) -> None:
    with pytest.raises(UserError) as raised:
        _Note.from_json(value, where="notes.jsonl:3", mend="write it again")
    assert str(raised.value) == f"notes.jsonl:3: damaged: {fault} (write it again)"


def test_an_outcome_is_a_sample_or_a_reason() -> None:
    for value, fault in (({}, "neither a sample nor a reason"), ({"decisions": 3}, "'decisions': input should be")):
        with pytest.raises(UserError, match=f"damaged: {fault}"):
            QuestionOutcome.from_json({"id": "q", "decisions": [], **value}, where="", mend="")
