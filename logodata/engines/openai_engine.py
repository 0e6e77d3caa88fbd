"""Generate with OpenAI-compatible servers: ``/v1/completions`` with token ids as the prompt, and token ids back.

It is tested with vLLM. A server that returns only text is refused: tokenising the text need not give the same tokens
(:mod:`logodata.engines.chat_engine` is for such servers).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import httpx

from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.batching import request_seed
from logodata.engines.server_answers import Fault
from logodata.engines.server_engine import ServerEngine

if TYPE_CHECKING:
    from logodata.engines.settings import EngineSettings


class OpenAIEngine(ServerEngine):
    """An engine over running servers that all serve the same model. Only one call of :meth:`generate` may run at a
    time.

    RoPE is fixed when a server starts: no request can change it, and no answer shows it. For an adapter that was
    trained with a scaled RoPE, start vLLM with ``--hf-overrides`` and the ``rope_parameters`` and
    ``max_position_embeddings`` of the adapter's ``base_config.json``, or serve the merged model (``logotrain merge``).

    Args:
        settings: The servers (the ``/v1`` of an address may be missing), and how they are asked. The servers' own
            limits hold as well.
        model: The model's name on the servers.
        needs_adapter: Require that the name stands for an adapter, not for its base model.
        api_key: The key, sent as bearer token and never printed.
        vocabulary: The number of tokens that the model knows; None if not known. No request is sent with other tokens.
        first_wait_s: Seconds before the first retry. Each wait is twice the one before, less a random part.

    Raises:
        UserError: No server can be reached, or one that can be reached does not serve ``model``.
    """

    def __init__(
        self,
        settings: EngineSettings,
        model: str,
        *,
        needs_adapter: bool = False,
        api_key: str | None = None,
        vocabulary: int | None = None,
        first_wait_s: float = 1.0,
    ) -> None:
        self._model, self._needs_adapter, self._vocabulary = model, needs_adapter, vocabulary
        super().__init__(settings, api_key=api_key, first_wait_s=first_wait_s)
        windows = (*(card.get("max_model_len") for card in self._cards), settings.max_model_len)
        self._window = min((window for window in windows if window), default=None)
        self.name = f"openai ({self._server_version(self._cards[0])})"

    def _body(self, request: GenerationRequest) -> tuple[str, dict[str, Any]]:
        sampling = request.sampling
        greedy = sampling.temperature == 0
        return "completions", {
            "model": self._model,
            "prompt": list(request.prompt_ids),
            "max_tokens": sampling.max_new_tokens,
            **({"min_tokens": sampling.min_new_tokens} if sampling.min_new_tokens else {}),
            "temperature": sampling.temperature,
            "top_p": 1.0 if greedy else sampling.top_p,
            "seed": request_seed(request),
            "stop_token_ids": list(sampling.stop_ids),
            "ignore_eos": True,  # only the stop ids end a response
            "return_token_ids": True,
            # vLLM takes missing settings from the model's generation config, which may hold penalties.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _result(self, answer: Any, request: GenerationRequest, url: str) -> GenerationResult:
        return self._reader.completion(answer, request, url)

    def _read_card(self, response: httpx.Response, url: str) -> dict[str, Any]:
        where, mend = f"{url}/models", "check engine.base_urls and engine.api_key_env"
        answer = self._reader.json(response, where=where, mend=mend)
        return self._reader.model_card(answer, self._model, url, needs_adapter=self._needs_adapter)

    def _server_version(self, card: dict[str, Any]) -> str:
        answer = None
        if card.get("owned_by") == "vllm":
            url = next(server.url for server in self._servers if server.is_checked).removesuffix("/v1") + "/version"
            with contextlib.suppress(httpx.RequestError, ValueError, RecursionError, Fault):
                answer = self._get(url).json()
        return self._reader.version(card, answer)
