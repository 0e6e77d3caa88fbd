"""Questions on raw documents, written by a model (paper section 4: questions to RedPajama by Qwen2-70B-Instruct).

For each question a group of chunks is drawn; the model writes question and answer from it; the chunks are the evidence.
A question is kept if it has the form asked for, its answer rests on the evidence, and the model does not answer it
without any context. Every other one is a row of the rejected file, with its reason.

As in a build, planning and checking are pure and run again on every start; what the model wrote is on disk as it came.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from logodata.chunking import ChunkingSettings, chunk_text
from logodata.common.console import Tracker, note, progress
from logodata.common.errors import UserError
from logodata.common.recipe_io import RecipeModel
from logodata.common.run_dir import append_lines, bind_settings, locked, write_atomic
from logodata.contract import Chunk, Document
from logodata.engines import Engine, GenerationRequest, GenerationResult, Sampling
from logodata.engines.settings import EngineSettings, open_engine
from logodata.judge import word_share
from logodata.models import load_tokenizer, model_eos_ids, model_fingerprint, model_window
from logodata.prompts import CLOSED_BOOK_TEMPLATE, WRITING_TEMPLATES, PromptFormat, decode_text, turn_end_ids
from logodata.responses import ResponseLog
from logodata.sources import Source, SourceSettings, read_source, source_fingerprint
from logodata.sources.fields import text_digest
from logodata.text import words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WrittenKind = Literal["single_detail", "multi_detail", "biography", "summary"]

_REPLY = re.compile(
    r"^[\s*#>]*q(?:uestion)?\s*:[\s*]*(?P<question>.+?)[\s*#>]*^[\s*#>]*a(?:nswer)?\s*:[\s*]*(?P<answer>.+?)\s*"
    r"(?=^[\s*#>]*q(?:uestion)?\s*:|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
# Such a question means nothing to who reads the whole document.
_EXCERPT = re.compile(
    r"\b(?:this|the|above|given|following|provided) (?:text|passage|excerpt|paragraph|context|snippet)s?\b",
    re.IGNORECASE,
)
# Capitalised words inside a sentence: no model, and good enough to find whom a document is about.
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")
_CALENDAR = """
January February March April May June July August September October November December
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
"""
_NO_NAMES = frozenset(_CALENDAR.split())


class QuestionsRecipe(RecipeModel):
    """How questions are written."""

    model: str = Field(min_length=1)
    """The model that writes: ``embedded``, a folder, or a hub name. A stronger one than that to be trained is fine."""
    chat_template: Path | None = None
    """A Jinja file, for models whose tokenizer has no chat template."""
    seed: int = 0
    """Draws chunks, and what the model samples."""
    source: SourceSettings
    """Documents. Questions that they hold already are kept."""
    chunking: ChunkingSettings = ChunkingSettings()
    """How documents are cut."""
    questions_per_document: int = Field(default=8, gt=0)
    """Questions to write for each document."""
    kinds: tuple[WrittenKind, ...] = Field(
        default=("single_detail", "multi_detail", "biography", "summary"), min_length=1
    )
    """Kinds of questions, in turn."""
    chunks_per_question: int = Field(default=4, ge=2)
    """Chunks that a question is written from; one for ``single_detail``. For ``summary`` they follow one another, for
    ``multi_detail`` they are drawn from the whole document, for ``biography`` they hold the same name."""
    temperature: float = Field(default=0.7, ge=0)
    """For writing; 0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """For writing."""
    max_new_tokens: int = Field(default=384, gt=0)
    """Length cap of what is written; a reply that meets it is not kept."""
    max_closed_book_tokens: int = Field(default=64, gt=0)
    """Length cap of the answer without context."""
    right_at: float = Field(default=0.6, gt=0, le=1)
    """An answer without context is right, and an answer rests on its evidence (single and multi detail), if this share
    of the written answer's content words is there."""
    group_size: int = Field(default=256, gt=0)
    """Prompts that go to the engine in one submission, at least."""
    engine: EngineSettings = EngineSettings()
    """What runs the model."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A question to be written: its chunks, or the reason why there are none."""

    id: str
    kind: WrittenKind
    document: Document
    chunks: tuple[Chunk, ...] = ()
    subject: str = ""
    reason: str = ""

    @property
    def evidence(self) -> list[tuple[int, int]]:
        """Spans of the chunks, in characters of the document."""
        return [(chunk.start, chunk.end) for chunk in self.chunks]

    @property
    def text(self) -> str:
        """Text of the chunks."""
        return "\n".join(self.document.text[start:end] for start, end in self.evidence)


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote for a draft."""

    draft: Draft
    question: str
    answer: str


def draw_drafts(document: Document, chunks: Sequence[Chunk], recipe: QuestionsRecipe) -> list[Draft]:
    """Choose chunks for each question of a document; seeded by recipe and ``doc_id``, whatever came before."""
    rng = np.random.default_rng([recipe.seed, int(text_digest(document.doc_id)[:16], 16)])
    drafts = []
    names: list[tuple[str, list[int]]] = []
    if "biography" in recipe.kinds:
        names = recurring_names([document.text[chunk.start : chunk.end] for chunk in chunks])
    for number in range(recipe.questions_per_document):
        kind = recipe.kinds[number % len(recipe.kinds)]
        draft_id = f"{document.doc_id}-{kind}-{number + 1:02d}"
        size = min(recipe.chunks_per_question, len(chunks))
        subject, chosen = "", list(range(len(chunks)))
        if len(chunks) < (1 if kind == "single_detail" else 2):
            drafts.append(Draft(draft_id, kind, document, reason="document_too_short"))
            continue
        if kind == "single_detail":
            chosen = [int(rng.integers(len(chunks)))]
        elif kind == "summary":
            start = int(rng.integers(len(chunks) - size + 1))
            chosen = chosen[start : start + size]
        elif kind == "biography":
            if not names:
                drafts.append(Draft(draft_id, kind, document, reason="no_recurring_name"))
                continue
            subject, chosen = names[int(rng.integers(min(len(names), 5)))]
        if len(chosen) > size:
            chosen = sorted(int(i) for i in rng.choice(chosen, size=size, replace=False))
        drafts.append(Draft(draft_id, kind, document, tuple(chunks[i] for i in chosen), subject))
    return drafts


def recurring_names(texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Names that occur in two texts at least, with the indices of these; the most widespread first."""
    places: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        for name in sorted(set(_NAME.findall(text)) - _NO_NAMES):
            places.setdefault(name, []).append(index)
    common = [(name, where) for name, where in places.items() if len(where) > 1]
    return sorted(common, key=lambda item: (-len(item[1]), item[0]))


