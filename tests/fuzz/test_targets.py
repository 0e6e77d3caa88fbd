"""Parsers take anything, and end in a result or in one line of error; see ``targets``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, run_target

ROW = b'{"pred": "x", "input": "Q", "context": "T", "answers": ["a"], "length": %s}'


def _archive(**changes: int) -> bytes:
    """An archive with some bytes of its directory, or of its entry's own head, changed."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("qasper.jsonl", ROW % b"1")
    whole = bytearray(made.getvalue())
    for name, value in changes.items():
        part, at = name.rsplit("_", 1)
        whole[int(at) + (whole.rindex(b"PK\x01\x02") if part == "directory" else 0)] = value
    return bytes(whole)


FOUND = [
    ("prediction_bytes", ROW % b"NaN"),
    ("prediction_bytes", ROW % b"Infinity"),
    ("longbench_bytes", ROW % b"NaN"),
    ("longbench_bytes", ROW % b"-Infinity"),
    ("longbench_bytes", _archive(directory_6=97)),  # of a later version
    ("longbench_bytes", _archive(head_7=8, head_30=0xFF)),  # a name in UTF-8 that is none
]
"""What fuzzing found once: target and input."""


@pytest.mark.parametrize("name", TARGETS)
@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_anything_ends_in_a_result_or_in_one_line(name: str, data: bytes, tmp_path: Path) -> None:
    run_target(name, data, tmp_path)


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_fuzzing_found(name: str, data: bytes, tmp_path: Path) -> None:
    run_target(name, data, tmp_path)
