"""A judge that grades responses from 0 to 10, without a reference (LongReward, arXiv 2410.21252).

A response is graded for helpfulness and logicality by itself, for faithfulness fact by fact against the nearest
passages of the context, and for completeness against what the context says about the question. A question of ``n``
responses with ``F`` facts each takes ``ceil(context / 4096) + n (4 + F)`` prompts, and those of the second wording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from logodata.common.console import Tracker, note
from logodata.contexts.chunking import chunk_text
from logodata.contract import Chunk, GradedFact, Grades, Question, Ungraded
from logodata.engines import Engine
from logodata.engines.settings import AdaptedModelSettings
from logodata.judge.asked_judge import AskedJudge
from logodata.judge.judged_response import Decision, said_in
from logodata.judge.measures import number_share
from logodata.judge.replies import parse_extract, parse_facts, parse_score, parse_support
from logodata.judge.settings import GradeSettings, JudgeSettings
from logodata.prompts import EXTRACT_TEMPLATE, FACTS_TEMPLATE, GRADE_TEMPLATES, Prompt

if TYPE_CHECKING:
    from logodata.contexts.embedding import EmbeddingEvaluator

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Missing:
    """Stands for what cannot be read, with the reason."""

    reason: Ungraded


_Reply = tuple[str, bool] | None
_WORDINGS = ("first", "second")
_SCORED = ("helpfulness", "logicality", "completeness")
_EMBEDDED_TOGETHER = 32


@dataclass(frozen=True, slots=True, eq=False)
class ToGrade:
    """The responses to a question, which are graded by the text of their context."""

    question: Question
    context: str
    responses: Sequence[Decision]


@dataclass(slots=True, eq=False)
class _Response:
    """A distinct response: ``decisions`` say the same. ``extracts`` is what the context says about the question."""

    asked: ToGrade
    decisions: list[Decision]
    wordings: tuple[str, ...]
    extracts: str | _Missing
    facts: list[str] | _Missing = field(default_factory=list)
    passages: Sequence[Sequence[Chunk]] = ()

    @property
    def id(self) -> str:
        return self.decisions[0].id

    @property
    def text(self) -> str:
        return said_in(self.decisions[0].response.text)


class Grader(AskedJudge):
    """Fills in the grades of responses. ``formats`` holds its prompts as ``name/wording``."""

    def __init__(
        self,
        build: AdaptedModelSettings,
        judge: JudgeSettings,
        settings: GradeSettings,
        build_fingerprint: str,
        log: Path | None,
        build_engine: Callable[[], Engine],
    ) -> None:
        templates = {"extract": EXTRACT_TEMPLATE, "facts": FACTS_TEMPLATE}
        for name, wordings in GRADE_TEMPLATES.items():
            templates |= {f"{name}/{which}": text for which, text in zip(_WORDINGS, wordings, strict=True)}
        super().__init__(build, settings, templates, build_fingerprint, log, build_engine, section="judge.grades.")
        self._judge, self.settings = judge, settings
        self._has_warned = False

    @cached_property
    def _evaluator(self) -> EmbeddingEvaluator:
        from logodata.contexts.embedding import EmbeddingEvaluator
        from logodata.models.loading import resolve_embedding_model

        model = resolve_embedding_model(self._judge.embedding_model)
        return EmbeddingEvaluator(model, _EMBEDDED_TOGETHER, "judge.embedding_model")

    def load_evaluator(self) -> None:
        """Load the embedding model. A wrong name shows before anything is asked."""
        _ = self._evaluator

    def grade(self, asked: Sequence[ToGrade], tracker: Tracker) -> None:
        """Grade all responses. Equal responses to a question are asked about once."""
        extracts = self._extract(asked, tracker)
        responses = [one for to_grade in asked for one in self._distinct(to_grade, extracts[to_grade.question.id])]
        prompts = {f"{one.id}/facts": self._prompt(one, "facts") for one in responses}
        for one in responses:
            prompts |= {f"{one.id}/{name}": self._prompt(one, name) for name in _scores(one)}
        replies = self._ask(prompts, tracker)
        read_facts = partial(parse_facts, most=self.settings.max_facts)
        for one in responses:
            one.facts = _read(replies[f"{one.id}/facts"], read_facts)
            if not one.facts:
                one.facts = [one.text]  # the whole response is the fact
        self._find_passages(responses)
        supports = self._ask(
            {
                f"{one.id}/support-{n}/{which}": self.formats[f"support/{which}"].encode(
                    [passage.token_ids for passage in one.passages[n]], statement=fact
                )
                for one in responses
                if not isinstance(one.facts, _Missing)
                for which in one.wordings
                for n, fact in enumerate(one.facts)
            },
            tracker,
        )
        for one in responses:
            grades = [self._grades(one, which, replies, supports) for which in one.wordings]
            for decision in one.decisions:
                decision.grades = grades[0]
                decision.second_grades = grades[1] if len(grades) > 1 else None
        self._warn_of_a_bad_judge(responses, replies, supports)

    def _warn_of_a_bad_judge(
        self, responses: Sequence[_Response], replies: dict[str, _Reply], supports: dict[str, _Reply]
    ) -> None:
        """Say once that most responses have no grade: each of them costs as many prompts as one that has."""
        ungraded = sum(one.decisions[0].grades is None or one.decisions[0].grades.grade is None for one in responses)
        if self._has_warned or 2 * ungraded <= len(responses):
            return
        self._has_warned = True
        read = [reply for reply in (*replies.values(), *supports.values()) if reply is not None]
        cut = sum(not ended for _, ended in read)
        note(
            f"warning: {ungraded} of the first {len(responses)} responses have no grade, because a reply of the judge "
            f"has another form than it is asked for; {cut} of {len(read)} replies met judge.grades.max_new_tokens="
            f"{self.settings.max_new_tokens}: take a stronger judge (judge.grades.name), or raise it"
        )

    def _extract(self, asked: Sequence[ToGrade], tracker: Tracker) -> dict[str, str | _Missing]:
        """Return for each question what its context says about it, with places in percent of the context."""
        size = self.settings.extract_tokens
        parts = {one.question.id: chunk_text(self.tokenizer, one.context, size) for one in asked}
        prompts = {
            f"{one.question.id}/extract-{part.index}": self.formats["extract"].encode(
                [part.token_ids], question=one.question.question
            )
            for one in asked
            for part in parts[one.question.id]
        }
        replies = self._ask(prompts, tracker)
        found: dict[str, str | _Missing] = {}
        for one in asked:
            lines, key = [], one.question.id
            for part in parts[key]:
                said = _read(replies[f"{key}/extract-{part.index}"], parse_extract)
                if isinstance(said, _Missing):
                    found[key] = said
                    break
                if said:
                    start, end = (round(100 * place / len(one.context)) for place in (part.start, part.end))
                    lines.append(f"[{start}% to {end}%] {said}")
            else:
                found[key] = "\n".join(lines) or "(The text says nothing about the question.)"
        return found

    def _distinct(self, asked: ToGrade, extracts: str | _Missing) -> Iterator[_Response]:
        wordings = _WORDINGS if self.settings.judges_again(asked.question.id) else _WORDINGS[:1]
        alike: dict[str, list[Decision]] = {}
        for decision in asked.responses:
            alike.setdefault(said_in(decision.response.text), []).append(decision)
        yield from (_Response(asked, decisions, wordings, extracts) for decisions in alike.values())

    def _prompt(self, one: _Response, name: str) -> Prompt:
        texts = {} if isinstance(one.extracts, _Missing) else {"extracts": one.extracts}
        return self.formats[name].encode([], question=one.asked.question.question, response=one.text, **texts)

    def _find_passages(self, responses: Sequence[_Response]) -> None:
        """Find the passages nearest to each fact, in the order of the context."""
        by_question: dict[str, list[tuple[_Response, list[str]]]] = {}
        for one in responses:
            if not isinstance(one.facts, _Missing):
                by_question.setdefault(one.asked.question.id, []).append((one, one.facts))
        for group in by_question.values():
            context = group[0][0].asked.context
            passages = chunk_text(self.tokenizer, context, self.settings.passage_tokens)
            all_facts = [fact for _, facts in group for fact in facts]
            scores = self._evaluator.score([context[passage.start : passage.end] for passage in passages], all_facts)
            nearest = np.argsort(-scores, axis=1, kind="stable")[:, : self.settings.num_passages]
            found = iter([[passages[i] for i in sorted(row)] for row in nearest.tolist()])
            for one, facts in group:
                one.passages = [next(found) for _ in facts]

    def _grades(self, one: _Response, which: str, replies: dict[str, _Reply], supports: dict[str, _Reply]) -> Grades:
        scores: dict[str, float | _Missing] = {}
        for name in _SCORED:
            reply = f"{one.id}/{name}/{which}"
            scores[name] = _read(replies[reply], parse_score) if reply in replies else _missing(one.extracts)
        facts: list[GradedFact] = []
        if isinstance(one.facts, _Missing):
            scores["faithfulness"] = one.facts
        else:
            read = [_read(supports[f"{one.id}/support-{n}/{which}"], parse_support) for n in range(len(one.facts))]
            limited = [self._limited(support, one, n) for n, support in enumerate(read)]
            facts = [
                GradedFact(text=fact, support=_plain(support)) for fact, support in zip(one.facts, limited, strict=True)
            ]
            missing = [support for support in limited if isinstance(support, _Missing)]
            scores["faithfulness"] = missing[0] if missing else 10 * fmean(_numbers(limited))
        numbers = _numbers(scores.values())
        return Grades(
            **{name: _plain(score) for name, score in scores.items()},
            facts=facts,
            grade=fmean(numbers) if len(numbers) == len(scores) else None,
        )

    def _limited(self, support: float | _Missing, one: _Response, n: int) -> float | _Missing:
        """Return the support of the n-th fact: partial at most if the passages lack one of its numbers."""
        if isinstance(support, _Missing) or isinstance(one.facts, _Missing) or not self._judge.match_numbers:
            return support
        evidence = "\n".join(one.asked.context[passage.start : passage.end] for passage in one.passages[n])
        share = number_share(evidence, [one.facts[n]])
        return support if share is None or share == 1 else min(support, 0.5)

    def _ask(self, prompts: dict[str, Prompt], tracker: Tracker) -> dict[str, _Reply]:
        """Return the replies to prompts by name, and whether each ended by itself. None: it does not fit the window."""
        requests = {name: self.request(name, prompt) for name, prompt in prompts.items()}
        fitting = {name: request for name, request in requests.items() if self.fits(request)}
        self.generate(list(fitting.values()), tracker, "judge replies")
        return {name: self.reply(request) if name in fitting else None for name, request in requests.items()}


def _scores(one: _Response) -> list[str]:
    """Return the names of the prompts that score a response. Without extracts nothing scores its completeness."""
    named = [name for name in _SCORED if name != "completeness" or not isinstance(one.extracts, _Missing)]
    return [f"{name}/{which}" for name in named for which in one.wordings]


def _read(reply: _Reply, parse: Callable[..., T | None]) -> T | _Missing:
    if reply is None:
        return _Missing("exceeds_window")
    text, ended = reply
    found = parse(text, ended=ended)
    return _Missing("malformed") if found is None else found


def _missing(value: object) -> _Missing:
    assert isinstance(value, _Missing)
    return value


def _plain(score: float | _Missing) -> float | Ungraded:
    return score.reason if isinstance(score, _Missing) else score


def _numbers(scores: Iterable[float | _Missing]) -> list[float]:
    return [score for score in scores if not isinstance(score, _Missing)]
