"""A model judge: it says of each response whether it answers the question as the reference does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from logodata.common.console import Tracker
from logodata.common.turn_end import turn_end_ids
from logodata.contract import ModelVerdict
from logodata.engines import Engine, GenerationRequest, Sampling
from logodata.engines.response_log import CachedEngine, ResponseLog
from logodata.engines.settings import (
    AdaptedModelSettings,
    asked_fingerprint,
    asked_model,
    engine_window,
    open_engine,
)
from logodata.judge.judged_response import Decision
from logodata.judge.settings import ModelJudgeSettings, judge_engine
from logodata.models.facts import model_eos_ids
from logodata.models.loading import load_tokenizer
from logodata.prompts import JUDGE_TEMPLATES, PromptFormat


class ModelJudge:
    """Fills in the verdicts of decisions. It is greedy, so the same question has the same verdict in every build.

    ``name`` and ``fingerprint`` are those of the model that judges. ``formats`` holds its prompts in the ``first`` and
    in the ``second`` wording, and ``window`` is the most tokens of a prompt with its reply.

    Args:
        log: The log of replies; None keeps them in memory only.
        build_engine: Returns the build's engine. It judges if the judge is the same model under the same settings.
    """

    def __init__(
        self,
        build: AdaptedModelSettings,
        settings: ModelJudgeSettings,
        build_fingerprint: str,
        log: Path | None,
        build_engine: Callable[[], Engine],
    ) -> None:
        self._settings, self._path = settings, log
        name = settings.name or build.model
        engine, is_build_model = judge_engine(build, settings), name == build.model
        self.name = asked_model(engine, name)
        template, args = settings.chat_template, settings.chat_template_args
        if is_build_model:
            template, args = template or build.chat_template, build.chat_template_args if args is None else args
        self._tokenizer = load_tokenizer(name, template, template_args=args)
        wordings = zip(("first", "second"), JUDGE_TEMPLATES, strict=True)
        self.formats = {which: PromptFormat(self._tokenizer, template) for which, template in wordings}
        self.window = engine_window(engine, name)
        self._sampling = Sampling(settings.max_new_tokens, turn_end_ids(self._tokenizer, model_eos_ids(name)))
        # The judge has no adapter: rounds of training are judged alike.
        self.fingerprint = asked_fingerprint(engine, name)
        shared = self.fingerprint == build_fingerprint and engine == build.engine
        self._open: Callable[[], Engine] = (
            build_engine if shared else lambda: open_engine(engine, name, self._tokenizer)
        )

    @cached_property
    def engine(self) -> CachedEngine:
        """The engine of the judge behind the log of its replies. The log is opened when the engine is first asked."""
        return CachedEngine(ResponseLog(self._path, self.fingerprint), self._open)

    def judge(self, decisions: Sequence[Decision], tracker: Tracker) -> None:
        """Ask for the verdict on each response, and for a second one on those that are judged again."""
        again = [decision for decision in decisions if self._settings.judges_again(decision.id)]
        first = {decision.id: self._request(decision, "first") for decision in decisions}
        second = {decision.id: self._request(decision, "second") for decision in again}
        requests = [request for request in (*first.values(), *second.values()) if self._fits(request)]
        self.engine.generate(requests, tracker, "verdicts")
        for decision in decisions:
            decision.model_verdict = self._verdict(first[decision.id])
        for decision in again:
            decision.second_model_verdict = self._verdict(second[decision.id])

    def _request(self, decision: Decision, which: str) -> GenerationRequest:
        # A response is right if it agrees with any one reference, as under the rules.
        reference = "\nor: ".join(dict.fromkeys(decision.question.answers))
        prompt = self.formats[which].encode(
            [], question=decision.question.question, reference=reference, response=decision.response.text.strip()
        )
        return GenerationRequest(f"{decision.id}/{which}-verdict", prompt.ids, self._sampling)

    def _fits(self, request: GenerationRequest) -> bool:
        return request.max_total_tokens <= self.window

    def _verdict(self, request: GenerationRequest) -> ModelVerdict:
        if not self._fits(request):
            return "exceeds_window"
        result, _ = self.engine.answer(request)
        return parse_verdict(result.said(self._tokenizer), ended=result.finish_reason == "stop")


# The last line is the verdict. A model may reason before it, but may not give two.
_REPLY = re.compile(
    r"(?:(?![ \t]*verdict[ \t]*:)[^\n]*\n)*[ \t]*verdict: (?P<verdict>correct|wrong)\.?\s*",
    re.IGNORECASE,
)


def parse_verdict(reply: str, *, ended: bool) -> ModelVerdict:
    """Return the verdict of a reply.

    Its last line must be ``Verdict: correct`` or ``Verdict: wrong``, in any case and perhaps with a full stop, and no
    other line may begin with ``Verdict:``. Any other reply is malformed, and so is one that reached the length cap.
    """
    match = _REPLY.fullmatch(reply)
    if match is None or not ended:
        return "malformed"
    return "correct" if match["verdict"].lower() == "correct" else "wrong"