def parse_reply(reply: str) -> tuple[str, str] | None:
    """Question and answer of the form asked for; of several the first; None if there is none."""
    match = _REPLY.search(reply)
    if match is None or len(words(match["question"])) < 3 or not words(match["answer"]):
        return None
    question, answer = (" ".join(match[name].split()).strip("*").strip() for name in ("question", "answer"))
    return question, answer


def written_fault(written: Written, right_at: float) -> str:
    """What is wrong with a question and its answer, before the model is asked without context; empty if nothing."""
    if _EXCERPT.search(written.question):
        return "question_speaks_of_the_excerpt"
    if word_share(written.question, [written.answer]) == 1.0:
        return "question_holds_its_answer"
    detail = written.draft.kind in ("single_detail", "multi_detail")
    if detail and word_share(written.draft.text, [written.answer]) < right_at:
        return "answer_not_in_evidence"
    return ""


class Writer:
    """Writes and checks questions, a group of documents at a time.

    Args:
        recipe: what to write, and with which model.
        log: what the model wrote before; new replies go there at once.
    """

    def __init__(self, recipe: QuestionsRecipe, log: ResponseLog) -> None:
        self._recipe, self._log = recipe, log
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(recipe.model, recipe.chat_template)
        self._window = model_window(recipe.model)
        self._stop_ids = turn_end_ids(self._tokenizer, model_eos_ids(recipe.model))
        self._forms = {kind: PromptFormat(self._tokenizer, WRITING_TEMPLATES[kind]) for kind in recipe.kinds}
        self._closed_book = PromptFormat(self._tokenizer, CLOSED_BOOK_TEMPLATE)
        self._engine: Engine | None = None

    def drafts(self, document: Document) -> list[Draft]:
        """Questions to be written on a document."""
        chunks = chunk_text(self._tokenizer, document.text, self._recipe.chunking.chunk_tokens)
        return draw_drafts(document, chunks, self._recipe)

    def write(self, drafts: Sequence[Draft], tracker: Tracker) -> tuple[list[Written], list[dict[str, Any]]]:
        """Have questions written and checked.

        Returns:
            the questions to keep, and a row for every other one.
        """
        rejected = [_row(draft, draft.reason) for draft in drafts if draft.reason]
        requests = {draft.id: self._writing_request(draft) for draft in drafts if not draft.reason}
        by_id = {draft.id: draft for draft in drafts}
        for draft_id in [i for i, request in requests.items() if not self._fits(request)]:
            rejected.append(_row(by_id[draft_id], "prompt_exceeds_window"))
            del requests[draft_id]
        self._generate(list(requests.values()), tracker)

        candidates: list[Written] = []
        seen: set[tuple[str, tuple[str, ...]]] = {
            (draft.document.doc_id, tuple(words(q.question))) for draft in drafts for q in draft.document.questions
        }
        for draft_id, request in requests.items():
            draft, (reply, ended) = by_id[draft_id], self._reply(request)
            parsed = parse_reply(reply)
            if parsed is None or not ended:
                rejected.append(_row(draft, "malformed" if parsed is None else "not_ended", reply=reply))
                continue
            written = Written(draft, *parsed)
            key = (draft.document.doc_id, tuple(words(written.question)))
            reason = "duplicate_question" if key in seen else written_fault(written, self._recipe.right_at)
            if reason:
                rejected.append(_row(draft, reason, question=written.question, answer=written.answer))
                continue
            seen.add(key)
            candidates.append(written)

        checks = {written.draft.id: self._closed_book_request(written) for written in candidates}
        self._generate([request for request in checks.values() if self._fits(request)], tracker)
        kept = []
        for written in candidates:
            if not self._fits(checks[written.draft.id]):
                rejected.append(_row(written.draft, "question_exceeds_window", question=written.question))
                continue
            reply, _ = self._reply(checks[written.draft.id])
            if word_share(reply, [written.answer]) >= self._recipe.right_at:
                details = {"question": written.question, "answer": written.answer, "reply": reply}
                rejected.append(_row(written.draft, "answered_without_context", **details))
                continue
            kept.append(written)
        return kept, rejected

    def _writing_request(self, draft: Draft) -> GenerationRequest:
        recipe = self._recipe
        prompt = self._forms[draft.kind].encode([chunk.token_ids for chunk in draft.chunks], question=draft.subject)
        greedy = recipe.temperature == 0
        sampling = Sampling(
            max_new_tokens=recipe.max_new_tokens,
            stop_ids=self._stop_ids,
            temperature=recipe.temperature,
            top_p=1.0 if greedy else recipe.top_p,
            seed=recipe.seed,
        )
        return GenerationRequest(draft.id, prompt.ids, sampling)

    def _closed_book_request(self, written: Written) -> GenerationRequest:
        prompt = self._closed_book.encode([], question=written.question)
        sampling = Sampling(self._recipe.max_closed_book_tokens, self._stop_ids)
        return GenerationRequest(f"{written.draft.id}/closed-book", prompt.ids, sampling)

    def _fits(self, request: GenerationRequest) -> bool:
        return len(request.prompt_ids) + request.sampling.max_new_tokens <= self._window

    def _generate(self, requests: Sequence[GenerationRequest], tracker: Tracker) -> None:
        missing = {request.id: request for request in requests if self._log.get(request) is None}
        if not missing:
            return
        if self._engine is None:
            self._engine = open_engine(self._recipe.engine, self._recipe.model)
        for number, result in enumerate(self._engine.generate(list(missing.values())), 1):
            self._log.add(missing[result.id], result)
            tracker.advance(0, replies=number)

    def _reply(self, request: GenerationRequest) -> tuple[str, bool]:
        found = self._log.get(request)
        if found is None:
            raise RuntimeError(f"the engine gave no response to request {request.id}")
        result: GenerationResult = found[0]
        return decode_text(self._tokenizer, result.token_ids), result.finish_reason == "stop"


