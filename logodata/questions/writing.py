"""Have a model write questions on raw documents (paper section 4: Qwen2-70B-Instruct on RedPajama).

For each question chunks are drawn as its evidence, and the model writes question and answer from them. A question is
kept if it has the form that was asked for, its answer rests on the evidence, and the model does not answer it without
context. Every other one is a row of the rejected file, with its reason.

As in a build, planning and checking are pure and run again on every start. What the model writes is on disk at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.build.inputs import check_inputs
from logodata.common.console import Tracker, note, progress
from logodata.common.errors import UserError
from logodata.common.files import append_lines, bind_settings, locked, write_atomic
from logodata.common.groups import in_groups
from logodata.common.json_files import strict_dumps
from logodata.common.turn_end import turn_end_ids
from logodata.common.words import without_reasoning, words
from logodata.contexts.chunking import chunk_text
from logodata.contract import Document
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.prices import describe_estimate, find_prices
from logodata.engines.response_log import CachedEngine, ResponseLog, note_usage
from logodata.engines.settings import asked_fingerprint, asked_model, engine_window, open_engine
from logodata.judge.measures import word_share
from logodata.models.facts import model_eos_ids
from logodata.prompts import CLOSED_BOOK_TEMPLATE, WRITING_TEMPLATES, Prompt, PromptFormat
from logodata.questions.drafts import Draft, Written, draw_drafts, parse_reply, written_fault
from logodata.questions.settings import QuestionsRecipe
from logodata.sources import Source, check_outside, read_source, source_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GROUP_CHARACTERS = 2**25
"""The most characters of documents that are kept until their questions are written, and those of one document more."""


class Writer:
    """Writes and checks questions, a group of documents at a time. ``log`` holds what the model wrote before."""

    def __init__(self, recipe: QuestionsRecipe, log: ResponseLog) -> None:
        self._recipe = recipe
        self._engine = CachedEngine(log, lambda: open_engine(recipe.engine, recipe.model, self._tokenizer))
        self._tokenizer: PreTrainedTokenizerBase = recipe.load_tokenizer()
        self._window = engine_window(recipe.engine, recipe.model)
        self._stop_ids = turn_end_ids(self._tokenizer, model_eos_ids(recipe.model))
        self._reasoning = recipe.reasoning(self._tokenizer, self._window)
        self._forms = {kind: PromptFormat(self._tokenizer, WRITING_TEMPLATES[kind]) for kind in recipe.kinds}
        self._closed_book = PromptFormat(self._tokenizer, CLOSED_BOOK_TEMPLATE)
        self._is_estimated = False

    def drafts(self, document: Document) -> list[Draft]:
        """Return the questions to be written on a document."""
        chunks = chunk_text(self._tokenizer, document.text, self._recipe.chunking.chunk_tokens)
        return draw_drafts(document, chunks, self._recipe)

    def write(self, drafts: Sequence[Draft], tracker: Tracker) -> tuple[list[Written], list[dict[str, Any]]]:
        """Have questions written and checked, and return those to keep, and a row for every other one."""
        rejected = [_row(draft, draft.reason) for draft in drafts if draft.reason]
        asked = [(draft, self._writing_request(draft)) for draft in drafts if not draft.reason]
        rejected += [_row(draft, "prompt_exceeds_window") for draft, request in asked if not self._fits(request)]
        asked = [(draft, request) for draft, request in asked if self._fits(request)]
        self._note_cost([request for _, request in asked], len({draft.document.doc_id for draft in drafts}))
        self._engine.generate([request for _, request in asked], tracker, "replies")

        candidates: list[Written] = []
        seen: set[tuple[str, tuple[str, ...]]] = {
            (draft.document.doc_id, tuple(words(q.question))) for draft in drafts for q in draft.document.questions
        }
        for draft, request in asked:
            reply, ended = self._reply(request)
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

        checks = [(written, self._closed_book_request(written)) for written in candidates]
        self._engine.generate([request for _, request in checks if self._fits(request)], tracker, "replies")
        kept = []
        for written, request in checks:
            if not self._fits(request):
                rejected.append(_row(written.draft, "question_exceeds_window", question=written.question))
                continue
            reply, _ = self._reply(request)
            if word_share(reply, [written.answer]) >= self._recipe.right_at:
                details = {"question": written.question, "answer": written.answer, "reply": reply}
                rejected.append(_row(written.draft, "answered_without_context", **details))
                continue
            kept.append(written)
        return kept, rejected

    def note_usage(self) -> None:
        """Say which tokens a chat server has counted for all replies, and what they cost."""
        note_usage("replies", self._engine, self._recipe.engine, self._recipe.model)

    def _note_cost(self, requests: Sequence[GenerationRequest], num_documents: int) -> None:
        """Say before the first prompts are sent what they may cost, where there is a table of prices."""
        prices = None if self._is_estimated else find_prices(self._recipe.engine, self._recipe.model)
        self._is_estimated = True
        if prices is not None:
            said = describe_estimate(requests, prices)
            note(f"{said}, for the first {num_documents} documents; checks of the questions come on top")

    def _writing_request(self, draft: Draft) -> GenerationRequest:
        recipe = self._recipe
        prompt = self._forms[draft.kind].encode([chunk.token_ids for chunk in draft.chunks], question=draft.subject)
        top_p = recipe.top_p if recipe.temperature else 1.0
        answer = Sampling(recipe.max_new_tokens, self._stop_ids, recipe.temperature, top_p, recipe.seed)
        return self._request(draft.id, prompt, answer)

    def _closed_book_request(self, written: Written) -> GenerationRequest:
        prompt = self._closed_book.encode([], question=written.question)
        answer = Sampling(self._recipe.max_closed_book_tokens, self._stop_ids)
        return self._request(f"{written.draft.id}/closed-book", prompt, answer)

    def _request(self, request_id: str, prompt: Prompt, answer: Sampling) -> GenerationRequest:
        return GenerationRequest(request_id, prompt.ids, self._reasoning.sampling(answer, self._stop_ids))

    def _fits(self, request: GenerationRequest) -> bool:
        return request.max_total_tokens <= self._window

    def _reply(self, request: GenerationRequest) -> tuple[str, bool]:
        result, _ = self._engine.answer(request)
        answer = replace(request.sampling, max_new_tokens=request.sampling.max_new_tokens - self._reasoning.budget)
        reply = self._reasoning.split(result, answer, opened=self._reasoning.opens(request.prompt_ids))
        return without_reasoning(reply.text), reply.finish_reason == "stop"


def write_questions(recipe: QuestionsRecipe, output: Path) -> dict[str, Any]:
    """Write documents with questions, as ``logodata build`` reads them, to the JSON Lines file ``output``.

    Beside it are ``NAME.rejected.jsonl``, and ``NAME.work`` to continue from. A finished file is left alone.

    Returns:
        Counts of documents, kept questions, and rejected ones by reason; empty if the file was finished already.

    Raises:
        UserError: The source has a fault, the file is not this command's, or no question was kept.
    """
    if output.suffix != ".jsonl":
        raise UserError("not a .jsonl file", where=str(output), mend="give -o NAME.jsonl")
    if recipe.source.join_tokens is not None:
        raise UserError("source.join_tokens has no meaning here", mend="give it to logodata build")
    check_outside(recipe.source, output)
    check_inputs(recipe, recipe.source, output)
    work = output.with_suffix(".work")
    if output.exists() and not (work / "settings.json").exists():
        raise UserError("exists already, and is not this command's", where=str(output), mend="give another -o")
    fingerprint = asked_fingerprint(recipe.engine, recipe.model)
    settings = {
        "recipe": recipe.model_dump(mode="json", exclude={"engine"}),
        "source_fingerprint": source_fingerprint(recipe.source),
        "model_fingerprint": fingerprint,
        "window": engine_window(recipe.engine, recipe.model),
    }
    with locked(work):
        if output.exists():
            bind_settings(work, "settings.json", settings)
            note(f"{output} is finished already")
            return {}
        # A source with a fault does not bind the folder, so that it may be used there once it is mended.
        source = read_source(recipe.source, needs_questions=False)
        bind_settings(work, "settings.json", settings)
        if held := source.documents.num_questions:
            note(f"{recipe.source.path}: {held} questions that the documents have already are kept beside the new ones")
        return _write_all(recipe, source, fingerprint, work, output)


def _characters(drafts: Sequence[Draft]) -> int:
    return len(drafts[0].document.text)


def _write_all(recipe: QuestionsRecipe, source: Source, fingerprint: str, work: Path, output: Path) -> dict[str, Any]:
    writer = Writer(recipe, ResponseLog(work / "responses.jsonl", fingerprint))
    reasons = Counter(row.reason for row in source.rejected)
    num_kept, name = 0, asked_model(recipe.engine, recipe.model)
    parts = {name: work / f"{name}.part" for name in ("documents", "rejected")}
    write_atomic(parts["documents"], "")
    write_atomic(parts["rejected"], "".join(_line(row.to_json()) for row in source.rejected))
    with progress("questions", len(source.documents)) as tracker:
        limits = (len, recipe.group_size), (_characters, _GROUP_CHARACTERS)
        for group in in_groups(map(writer.drafts, source.documents), *limits):
            kept, rows = writer.write([draft for drafts in group for draft in drafts], tracker)
            documents = (_document_row(drafts[0].document, kept, name, fingerprint) for drafts in group)
            append_lines(parts["documents"], "".join(map(_line, documents)))
            append_lines(parts["rejected"], "".join(_line({**row, "stage": "questions"}) for row in rows))
            reasons.update(row["reason"] for row in rows)
            num_kept += len(kept)
            tracker.advance(len(group), kept=num_kept)
    writer.note_usage()
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
    """Return a line with the number of questions that were kept, and why the others were not."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats["rejected_by_reason"].items())
    line = f"{stats['kept']} questions on {stats['documents']} documents"
    return f"{line}; not kept: {reasons}" if reasons else line


def _document_row(document: Document, kept: Sequence[Written], model: str, fingerprint: str) -> dict[str, Any]:
    new = [written.as_question() for written in kept if written.draft.document.doc_id == document.doc_id]
    return {
        "doc_id": document.doc_id,
        "title": document.title,
        "written_by": f"{model} ({fingerprint})",
        "context": document.text,
        "questions": [question.model_dump() for question in (*document.questions, *new)],
    }


def _row(draft: Draft, reason: str, **details: str) -> dict[str, Any]:
    place = {"id": draft.id, "doc_id": draft.document.doc_id, "where": draft.document.where, "kind": draft.kind}
    return {**place, "reason": reason, **details, "evidence": draft.evidence}


def _line(row: dict[str, Any]) -> str:
    return strict_dumps(row) + "\n"
