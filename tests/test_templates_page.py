"""docs/models.md says what chat templates do."""

from __future__ import annotations

from tests.models_page import PAGE
from tests.templates_page import START, families, template_row


def test_the_table_is_what_the_templates_do() -> None:
    _, _, table = PAGE.read_text(encoding="utf-8").partition(START)
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    assert lines == [template_row(family) for family in families()]
