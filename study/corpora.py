"""Read FairytaleQA (Xu et al. 2022, arXiv 2203.13947), which the user downloads: 278 fairy tales of Project Gutenberg
with 10,580 questions. https://github.com/uci-soe/FairytaleQAData, Apache-2.0. Nothing of it comes with the project.

A document is a row as ``logodata build`` reads it, with the spans of each question's evidence in characters.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError

Document = dict[str, Any]

_KINDS = {"local": "single_detail", "summary": "multi_detail"}
"""FairytaleQA's questions on one section of a story, and on several."""

_ANSWERS = tuple(f"answer{number}" for number in range(1, 7))


def read_fairytaleqa(folder: Path) -> list[Document]:
    """Return all stories of a copy of FairytaleQA's repository, by name, each with the questions of its annotators.

    Raises:
        UserError: The folder is no such copy, or a file of it is damaged.
    """
    root = folder / "data-by-train-split"
    files = sorted((root / "questions").glob("*/*-questions.csv"), key=lambda path: path.name)
    if not files:
        raise UserError(
            "no copy of FairytaleQA: it has no data-by-train-split/questions/*/*-questions.csv",
            where=str(folder),
            mend="git clone https://github.com/uci-soe/FairytaleQAData, and give this folder",
        )
    return [_story(root, path) for path in files]


def _story(root: Path, questions: Path) -> Document:
    name = questions.name.removesuffix("-questions.csv")
    path = root / "section-stories" / questions.parent.name / f"{name}-story.csv"
    spans: dict[str, tuple[int, int]] = {}
    text = ""
    for row in _rows(path, ("section", "text")):
        section = row["text"].strip()
        start = len(text) + (2 if text else 0)
        text += ("\n\n" if text else "") + section
        spans[row["section"].strip()] = (start, start + len(section))
    asked: list[dict[str, Any]] = []
    for row in _rows(questions, ("local-or-sum", "cor_section", "question", "answer1")):
        answers = [row[column].strip() for column in _ANSWERS if (row.get(column) or "").strip()]
        evidence = [spans[name] for part in row["cor_section"].split(",") if (name := part.strip()) in spans]
        if not row["question"].strip() or not answers:
            continue  # an empty line of the table
        asked.append(
            {
                # The table's own numbers stand twice in some stories.
                "id": f"{name_of(questions)}-q{len(asked) + 1}",
                "question": row["question"].strip(),
                "answers": list(dict.fromkeys(answers)),
                "kind": _KINDS.get(row["local-or-sum"].strip(), "other"),
                "evidence": evidence,
            }
        )
    return {"doc_id": name_of(questions), "title": name.replace("-", " "), "context": text, "questions": asked}


def name_of(questions: Path) -> str:
    """Return the id of the story whose questions a file holds."""
    return f"fairytaleqa-{questions.name.removesuffix('-questions.csv')}"


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table that has these columns."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), mend="clone the corpus again") from error
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        what = f"has no column {missing[0]!r}" if rows else "holds no row"
        raise UserError(what, where=str(path), mend="clone the corpus again")
    return [{key: value or "" for key, value in row.items() if key} for row in rows]
