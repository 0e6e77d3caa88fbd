"""The stages of a build: plan the questions of a pool, then generate, judge, and say what became of each.

A stage keeps no state that its results depend on, so any number of processes can run it over any split of the pools
(:mod:`logodata.distributed`); one process does in :func:`decide_here`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from logodata.candidates import Candidate, Fault, Planner, Pool
from logodata.common.console import Tracker
from logodata.contract import ContextChunk, PreferenceSample, Response
from logodata.evaluators import Evaluator, open_evaluator
from logodata.judge import Reason, word_share
from logodata.models import load_tokenizer, model_window, tokenizer_fingerprint
from logodata.recipe import BuildRecipe
from logodata.responses import ResponseLog, Responses

Outcome = dict[str, Any]
"""What became of a question, as JSON: its ``id``, and either ``sample`` (a :class:`PreferenceSample`) or ``rejected``
(a row of ``rejected.jsonl``)."""

Asked = tuple[Pool, frozenset[str]]
"""A pool, and the ids of its questions that are undecided."""

Decided = tuple[Sequence[Outcome], str | None]
"""What became of some questions, and the name of the engine, if it was needed by now."""


class Pipeline:
    """Planning and answering under one recipe. What is heavy (evaluator, engine) is opened when it is first needed.

    Args:
        recipe: the build recipe.
        model_fingerprint: of its model; responses are filed under it.
        log: of responses; None keeps them in memory only.
    """

    def __init__(self, recipe: BuildRecipe, model_fingerprint: str, log: Path | None = None) -> None:
        self._recipe = recipe
        tokenizer = load_tokenizer(recipe.model, recipe.chat_template)
        self.planner = Planner(recipe, tokenizer, model_window(recipe.model))
        self.responses = Responses(
            recipe, ResponseLog(log, model_fingerprint, recipe.generation.cache), tokenizer, self.planner.stop_ids[0]
        )
        self._evaluator: Evaluator | None = None
        self.fingerprints = {
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "prompt_fingerprints": {
                "answer": self.planner.answer_format.fingerprint,
                "guided": [form.fingerprint for form in self.planner.guided_formats],
            },
        }

    def plan(self, pool: Pool) -> Iterator[Candidate | Fault]:
        """Score a pool once for all its questions, and plan each."""
        if self._evaluator is None:
            self._evaluator = open_evaluator(self._recipe.evaluator)
        yield from self.planner.candidates(pool, self._evaluator)

    def answer(self, plans: Sequence[Candidate | Fault], tracker: Tracker) -> list[Outcome]:
        """Generate and judge: what became of each question, in order."""
        responses = self.responses
        candidates = [plan for plan in plans if isinstance(plan, Candidate)]
        responses.generate([request for plan in candidates for request in plan.preferred], tracker)
        chosen = {plan.question.id: responses.choose(plan) for plan in candidates}
        # Dis-preferred responses only where there is something to prefer to them.
        worthwhile = [plan for plan in candidates if isinstance(chosen[plan.question.id], Response)]
        responses.generate([request for plan in worthwhile for request in plan.rejected.values()], tracker)
        return [self._outcome(plan, chosen.get(plan.question.id)) for plan in plans]

    def _outcome(self, plan: Candidate | Fault, chosen: Response | Reason | None) -> Outcome:
        """One question: a sample, or a row with the reason and what was generated."""
        question_id = plan.question.id
        row: dict[str, Any] = {
            "id": question_id,
            "doc_id": plan.document.doc_id,
            "where": plan.document.where,
            "question": plan.question.question,
        }
        if isinstance(plan, Fault):
            row |= {"reason": plan.reason, "detail": plan.detail, "stage": "contexts"}
            return {"id": question_id, "rejected": row}
        row["answers"] = plan.question.answers
        if not isinstance(chosen, Response):
            texts = [response.text for response in self.responses.preferred(plan)]
            return {"id": question_id, "rejected": {**row, "reason": chosen, "stage": "judge", "preferred": texts}}
        rejected = self.responses.rejected(plan)
        reason = self.responses.fault_beside(chosen, rejected, plan)
        if reason is None:
            return {"id": question_id, "sample": _sample(plan, chosen, rejected).model_dump(mode="json")}
        texts = [response.text for response in rejected]
        row |= {"reason": reason, "stage": "judge", "preferred": [chosen.text], "rejected": texts}
        return {"id": question_id, "rejected": row}


def decide_here(pipeline: Pipeline, pools: Iterable[Asked], group_size: int, tracker: Tracker) -> Generator[Decided]:
    """Plan and answer in this process, in order, ``group_size`` questions at a time."""
    plans = (plan for pool, ids in pools for plan in pipeline.plan(pool) if plan.question.id in ids)
    while group := list(islice(plans, group_size)):
        yield pipeline.answer(group, tracker), pipeline.responses.engine_name


def _sample(plan: Candidate, chosen: Response, rejected: Sequence[Response]) -> PreferenceSample:
    pool, critical = plan.pool, set(plan.contexts.critical)

    def chunks() -> Iterator[ContextChunk]:
        for index, (start, end) in zip(plan.contexts.training, plan.prompt.chunk_spans, strict=True):
            document, chunk = pool.chunks[index]
            yield ContextChunk(
                doc_id=document.doc_id,
                index=chunk.index,
                start=chunk.start,
                end=chunk.end,
                token_start=start,
                token_end=end,
                score=float(plan.scores[index]),
                critical=index in critical,
                text=pool.text(index),
            )

    return PreferenceSample(
        id=plan.question.id,
        doc_id=plan.document.doc_id,
        question_id=plan.question.id,
        kind=plan.question.kind,
        question=plan.question.question,
        answers=plan.question.answers,
        prompt_ids=list(plan.prompt.ids),
        chunks=list(chunks()),
        chosen=chosen,
        rejected=list(rejected),
        answer_in_critical=word_share(" ".join(pool.text(i) for i in plan.contexts.critical), plan.question.answers)
        == 1.0,
    )
