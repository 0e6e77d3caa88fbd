"""docs/models.md says how each kind of model trains, and README how many there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers

from tests.models_page import PAGE, kinds, row

README = Path(__file__).parents[1] / "README.md"


def table() -> dict[str, str]:
    text, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## ")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {re.findall("`(.*?)`", line)[0]: line for line in lines}


def written_for() -> str:
    return re.findall(r"written with transformers (\S+),", PAGE.read_text(encoding="utf-8"))[0]


needs_the_version = pytest.mark.skipif(
    transformers.__version__ != written_for(), reason=f"the table is that of transformers {written_for()}"
)


@needs_the_version
def test_the_table_has_every_kind() -> None:
    assert list(table()) == kinds()


@pytest.mark.slow
@needs_the_version
@pytest.mark.parametrize("kind", kinds())
def test_a_row_of_the_table_is_what_the_probe_finds(kind: str) -> None:
    assert row(kind) == table()[kind]


def test_few_kinds_are_refused() -> None:
    assert sum("refused" in line for line in table().values()) <= 5


def test_the_readme_counts_them() -> None:
    lines = list(table().values())
    shared = [line for line in lines if "| shared" in line]
    separate = [line for line in lines if "| separate rows" in line and "gives no small copy" not in line]
    text = " ".join(README.read_text(encoding="utf-8").split())
    assert f"{len(shared) + len(separate)} kinds of language models" in text
    assert f"{len(shared)} of them share the prompt" in text
