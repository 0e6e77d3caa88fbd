"""Grades of questions, from 0 to 10, by a model that sees question, answer and evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from logodata.common.console import Tracker
from logodata.contract import Ungraded
from logodata.engines import Engine, GenerationRequest
from logodata.judge.asked_judge import AskedJudge
from logodata.judge.replies import parse_score
from logodata.judge.settings import JudgeModelSettings
from logodata.prompts import QUESTION_GRADE_TEMPLATE, encode_text
from logodata.questions.drafts import Draft, Written
from logodata.questions.settings import QuestionsRecipe

Grade = float | Ungraded
"""A grade, or why there is none: the reply has another form, or the prompt did not fit the grader's window."""

_BINS = (0, 4, 6, 8)  # those of LongRLVR


class QuestionGrader(AskedJudge):
    """Grades written questions. It is greedy, so the same question has the same grade in every run."""

    def __init__(
        self,
        recipe: QuestionsRecipe,
        settings: JudgeModelSettings,
        fingerprint: str,
        log: Path | None,
        writers_engine: Callable[[], Engine],
    ) -> None:
        templates = {"grade": QUESTION_GRADE_TEMPLATE}
        super().__init__(recipe, settings, templates, fingerprint, log, writers_engine, section="grade.")

    def grade(self, questions: Sequence[Written], tracker: Tracker) -> list[Grade]:
        """Return the grade of each question."""
        requests = [self.grade_request(written.draft, written.question, written.answer) for written in questions]
        self.generate([request for request in requests if self.fits(request)], tracker, "grades")
        return [self._grade(request) for request in requests]

    def grade_request(self, draft: Draft, question: str, answer: str) -> GenerationRequest:
        """Return the request for the grade of a question that was written for a draft."""
        chunks = [encode_text(self.tokenizer, draft.document.text[start:end]) for start, end in draft.evidence]
        prompt = self.formats["grade"].encode(chunks, question=question, reference=answer)
        return self.request(f"{draft.id}/grade", prompt)

    def _grade(self, request: GenerationRequest) -> Grade:
        if not self.fits(request):
            return "exceeds_window"
        reply, ended = self.reply(request)
        score = parse_score(reply, ended=ended)
        return "malformed" if score is None else score


def describe_grades(grades: Iterable[Grade]) -> str:
    """Return in words how many questions have which grades."""
    names = [f"{low} to {high}" for low, high in zip(_BINS, (*_BINS[1:], 10), strict=True)]
    counts = Counter(
        grade if isinstance(grade, str) else names[sum(grade >= low for low in _BINS) - 1] for grade in grades
    )
    order = [*names, "malformed", "exceeds_window"]
    found = ", ".join(f"{name} {counts[name]}" for name in order if counts[name] or name in names)
    return f"grades of {counts.total()} questions: {found}"
