"""A model judge: it says of each response whether it answers the question as the reference does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from logodata.common.console import Tracker
from logodata.contract import ModelVerdict
from logodata.engines import Engine, GenerationRequest
from logodata.engines.settings import AdaptedModelSettings
from logodata.judge.asked_judge import AskedJudge
from logodata.judge.judged_response import Decision, said_in
from logodata.judge.replies import last_line
from logodata.judge.settings import ModelJudgeSettings
from logodata.prompts import JUDGE_TEMPLATES


class ModelJudge(AskedJudge):
    """Fills in the verdicts of decisions. ``formats`` holds its prompts in the ``first`` and ``second`` wording."""

    def __init__(
        self,
        build: AdaptedModelSettings,
        settings: ModelJudgeSettings,
        build_fingerprint: str,
        log: Path | None,
        build_engine: Callable[[], Engine],
    ) -> None:
        templates = dict(zip(("first", "second"), JUDGE_TEMPLATES, strict=True))
        super().__init__(build, settings, templates, build_fingerprint, log, build_engine, section="judge.model.")
        self._settings = settings

    def judge(self, decisions: Sequence[Decision], tracker: Tracker) -> None:
        """Ask for the verdict on each response, and for a second one on those that are judged again."""
        again = [decision for decision in decisions if self._settings.judges_again(decision.id)]
        first = {decision.id: self._request(decision, "first") for decision in decisions}
        second = {decision.id: self._request(decision, "second") for decision in again}
        requests = [request for request in (*first.values(), *second.values()) if self.fits(request)]
        self.generate(requests, tracker, "verdicts")
        for decision in decisions:
            decision.model_verdict = self._verdict(first[decision.id])
        for decision in again:
            decision.second_model_verdict = self._verdict(second[decision.id])

    def _request(self, decision: Decision, which: str) -> GenerationRequest:
        # A response is right if it agrees with any one reference, as under the rules.
        reference = "\nor: ".join(dict.fromkeys(decision.question.answers))
        prompt = self.formats[which].encode(
            [], question=decision.question.question, reference=reference, response=said_in(decision.response.text)
        )
        return self.request(f"{decision.id}/{which}-verdict", prompt)

    def _verdict(self, request: GenerationRequest) -> ModelVerdict:
        if not self.fits(request):
            return "exceeds_window"
        reply, ended = self.reply(request)
        return parse_verdict(reply, ended=ended)


def parse_verdict(reply: str, *, ended: bool) -> ModelVerdict:
    """Return the verdict of a reply, whose last line must be ``Verdict: correct`` or ``Verdict: wrong`` (see
    :func:`logodata.judge.replies.last_line`). Any other reply is malformed."""
    found = last_line(reply, "Verdict", "correct|wrong", ended=ended)
    if found is None:
        return "malformed"
    return "correct" if found == "correct" else "wrong"