def write_questions(recipe: QuestionsRecipe, output: Path) -> dict[str, Any]:
    """Write ``output``, JSON lines of documents with questions that ``logodata build`` reads; beside it
    ``NAME.rejected.jsonl``, and ``NAME.work`` to continue from. Does nothing to a finished file.

    Returns:
        counts: documents, written, kept, and rejected by reason. Empty if the file was finished already.

    Raises:
        UserError: the source is at fault, the file is somebody else's, or no question was kept.
    """
    if output.suffix != ".jsonl":
        raise UserError("not a .jsonl file", where=str(output), mend="give -o NAME.jsonl")
    if recipe.source.join_tokens is not None:
        raise UserError("source.join_tokens has no meaning here", mend="give it to logodata build")
    work = output.with_suffix(".work")
    if output.exists() and not (work / "settings.json").exists():
        raise UserError("exists already, and is not this command's", where=str(output), mend="give another -o")
    fingerprint = model_fingerprint(recipe.model)
    settings = {
        "recipe": recipe.model_dump(mode="json", exclude={"engine"}),
        "source_fingerprint": source_fingerprint(recipe.source),
        "model_fingerprint": fingerprint,
    }
    with locked(work):
        if output.exists():
            bind_settings(work, "settings.json", settings)
            note(f"{output} is finished already")
            return {}
        # Before the folder is bound to it: a source that must be mended first would be another one then.
        source = read_source(recipe.source, needs_questions=False)
        bind_settings(work, "settings.json", settings)
        return _write_all(recipe, source, fingerprint, work, output)


