"""What a recipe says about its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from logodata.common.field_types import OrPath, Tokens
from logodata.common.recipe_io import RecipeModel
from logodata.contract import QuestionKind

SourceFormat = Literal["auto", "jsonl", "csv", "parquet", "text", "hub", "longalpaca", "conversations"]

EMBEDDED_PREFIX = "embedded:"

ALIASES: dict[str, tuple[str, ...]] = {
    "doc_id": ("doc_id",),
    "context": ("context", "text", "document"),
    "title": ("title",),
    "questions": ("questions",),
    "question": ("question", "input"),
    "answers": ("answers", "answer"),
    "id": ("id", "_id"),
    "kind": ("kind",),
    "evidence": ("evidence",),
}
"""A row's fields and the names under which other data sets carry them (LongBench: input, _id)."""

RARER_ALIASES: dict[str, tuple[str, ...]] = {
    "context": ("passage", "article", "story", "content", "body", "page_content"),
    "questions": ("qas", "qa_pairs", "instructions"),
    "question": ("query", "instruction", "q"),
    "answers": ("output", "outputs", "response", "target", "completion", "a"),
    "id": ("qid", "question_id"),
}
"""More of them (Dolly: instruction, response; CoQA: story; L-Eval: instructions, outputs; SCROLLS: output)."""

PARTS = ("contexts", "paragraphs", "passages", "documents", "ctxs")
"""Lists of texts that make one document, in rows without ``context`` (MuSiQue, RAGAS, DPR)."""


def aliases(name: str) -> tuple[str, ...]:
    """All names of a field, in the order in which they count."""
    return ALIASES[name] + RARER_ALIASES.get(name, ())


class SourceSettings(RecipeModel):
    """Where documents come from."""

    path: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """A file (JSON lines or a JSON list, CSV, parquet, text), a folder (of text files, of CSV files, or of a data set's
    files), a hub data set such as ``org/name``, or ``embedded:train`` / ``embedded:eval`` for the documents that come
    with the project."""
    format: SourceFormat = "auto"
    """How to read it. ``auto`` goes by extension and content, and says in the log what it found. ``longalpaca`` (rows
    of instruction, input, output, file) and ``conversations`` (turns, or prompt and completion) stand for the shape of
    rows, in a JSON, CSV, parquet or hub container."""
    questions: Annotated[str, OrPath()] | None = None
    """A second file, JSON, CSV or parquet, with questions by ``doc_id``, for documents that hold none (or not all)."""
    split: str | None = None
    """Split of a hub data set, or of a data set's folder; may be left out where there is only one."""
    subset: str | None = None
    """Configuration of a hub data set that has several."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of the source's own columns for our fields, e.g. ``{context: passage}``."""
    join_tokens: Tokens | None = None
    """Join consecutive documents until they hold at least this many tokens, to make long contexts of shorter
    documents."""
    max_documents: int | None = Field(default=None, gt=0)
    """Take only the first documents of the file."""
    max_questions_per_document: int | None = Field(default=None, gt=0)
    """Take only the first questions of each document."""
    kinds: list[QuestionKind] | None = None
    """Take only questions of these kinds."""

    @model_validator(mode="after")
    def _columns_are_fields(self) -> SourceSettings:
        unknown = [name for name in self.columns if name not in ALIASES]
        if unknown:
            raise ValueError(f"columns: {unknown[0]!r} is no field of ours, there are {', '.join(ALIASES)}")
        return self

    @property
    def file(self) -> Path:
        """The path as a path; embedded documents excepted."""
        return Path(self.path).expanduser()
