"""Generate with servers that take messages and return text, in OpenAI's shape (``/v1/chat/completions``).

Hosted models have it, and SGLang, llama.cpp, Ollama and vLLM.

Such a server has a chat template and a tokenizer of its own. The tokenizer here counts tokens, cuts documents into
chunks and writes the tokens of responses, and the chat template here only tells which part of a prompt is the user's
message. A response has the server's text, and that text in tokens of the tokenizer here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.batching import first_stop, request_seed
from logodata.engines.chat_answers import ChatAnswer, read_openai
from logodata.engines.server_answers import Fault, Response
from logodata.engines.server_engine import ServerEngine
from logodata.prompts import UserMessages, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from logodata.engines.settings import EngineSettings


class ChatEngine(ServerEngine):
    """An engine over chat servers that all serve the same model. Only one call of :meth:`generate` may run at a time.

    Each prompt is sent as one user's message (:meth:`logodata.prompts.UserMessages.read`). A token of ``stop_ids``
    inside a response ends it here, since the server does not know these tokens. Penalties, and whatever else a request
    does not say, are the server's own.

    Args:
        settings: The servers, and how they are asked. An address with a path is taken as it is, and others get
            ``/v1``.
        model: The model's name on the servers.
        tokenizer: The tokenizer whose tokens the prompts are.
        api_key: The key, sent as bearer token and never printed.
        window: The most tokens of a prompt with its response, counted by ``tokenizer``.
        first_wait_s: Seconds before the first retry. Each wait is twice the one before, less a random part.

    Raises:
        UserError: No server can be reached, one refuses the key, or the tokenizer does not give texts back.
    """

    def __init__(
        self,
        settings: EngineSettings,
        model: str,
        *,
        tokenizer: PreTrainedTokenizerBase,
        api_key: str | None = None,
        window: int | None = None,
        first_wait_s: float = 1.0,
    ) -> None:
        self._model, self._tokenizer, self._window = model, tokenizer, window
        self._messages = UserMessages(tokenizer)
        super().__init__(settings, api_key=api_key, first_wait_s=first_wait_s)
        self.name = f"chat ({settings.api})"

    def _base(self, url: str) -> str:
        return url if httpx.URL(url).path.strip("/") else f"{url}/v1"

    def _body(self, request: GenerationRequest) -> tuple[str, dict[str, Any]]:
        # Greedy decoding needs no seed, and some servers know none.
        sampling, settings = request.sampling, self._settings
        sampled = {"top_p": sampling.top_p, "seed": request_seed(request)} if sampling.temperature else {}
        body = {
            "model": self._model,
            "messages": self._message(request),
            settings.max_tokens_field: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            **sampled,
            **settings.extra_body,
        }
        return "chat/completions", {name: value for name, value in body.items() if value is not None}

    def _message(self, request: GenerationRequest) -> list[dict[str, str]]:
        return [{"role": "user", "content": self._messages.read(request.prompt_ids)}]

    def _read(self, answer: Any) -> ChatAnswer:
        return read_openai(answer)

    def _result(self, answer: Any, request: GenerationRequest, url: str) -> GenerationResult:
        try:
            said = self._read(answer)
        except ValueError as error:
            mend = f"is this a server of the {self._settings.api} API (engine.api)?"
            where = f"{url}, request {request.id!r}"
            raise UserError(self._reader.shorten(error), where=where, mend=mend) from error
        except Fault as fault:
            raise Fault(self._reader.shorten(fault.text)) from fault
        ids, text, finish_reason = tuple(encode_text(self._tokenizer, said.text)), said.text, said.finish_reason
        if (stop := first_stop(ids, request.sampling)) is not None:
            ids, finish_reason = ids[:stop], "stop"
            text = self._messages.decode(ids)
        return GenerationResult(request.id, ids, finish_reason, text, said.reasoning, said.usage, said.is_withheld)

    def _finish(self, response: Response, request: GenerationRequest, url: str) -> GenerationResult:
        # A filter of prompts refuses a prompt each time. Of many prompts it must not end the others.
        if response.status_code == 400 and "content_filter" in response.text:
            return GenerationResult(request.id, (), "stop", "", withheld=True)
        return super()._finish(response, request, url)

    def _read_card(self, response: httpx.Response, url: str) -> dict[str, Any]:
        # What else a server answers shows that it is there. Keys may be kept from listing models, and names have
        # aliases, so whether the model is served shows with the first request.
        if response.status_code in (401, 429) or response.status_code >= 500:
            self._reader.json(response, where=f"{url}/models", mend="check engine.base_urls and engine.api_key_env")
        return {}

    def _mend(self, response: Response) -> str:
        if response.status_code in (401, 403):
            return "check engine.api_key_env"
        text, field = response.text, "max_completion_tokens"
        if "context" in text and ("length" in text or "window" in text):
            return "lower engine.max_model_len to the server's window, which counts its own tokens"
        if field in text and self._settings.max_tokens_field != field:
            return f"set engine.max_tokens_field={field}"
        for name in ("temperature", "top_p", "seed", *self._settings.extra_body):
            if name in text:
                return f"leave the field out: engine.extra_body.{name}=null"
        return "check engine.base_urls, engine.served_model, engine.api and engine.extra_body"
