"""The model that writes questions: it is asked for them, and then to answer them as nobody should be able to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.console import Tracker, note
from logodata.common.turn_end import turn_end_ids
from logodata.common.words import without_reasoning, words
from logodata.contexts.chunking import chunk_text
from logodata.contract import Document
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.prices import describe_estimate, find_prices
from logodata.engines.response_log import CachedEngine, ResponseLog, note_usage
from logodata.engines.settings import engine_window, open_engine
from logodata.judge.measures import word_share
from logodata.judge.settings import judge_engine
from logodata.models.facts import model_eos_ids
from logodata.prompts import (
    ANSWER_TEMPLATE,
    CLOSED_BOOK_TEMPLATE,
    CLUSTER_TEMPLATE,
    WRITING_TEMPLATES,
    Prompt,
    PromptFormat,
    numbered,
)
from logodata.questions.clusters import ClusterFinder
from logodata.questions.drafts import Draft, Written, draw_drafts, rejected_row, written_fault
from logodata.questions.grader import Grade, QuestionGrader
from logodata.questions.replies import parse_cluster_reply, parse_reply
from logodata.questions.settings import QuestionsRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = list[dict[str, Any]]
"""Rows of the rejected file."""

_RESPONSES, _CLUSTERS, _GRADES = LOGS = ("responses.jsonl", "clusters.jsonl", "grades.jsonl")
"""The files of the work folder that hold what was made."""


class Writer:
    """Writes and checks questions, a group of documents at a time.

    ``work`` is the folder with what the model wrote before. ``grades`` are those that were given, good or bad.
    """

    def __init__(self, recipe: QuestionsRecipe, work: Path, fingerprint: str) -> None:
        self._recipe = recipe
        log = ResponseLog(work / _RESPONSES, fingerprint)
        self._engine = CachedEngine(log, lambda: open_engine(recipe.engine, recipe.model, self._tokenizer))
        self._tokenizer: PreTrainedTokenizerBase = recipe.load_tokenizer()
        self._window = engine_window(recipe.engine, recipe.model)
        self._stop_ids = turn_end_ids(self._tokenizer, model_eos_ids(recipe.model))
        self._reasoning = recipe.reasoning(self._tokenizer, self._window)
        self._forms = {kind: PromptFormat(self._tokenizer, WRITING_TEMPLATES[kind]) for kind in recipe.kinds}
        self._closed_book = PromptFormat(self._tokenizer, CLOSED_BOOK_TEMPLATE)
        self._clusters: ClusterFinder | None = None
        self._one_chunk_right_at = recipe.clusters.one_chunk_right_at if recipe.clusters else None
        if recipe.clusters is not None:
            self._clusters = ClusterFinder(recipe.clusters, work / _CLUSTERS)
            self._cluster_form = PromptFormat(self._tokenizer, CLUSTER_TEMPLATE)
            self._one_chunk = PromptFormat(self._tokenizer, ANSWER_TEMPLATE)
        self.grader: QuestionGrader | None = None
        if recipe.grade is not None:
            self.grader = QuestionGrader(recipe, recipe.grade, fingerprint, work / _GRADES, self._engine.open)
        self.grades: list[Grade] = []
        self._is_estimated = False

    def drafts(self, document: Document) -> list[Draft]:
        """Return the questions to be written on a document."""
        chunks = chunk_text(self._tokenizer, document.text, self._recipe.chunking.chunk_tokens)
        clusters = None if self._clusters is None else self._clusters.find(document, chunks)
        return draw_drafts(document, chunks, self._recipe, clusters)

    def write(self, drafts: Sequence[Draft], tracker: Tracker) -> tuple[list[Written], Rows]:
        """Have questions written and checked, and return those to keep, and a row for every other one."""
        rejected = [rejected_row(draft, draft.reason) for draft in drafts if draft.reason]
        asked = [(draft, self._writing_request(draft)) for draft in drafts if not draft.reason]
        rejected += [
            rejected_row(draft, "prompt_exceeds_window") for draft, request in asked if not self._fits(request)
        ]
        asked = [(draft, request) for draft, request in asked if self._fits(request)]
        self._note_cost(asked, len({draft.document.doc_id for draft in drafts}))
        self._engine.generate([request for _, request in asked], tracker, "replies")
        seen = {(draft.document.doc_id, tuple(words(q.question))) for draft in drafts for q in draft.document.questions}
        found = [self._read(draft, request, seen) for draft, request in asked]
        candidates = [written for written in found if isinstance(written, Written)]
        rejected += [row for row in found if not isinstance(row, Written)]

        right_at = self._recipe.right_at
        closed_book = [
            (written, [self._closed_book_request(written.draft, written.question)]) for written in candidates
        ]
        candidates, rows = self._unanswered(closed_book, right_at, "answered_without_context", tracker)
        rejected += rows
        if self._one_chunk_right_at is not None:
            alone = [(written, self._one_chunk_requests(written.draft, written.question)) for written in candidates]
            candidates, rows = self._unanswered(alone, self._one_chunk_right_at, "answered_from_one_chunk", tracker)
            rejected += rows
        if self.grader is not None:
            candidates, rows = self._graded(self.grader, candidates, tracker)
            rejected += rows
        return candidates, rejected

    def note_usage(self) -> None:
        """Say which tokens chat servers have counted for all replies, and what they cost."""
        recipe = self._recipe
        note_usage("replies", self._engine, recipe.engine, recipe.model)
        if self.grader is not None and recipe.grade is not None:
            engine = judge_engine(recipe, recipe.grade)
            note_usage("grades", self.grader.engine, engine, recipe.grade.name or recipe.model)

    def _read(
        self, draft: Draft, request: GenerationRequest, seen: set[tuple[str, tuple[str, ...]]]
    ) -> Written | dict[str, Any]:
        """Return the question in a reply, whose draft then has the evidence alone, or the row that says why there is
        none. ``seen`` gets the question."""
        reply, ended = self._reply(request)
        parsed = parse_cluster_reply(reply, len(draft.chunks)) if draft.is_clustered else parse_reply(reply)
        if parsed is None or not ended:
            return rejected_row(draft, "malformed" if parsed is None else "not_ended", reply=reply)
        if parsed == "skipped":
            return rejected_row(draft, "chunks_do_not_belong_together")
        question, answer, *named = parsed
        if named:
            draft = replace(draft, chunks=tuple(draft.chunks[i] for i in named[0]))
        written = Written(draft, question, answer)
        key = (draft.document.doc_id, tuple(words(question)))
        reason = "duplicate_question" if key in seen else written_fault(written, self._recipe.right_at)
        if reason:
            return rejected_row(draft, reason, question=question, answer=answer)
        seen.add(key)
        return written

    def _unanswered(
        self,
        checks: Sequence[tuple[Written, list[GenerationRequest]]],
        right_at: float,
        reason: str,
        tracker: Tracker,
    ) -> tuple[list[Written], Rows]:
        """Ask the model the questions, and return those that no reply answers, and a row for every other one."""
        fitting = [(written, requests) for written, requests in checks if all(map(self._fits, requests))]
        self._engine.generate([request for _, requests in fitting for request in requests], tracker, "replies")
        kept: list[Written] = []
        rejected: Rows = []
        for written, requests in checks:
            details: dict[str, str | float] = {"question": written.question, "answer": written.answer}
            if not all(map(self._fits, requests)):
                rejected.append(rejected_row(written.draft, "question_exceeds_window", **details))
                continue
            replies = (self._reply(request)[0] for request in requests)
            right = (reply for reply in replies if word_share(reply, [written.answer]) >= right_at)
            if (reply := next(right, None)) is not None:
                rejected.append(rejected_row(written.draft, reason, **details, reply=reply))
                continue
            kept.append(written)
        return kept, rejected

    def _graded(
        self, grader: QuestionGrader, candidates: Sequence[Written], tracker: Tracker
    ) -> tuple[list[Written], Rows]:
        """Return the questions that are good enough, with their grades, and a row for every other one."""
        assert self._recipe.grade is not None
        least = self._recipe.grade.least
        grades = grader.grade(candidates, tracker)
        self.grades += grades
        kept: list[Written] = []
        rejected: Rows = []
        for written, grade in zip(candidates, grades, strict=True):
            details: dict[str, str | float] = {"question": written.question, "answer": written.answer}
            if isinstance(grade, float):
                if least is None or grade >= least:
                    kept.append(replace(written, grade=grade))
                else:
                    rejected.append(rejected_row(written.draft, "graded_too_low", **details, grade=grade))
            elif least is None:
                kept.append(written)
            else:
                rejected.append(rejected_row(written.draft, f"grade_{grade}", **details))
        return kept, rejected

    def _note_cost(self, asked: Sequence[tuple[Draft, GenerationRequest]], num_documents: int) -> None:
        """Say before the first prompts are sent what they and all checks of what is written may cost, where there is a
        table of prices."""
        if self._is_estimated:
            return
        self._is_estimated = True
        recipe = self._recipe
        for_documents = f"for the first {num_documents} documents"
        longest = partial(_lengthened, by=recipe.max_new_tokens)
        if (prices := find_prices(recipe.engine, recipe.model)) is not None:
            checks = (longest(check) for draft, _ in asked for check in self._checks(draft))
            said = describe_estimate([*(request for _, request in asked), *checks], prices)
            note(f"{said}, {for_documents}, with the checks of all questions")
        if self.grader is None or recipe.grade is None:
            return
        prices = find_prices(judge_engine(recipe, recipe.grade), recipe.grade.name or recipe.model)
        if prices is not None:
            grades = (longest(self.grader.grade_request(draft, "", "")) for draft, _ in asked)
            note(f"grades: {describe_estimate(grades, prices)}, {for_documents}")

    def _checks(self, draft: Draft) -> Iterator[GenerationRequest]:
        """Yield the checks of a question that is still to be written: of all chunks, since any may be its evidence."""
        yield self._closed_book_request(draft, "")
        yield from self._one_chunk_requests(draft, "")

    def _writing_request(self, draft: Draft) -> GenerationRequest:
        recipe = self._recipe
        chunks = [chunk.token_ids for chunk in draft.chunks]
        if draft.is_clustered:
            prompt = self._cluster_form.encode(numbered(self._tokenizer, chunks), question="")
        else:
            prompt = self._forms[draft.kind].encode(chunks, question=draft.subject)
        top_p = recipe.top_p if recipe.temperature else 1.0
        answer = Sampling(recipe.max_new_tokens, self._stop_ids, recipe.temperature, top_p, recipe.seed)
        return self._request(draft.id, prompt, answer)

    def _closed_book_request(self, draft: Draft, question: str) -> GenerationRequest:
        prompt = self._closed_book.encode([], question=question)
        return self._request(f"{draft.id}/closed-book", prompt, self._short_answer)

    def _one_chunk_requests(self, draft: Draft, question: str) -> list[GenerationRequest]:
        """Return the requests for answers from one chunk each; none if the question is not written from a cluster."""
        if not draft.is_clustered or self._one_chunk_right_at is None:
            return []
        return [
            self._request(
                f"{draft.id}/chunk-{chunk.index}",
                self._one_chunk.encode([chunk.token_ids], question=question),
                self._short_answer,
            )
            for chunk in draft.chunks
        ]

    @property
    def _short_answer(self) -> Sampling:
        return Sampling(self._recipe.max_closed_book_tokens, self._stop_ids)

    def _request(self, request_id: str, prompt: Prompt, answer: Sampling) -> GenerationRequest:
        return GenerationRequest(request_id, prompt.ids, self._reasoning.sampling(answer, self._stop_ids))

    def _fits(self, request: GenerationRequest) -> bool:
        return request.max_total_tokens <= self._window

    def _reply(self, request: GenerationRequest) -> tuple[str, bool]:
        result, _ = self._engine.answer(request)
        answer = replace(request.sampling, max_new_tokens=request.sampling.max_new_tokens - self._reasoning.budget)
        reply = self._reasoning.split(result, answer, opened=self._reasoning.opens(request.prompt_ids))
        return without_reasoning(reply.text), reply.finish_reason == "stop"


def _lengthened(request: GenerationRequest, by: int) -> GenerationRequest:
    """Return a request whose prompt has so many more tokens: those of a question that is not written yet."""
    return replace(request, prompt_ids=(*request.prompt_ids, *[0] * by))
