"""Keep what the harness asks a model, and the answers, on disk. Imported where it is needed: it loads the harness."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from logodata.common.chat_template import fix_date
from logodata.common.console import Tracker, progress
from logodata.common.errors import UserError
from logodata.common.finite import check_finite
from logodata.common.records import ABSENT, Record
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.reasoning import Reply
from logodata.models.vocabulary import check_ids
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.texts import text_fingerprint

if TYPE_CHECKING:
    from logoeval.session import Session

_SAVE_EVERY_S = 5.0
_SAVE_EVERY = 512  # a write waits for the disk


class HarnessAnswer(Record):
    """The answer to one request: a log-likelihood in nats with whether greedy decoding writes the same, or a response.
    ``cut`` is the number of tokens that the prompt lost. ``reasoning`` is what the model wrote before its response, if
    it reasoned, and ``reasoning_cut`` whether that did not end within its budget."""

    id: str
    answer: tuple[float, bool] | str
    cut: int
    reasoning: str | None = ABSENT
    reasoning_cut: bool | None = ABSENT


class Recorded(TemplateLM):
    """What our models add to the harness's, of which they are the first base class: every answer is on disk within
    seconds and is not computed again, progress is ours, and no prompt is cut unless that was asked for."""

    room_for_one = 0
    """The tokens that a log-likelihood needs in the window besides what is read."""

    def record(
        self,
        answers: RecordFile[HarnessAnswer],
        *,
        vocabulary: int,
        window: int,
        truncate: bool,
        reasons: Session | None,
    ) -> None:
        """Begin recording.

        Args:
            answers: the answers that are there already; new ones are added.
            vocabulary: tokens that the model knows.
            window: tokens that a prompt with its answer may have.
            truncate: cut longer prompts on the left, as the harness does by itself.
            reasons: of a model that reasons before it responds, which is asked through the engine of this session. The
                harness's models would score all that was written where the reasoning was cut, give reasoning and answer
                one budget, and in transformers stop at a task's strings while it reasons.
        """
        self.set_cache_hook(self)
        self.count_from_zero("")
        self._window, self._truncate, self._answers = window, truncate, answers
        self._vocabulary, self._reasons = vocabulary, reasons
        self._excess: dict[str, int] = {}
        self._fresh: dict[str, HarnessAnswer] = {}
        self._saved_at = 0.0
        self._tracker = Tracker("", 0)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        fix_date(self.tokenizer)
        # The harness's vLLM would set enable_thinking to None, which some templates take for false.
        text: str = HFLM.apply_chat_template(self, chat_history, add_generation_prompt)
        return text

    def count_from_zero(self, label: str) -> None:
        """Begin another call of the harness. ``label`` is that of the progress bar."""
        self.label = label
        self.num_requests = self.num_cut = 0
        """Prompts asked for since then, and how many of them were cut."""
        self.num_reasoned = self.num_reasoning_cut = 0
        """Responses before which the model reasoned, and how many of these were cut while it did."""

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: ARG002 - the harness passes it
        """Return the log-likelihood in nats of each continuation after its context, and whether greedy decoding writes
        it."""
        return self._answered("loglikelihood", requests, super().loglikelihood)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """Return a response to each prompt."""
        return self._answered("generate_until", requests, self._generate)

    def _generate(self, requests: Sequence[Any], disable_tqdm: bool) -> None:
        lengths = []
        budget = self._reasons.reasoning.budget if self._reasons else 0
        for context, options in (request.args for request in requests):
            new = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"] + budget
            if new >= self._window:
                what = "an answer with its reasoning" if budget else "an answer"
                raise UserError(
                    f"{what} may take {new} tokens, the window has {self._window}",
                    where=self.label,
                    mend="give a model with a longer window, "
                    + ("lower thinking_tokens, " if budget else "")
                    + "or another task",
                )
            ids = self.tok_encode(context)
            check_ids(self._vocabulary, ids, where=self.label)
            lengths.append(((context, options), len(ids) + new))
        self._check("generate_until", lengths)
        if self._reasons:
            self._reason(self._reasons, requests)
        else:
            self.write(requests, disable_tqdm=disable_tqdm)

    def _reason(self, session: Session, requests: Sequence[Any]) -> None:
        """Have the model reason and respond, greedily. A task's strings end the response alone."""
        reasoning, asked = session.reasoning, {}
        for number, (context, options) in enumerate(request.args for request in requests):
            given = normalize_gen_kwargs(options, self.max_gen_toks)
            answer = Sampling(given["max_gen_toks"], session.stop_ids)
            whole = reasoning.sampling(answer, session.stop_ids)
            ids = self.tok_encode(context)[whole.max_new_tokens - self._window :]  # as the harness cuts it
            prompt = GenerationRequest(str(number), tuple(ids), whole)
            asked[prompt.id] = prompt, answer, given["until"], (context, options)
        for result in session.engine.generate([prompt for prompt, *_ in asked.values()]):
            prompt, answer, until, args = asked[result.id]
            reply = reasoning.split(result, answer, opened=reasoning.opens(prompt.prompt_ids))
            self.add_partial("generate_until", args, postprocess_generated_text(reply.text, until, None), reply)

    def write(self, requests: Sequence[Any], *, disable_tqdm: bool) -> None:
        """Have the harness's model respond to prompts, which fit the window or may be cut."""
        super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Any], *options: Any, **more: Any) -> list[tuple[float, bool]]:
        # The last token is predicted and never read.
        for _, context, target in requests:
            check_ids(self._vocabulary, context, target, where=self.label)
        lengths = [(args, len(context) + len(target) - 1 + self.room_for_one) for args, context, target in requests]
        self._check("loglikelihood", lengths)
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *options, **more)
        return answers

    def add_partial(self, kind: str, args: Sequence[Any], answer: Any, reply: Reply | None = None) -> None:
        """Keep the answer to one request: a hook that the harness calls. ``reply`` is the whole response of a model
        that may reason."""
        if kind == "loglikelihood":
            check_finite({"log-likelihood of an answer": answer[0]}, where=self.label)
        key = _key(kind, args)
        names = (_numbered(key, number) for number in count())
        found = next(name for name in names if name not in self._answers and name not in self._fresh)
        reasoned: dict[str, Any] = {}
        if reply is not None and reply.reasoning is not None:
            reasoned = {"reasoning": reply.reasoning, "reasoning_cut": reply.cut}
        self._fresh[found] = HarnessAnswer(id=found, answer=answer, cut=self._excess.get(key, 0), **reasoned)
        self._tracker.advance()
        if len(self._fresh) >= _SAVE_EVERY or time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        self._answers.append(*self._fresh.values())
        self._fresh = {}
        self._saved_at = time.monotonic()

    def _answered(self, kind: str, requests: Sequence[Any], compute: Callable[..., object]) -> list[Any]:
        """The answers in order: those on disk, and the rest by ``compute``, which calls :meth:`add_partial`."""
        names = _names(kind, requests)
        waiting = [request for request, name in zip(requests, names, strict=True) if name not in self._answers]
        if waiting:
            with progress(self.label, len(requests), len(requests) - len(waiting)) as self._tracker:
                try:
                    compute(waiting, disable_tqdm=True)
                finally:
                    self._save()
        records = [self._answers[name] for name in names]
        self.num_requests += len(records)
        self.num_cut += sum(record.cut > 0 for record in records)
        self.num_reasoned += sum(record.reasoning is not None for record in records)
        self.num_reasoning_cut += sum(bool(record.reasoning_cut) for record in records)
        return [record.answer for record in records]

    def _check(self, kind: str, lengths: Sequence[tuple[Sequence[Any], int]]) -> None:
        """Refuse, or count, what is longer than the window."""
        excess = [(args, length - self._window) for args, length in lengths if length > self._window]
        if excess and not self._truncate:
            raise UserError(
                f"{len(excess)} of {len(lengths)} prompts are longer than the window of {self._window} tokens, the "
                f"longest has {self._window + max(tokens for _, tokens in excess)}",
                where=self.label,
                mend="ask for fewer shots, or set short.truncate=true to cut them on the left, as lm-eval does",
            )
        self._excess = {_key(kind, args): tokens for args, tokens in excess}


def _key(kind: str, args: Sequence[Any]) -> str:
    return text_fingerprint(json.dumps([kind, *args], ensure_ascii=False, sort_keys=True, default=str))


def _numbered(key: str, number: int) -> str:
    """The name of one of several equal requests: a task that samples asks the same thing several times."""
    return f"{key}-{number}" if number else key


def _names(kind: str, requests: Sequence[Any]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for request in requests:
        key = _key(kind, request.args)
        names.append(_numbered(key, seen[key]))
        seen[key] += 1
    return names