def _write_all(recipe: QuestionsRecipe, source: Source, fingerprint: str, work: Path, output: Path) -> dict[str, Any]:
    writer = Writer(recipe, ResponseLog(work / "responses.jsonl", fingerprint))
    reasons = Counter(fault["reason"] for fault in source.faults)
    num_kept = 0
    parts = {name: work / f"{name}.part" for name in ("documents", "rejected")}
    write_atomic(parts["documents"], "")
    write_atomic(parts["rejected"], "".join(_line({**fault, "stage": "source"}) for fault in source.faults))
    with progress("questions", len(source.documents)) as tracker:
        for group in _groups((writer.drafts(document) for document in source.documents), recipe.group_size):
            kept, rows = writer.write([draft for drafts in group for draft in drafts], tracker)
            documents = (_document_row(drafts[0].document, kept, recipe.model, fingerprint) for drafts in group)
            append_lines(parts["documents"], "".join(map(_line, documents)))
            append_lines(parts["rejected"], "".join(_line({**row, "stage": "questions"}) for row in rows))
            reasons.update(row["reason"] for row in rows)
            num_kept += len(kept)
            tracker.advance(len(group), kept=num_kept)
    try:
        os.replace(parts["rejected"], output.with_suffix(".rejected.jsonl"))
        if num_kept:
            os.replace(parts["documents"], output)
    except OSError as error:
        raise UserError(
            f"cannot write: {error.strerror}", where=str(output), mend="give another -o, or mend its folder"
        ) from error
    stats = {"documents": len(source.documents), "kept": num_kept, "rejected_by_reason": dict(reasons.most_common())}
    if not num_kept:
        raise UserError(
            f"no question was kept: {describe_questions(stats)}",
            where=str(output.with_suffix(".rejected.jsonl")),
            mend="look at the replies there; a stronger model writes better questions",
        )
    return stats


def describe_questions(stats: dict[str, Any]) -> str:
    """One line: how many were kept, why the others were not."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats["rejected_by_reason"].items())
    line = f"{stats['kept']} questions on {stats['documents']} documents"
    return line + (f"; not kept: {reasons}" if reasons else "")


def _groups(items: Iterable[list[Draft]], least: int) -> Iterator[list[list[Draft]]]:
    group: list[list[Draft]] = []
    for drafts in items:
        group.append(drafts)
        if sum(map(len, group)) >= least:
            yield group
            group = []
    if group:
        yield group


def _document_row(document: Document, kept: Sequence[Written], model: str, fingerprint: str) -> dict[str, Any]:
    given = [question.model_dump() for question in document.questions]
    new = [
        {
            "id": written.draft.id,
            "question": written.question,
            "answers": [written.answer],
            "kind": written.draft.kind,
            "evidence": written.draft.evidence,
        }
        for written in kept
        if written.draft.document.doc_id == document.doc_id
    ]
    return {
        "doc_id": document.doc_id,
        "title": document.title,
        "written_by": f"{model} ({fingerprint})",
        "context": document.text,
        "questions": [*given, *new],
    }


def _row(draft: Draft, reason: str, **details: str) -> dict[str, Any]:
    place = {"id": draft.id, "doc_id": draft.document.doc_id, "where": draft.document.where, "kind": draft.kind}
    return {**place, "reason": reason, **details, "evidence": draft.evidence}


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
