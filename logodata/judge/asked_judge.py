"""A model that judges: what its prompts and replies have in common, whatever it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from logodata.common.console import Tracker
from logodata.common.errors import settings_moved
from logodata.common.turn_end import turn_end_ids
from logodata.engines import Engine, GenerationRequest, Sampling
from logodata.engines.response_log import CachedEngine, ResponseLog
from logodata.engines.settings import ModelSettings, asked_fingerprint, asked_model, engine_window, open_engine
from logodata.judge.settings import JudgeModelSettings, judge_engine
from logodata.models.facts import model_eos_ids
from logodata.models.loading import load_tokenizer
from logodata.prompts import Prompt, PromptFormat


class AskedJudge:
    """A model that judges. It is greedy, so the same question has the same reply in every build.

    ``name`` and ``fingerprint`` are those of the model. ``formats`` holds its prompts by name, and ``window`` is the
    most tokens of a prompt with its reply.

    Args:
        section: The place of the settings, such as ``"judge.model."``. Errors name it.
        asking: The command that asks. Its model judges by default.
        templates: The wordings, by name.
        asking_fingerprint: The fingerprint of the command's own model, adapter included.
        log: The log of replies; None keeps them in memory only.
        asking_engine: Returns the command's engine. It judges if the judge is the same model under the same settings.
    """

    def __init__(
        self,
        asking: ModelSettings,
        settings: JudgeModelSettings,
        templates: Mapping[str, str],
        asking_fingerprint: str,
        log: Path | None,
        asking_engine: Callable[[], Engine],
        *,
        section: str,
    ) -> None:
        self._path = log
        name = settings.name or asking.model
        engine, is_own_model = judge_engine(asking, settings), name == asking.model
        own = [] if settings.engine is None else ["engine"]
        own += [] if is_own_model else ["chat_template", "chat_template_args"]
        self._settings_named = partial(settings_moved, own, section)
        self.name = asked_model(engine, name)
        template, args = settings.chat_template, settings.chat_template_args
        if is_own_model:
            template, args = template or asking.chat_template, asking.chat_template_args if args is None else args
        with self._settings_named():
            self.tokenizer = load_tokenizer(name, template, template_args=args)
            self.formats = {which: PromptFormat(self.tokenizer, template) for which, template in templates.items()}
        self.window = engine_window(engine, name)
        self._sampling = Sampling(settings.max_new_tokens, turn_end_ids(self.tokenizer, model_eos_ids(name)))
        # The judge has no adapter: rounds of training are judged alike.
        self.fingerprint = asked_fingerprint(engine, name)
        shared = self.fingerprint == asking_fingerprint and engine == asking.engine
        self._open: Callable[[], Engine] = (
            asking_engine if shared else lambda: open_engine(engine, name, self.tokenizer)
        )

    @cached_property
    def engine(self) -> CachedEngine:
        """The engine of the judge behind the log of its replies. The log is opened when the engine is first asked."""
        return CachedEngine(ResponseLog(self._path, self.fingerprint), self._open)

    def generate(self, requests: Sequence[GenerationRequest], tracker: Tracker, noun: str) -> None:
        """Have the requests answered that the log does not answer (:meth:`CachedEngine.generate`)."""
        with self._settings_named():
            self.engine.generate(requests, tracker, noun)

    def request(self, request_id: str, prompt: Prompt) -> GenerationRequest:
        """Return the request for the reply to a prompt."""
        return GenerationRequest(request_id, prompt.ids, self._sampling)

    def fits(self, request: GenerationRequest) -> bool:
        """Whether a prompt and its reply fit the window."""
        return request.max_total_tokens <= self.window

    def reply(self, request: GenerationRequest) -> tuple[str, bool]:
        """Return the reply to a request that was generated, and whether it ended by itself."""
        result, _ = self.engine.answer(request)
        return result.said(self.tokenizer), result.finish_reason == "stop"
