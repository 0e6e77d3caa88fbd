"""The documentation says what the code says: every message has its row, every link its end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.messages import ROOT, WORDS, messages

PAGE = ROOT / "docs" / "errors.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]

OTHERS = {
    "torch.OutOfMemoryError: CUDA out of memory",
    *("… is nan", "… is inf", "… is -inf"),  # of any number that a model computes: logodata.common.finite
    "…: …, got …",  # of any field of a recipe: logodata.common.recipes.reading
    *("File name too long", "Permission denied"),  # the system's words: logodata.common.errors
    *("loss is …", "margin is …"),  # the same while training
    "warning: beta * gap is …, below …: the loss starts saturated; build with generation.preferred=guided, model or "
    "best_of_n, or train with a smaller objective.beta",  # printed with the table of log-probabilities
}
"""Rows for what no call of the code spells."""


def rows() -> Iterator[str]:
    """The first column of the page's tables of messages, one message after the other."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])


def test_every_message_has_its_row() -> None:
    page = set(rows())
    missing = {
        f"{found.text}   ({found.place})"
        for found in messages()
        if WORDS.search(found.text)
        and (not found.is_note or found.text.startswith("warning"))
        and found.text not in page
    }
    assert not missing, f"{PAGE} lacks a row for:\n" + "\n".join(sorted(missing))


def test_every_row_is_a_message() -> None:
    known = {found.text for found in messages()} | OTHERS
    stale = [row for row in rows() if row not in known]
    assert not stale, f"{PAGE} has rows for what no command says:\n" + "\n".join(stale)


def test_no_message_has_two_rows_in_one_section() -> None:
    for section in PAGE.read_text(encoding="utf-8").split("\n## "):
        lines = [line for line in section.splitlines() if line.startswith("| `")]
        found = [text for line in lines for text in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
        assert len(found) == len(set(found)), section.splitlines()[0]


def test_tables_have_as_many_cells_in_every_row() -> None:
    for page in PAGES:
        width = None
        for line in prose(page).splitlines():
            cells = re.sub(r"\\\||`[^`]*`", "", line).count("|") if line.startswith("|") else None
            assert None in (cells, width) or cells == width, f"{page.name}: {line}"
            width = cells


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_page_is_found_from_the_others() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "guide.md"):
        assert any(link.endswith("errors.md") for link in links(page)), page.name


def test_files_that_the_docs_name_are_there() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:recipes|benchmarks|docs|tests|logodata|logotrain|logoeval)/[\w./-]+)`", prose(page)
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
