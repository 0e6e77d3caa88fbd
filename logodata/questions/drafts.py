"""Questions to be written: choose the chunks of each, and say what is wrong with what was written.

All functions are pure. :mod:`logodata.questions.writer` asks the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, get_args

import numpy as np

from logodata.contract import Chunk, Document, Question
from logodata.judge.measures import word_share
from logodata.questions.clusters import Clusters
from logodata.questions.settings import QuestionsRecipe, WrittenKind
from logodata.sources.fields import text_digest

# Such a question means nothing to a reader of the whole document.
_EXCERPT = re.compile(
    r"\b(?:this|these|the|above|given|following|provided) (?:text|passage|excerpt|paragraph|context|snippet)s?\b"
    r"|\b(?:these|the|above|given|following|provided) chunks\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"\b(?:chunks? (?:no\. ?|number |#)?|(?:passage|excerpt|snippet|text|context)s? (?:no\. ?|number |#))[0-9]{1,2}\b",
    re.IGNORECASE,
)
# Capitalised words inside a sentence need no model, and are good enough to find whom a document is about.
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")
_CALENDAR = """
January February March April May June July August September October November December
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
"""
_NO_NAMES = frozenset(_CALENDAR.split())


@dataclass(frozen=True, slots=True)
class Draft:
    """A question to be written, with its chunks or the reason why there are none."""

    id: str
    kind: WrittenKind
    document: Document
    chunks: tuple[Chunk, ...] = ()
    subject: str = ""
    reason: str = ""
    is_clustered: bool = False
    """Whether the chunks are those of a cluster: they are numbered in the prompt, and the model names its evidence."""

    @property
    def evidence(self) -> list[tuple[int, int]]:
        """The spans of the chunks, in characters of the document."""
        return [(chunk.start, chunk.end) for chunk in self.chunks]

    @property
    def text(self) -> str:
        """The text of the chunks."""
        return "\n".join(self.document.text[start:end] for start, end in self.evidence)


@dataclass(frozen=True, slots=True)
class Written:
    """The question and the answer that the model wrote for a draft, whose chunks are the evidence, and their grade."""

    draft: Draft
    question: str
    answer: str
    grade: float | None = None

    def as_question(self) -> Question:
        """Return the question as a document holds it."""
        draft = self.draft
        return Question(
            id=draft.id,
            question=self.question,
            answers=[self.answer],
            kind=draft.kind,
            evidence=draft.evidence,
            model_grade=self.grade,
        )


def draw_drafts(
    document: Document, chunks: Sequence[Chunk], recipe: QuestionsRecipe, clusters: Clusters | None = None
) -> list[Draft]:
    """Choose chunks for each question of a document, seeded by the recipe and by ``doc_id`` alone.

    ``clusters`` are those of the document, where ``recipe.clusters`` asks for them. The numbers of questions that an
    earlier run left in the document are passed over, with what they drew. So ids stay unique, and new questions are
    about something else.
    """
    form = re.compile(rf"{re.escape(document.doc_id)}-(?:{'|'.join(get_args(WrittenKind))})-(\d+)")
    taken = {int(match[1]) for question in document.questions if (match := form.fullmatch(question.id))}
    drafts = (
        draft for number, draft in enumerate(_drafts(document, chunks, recipe, clusters), 1) if number not in taken
    )
    return list(islice(drafts, recipe.questions_per_document))


def _drafts(
    document: Document, chunks: Sequence[Chunk], recipe: QuestionsRecipe, clusters: Clusters | None
) -> Iterator[Draft]:
    """Yield drafts without end."""
    seed = [recipe.seed, int(text_digest(document.doc_id)[:16], 16)]
    rng = np.random.default_rng(seed)
    groups: Iterator[list[int]] = iter(())
    if clusters is not None and recipe.clusters is not None:
        groups = clusters.draw(recipe.clusters, np.random.default_rng([*seed, 1]))
    names: list[tuple[str, list[int]]] = []
    if "biography" in recipe.kinds:
        names = recurring_names([document.text[chunk.start : chunk.end] for chunk in chunks])
    for number in count():
        kind = recipe.kinds[number % len(recipe.kinds)]
        draft_id = f"{document.doc_id}-{kind}-{number + 1:02d}"
        size = min(recipe.chunks_per_question, len(chunks))
        subject, chosen = "", list(range(len(chunks)))
        if len(chunks) < (1 if kind == "single_detail" else 2):
            yield Draft(draft_id, kind, document, reason="document_too_short")
            continue
        if kind == "multi_detail" and clusters is not None:
            if clusters.reason:
                yield Draft(draft_id, kind, document, reason=clusters.reason)
                continue
            shown = tuple(chunks[i] for i in next(groups))
            yield Draft(draft_id, kind, document, shown, is_clustered=True)
            continue
        if kind == "single_detail":
            chosen = [int(rng.integers(len(chunks)))]
        elif kind == "summary":
            start = int(rng.integers(len(chunks) - size + 1))
            chosen = chosen[start : start + size]
        elif kind == "biography":
            if not names:
                yield Draft(draft_id, kind, document, reason="no_recurring_name")
                continue
            subject, chosen = names[int(rng.integers(min(len(names), 5)))]
        if len(chosen) > size:
            chosen = sorted(int(i) for i in rng.choice(chosen, size=size, replace=False))
        yield Draft(draft_id, kind, document, tuple(chunks[i] for i in chosen), subject)


def recurring_names(texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return the names that occur in two texts or more, with the indices of the texts, the most widespread first."""
    places: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        for name in sorted(set(_NAME.findall(text)) - _NO_NAMES):
            places.setdefault(name, []).append(index)
    common = [(name, where) for name, where in places.items() if len(where) > 1]
    return sorted(common, key=lambda item: (-len(item[1]), item[0]))


def written_fault(written: Written, right_at: float) -> str:
    """Return what is wrong with a question and its answer; empty if nothing is."""
    if _EXCERPT.search(written.question) or _NUMBERED.search(written.question):
        return "question_speaks_of_the_excerpt"
    if written.draft.is_clustered and _NUMBERED.search(written.answer):
        return "answer_speaks_of_the_excerpt"
    if word_share(written.question, [written.answer]) == 1.0:
        return "question_holds_its_answer"
    detail = written.draft.kind in ("single_detail", "multi_detail")
    if detail and word_share(written.draft.text, [written.answer]) < right_at:
        return "answer_not_in_evidence"
    return ""


def rejected_row(draft: Draft, reason: str, **details: str | float) -> dict[str, Any]:
    """Return the row of a question that is not kept."""
    place = {"id": draft.id, "doc_id": draft.document.doc_id, "where": draft.document.where, "kind": draft.kind}
    return {**place, "reason": reason, **details, "evidence": draft.evidence}
