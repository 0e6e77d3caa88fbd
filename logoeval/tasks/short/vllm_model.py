"""The model in vLLM as lm-evaluation-harness sees it. Imported where it is needed: it loads the harness and vLLM."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import vllm

from logodata.engines import Engine
from logodata.engines.vllm_engine import VllmEngine
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.short.recording import HarnessAnswer, Recorded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from logoeval.session import Session

_package_version = importlib.metadata.version


def _version(distribution_name: str) -> str:
    """The version of a package. The harness asks for vllm's, whose builds for CPUs have another name."""
    return vllm.__version__ if distribution_name == "vllm" else _package_version(distribution_name)


@contextmanager
def _as_vllm() -> Iterator[None]:
    importlib.metadata.version = _version
    try:
        yield
    finally:
        importlib.metadata.version = _package_version


with _as_vllm():
    from lm_eval.models import vllm_causallms

_GROUP = 256
"""Prompts that are responded to between two writes."""


class VllmHarnessModel(Recorded, vllm_causallms.VLLM):
    """The harness's model over a vLLM that runs already, with its adapter.

    Args:
        engine: the vLLM.
        model: the folder or hub name of its model.
        tokenizer: see :class:`logoeval.tasks.short.model.HarnessModel`.
        vocabulary: tokens that the model knows.
        window: tokens that a prompt with its answer may have.
        truncate: see :meth:`Recorded.record`.
        answers: see :meth:`Recorded.record`.
        reasons: see :meth:`Recorded.record`.
    """

    room_for_one = 2  # vLLM generates a token behind the last one, which it reads here

    def __init__(
        self,
        engine: Engine,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocabulary: int,
        window: int,
        truncate: bool,
        answers: RecordFile[HarnessAnswer],
        reasons: Session | None = None,
    ) -> None:
        assert isinstance(engine, VllmEngine)
        begin = vllm_causallms.LLM
        vllm_causallms.LLM = lambda **_: engine.llm  # it would start another one
        try:
            super().__init__(pretrained=model, max_model_len=window)
        finally:
            vllm_causallms.LLM = begin
        self.tokenizer = vllm_causallms.configure_pad_token(tokenizer, model_config=self._config)
        self.hf_chat_template = None  # the tokenizer's own, which may be given with its variables
        self.lora_request = engine.adapter
        self.record(answers, vocabulary=vocabulary, window=window, truncate=truncate, reasons=reasons)

    def write(self, requests: Sequence[Any], *, disable_tqdm: bool) -> None:
        """Respond to prompts, a group at a time. The harness's model tells its answers with other options than it was
        asked with."""
        self.cache_hook = _Silent()
        try:
            for start in range(0, len(requests), _GROUP):
                group = requests[start : start + _GROUP]
                responses = vllm_causallms.VLLM.generate_until(self, group, disable_tqdm=disable_tqdm)
                for request, response in zip(group, responses, strict=True):
                    self.add_partial("generate_until", request.args, response)
        finally:
            self.set_cache_hook(self)

    @staticmethod
    def modify_gen_kwargs(
        gen_kwargs: dict[str, Any], eos: str | list[str] | None = None, default_max_gen_toks: int = 256
    ) -> tuple[dict[str, Any], list[str], int]:
        """Return the options of a response in vLLM's form. Where a task says nothing of sampling, decoding is greedy,
        as by the harness in transformers; vLLM would sample."""
        options, until, most = vllm_causallms.VLLM.modify_gen_kwargs(gen_kwargs, eos, default_max_gen_toks)
        return {"temperature": 0.0, **options}, until, most


class _Silent:
    def add_partial(self, _kind: str, _args: Mapping[str, object], _answer: object) -> None:
        """Keep nothing."""
