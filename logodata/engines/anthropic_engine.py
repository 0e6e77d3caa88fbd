"""Generate with Anthropic's servers, and others of their shape (``/v1/messages``), through Anthropic's client.

The client follows the shape, which changes: since its version 1 no request says how to decode, because newer models
refuse a temperature, and its version 2 has another form of the key. Its own retries are off, because those of
:mod:`logodata.engines.server_retries` know all servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.engines.chat_answers import ChatAnswer, read_anthropic
from logodata.engines.chat_engine import ChatEngine
from logodata.engines.server_answers import Fault, Response

if TYPE_CHECKING:
    from logodata.engines import GenerationRequest


class AnthropicEngine(ChatEngine):
    """A :class:`logodata.engines.chat_engine.ChatEngine` over servers of Anthropic's shape.

    Raises:
        UserError: The client is not installed.
    """

    def __init__(self, *args: Any, api_key: str | None = None, **kwargs: Any) -> None:
        try:
            import anthropic
        except ImportError as error:
            mend = "pip install 'logo-align[anthropic]'"
            raise UserError(f"anthropic cannot be imported: {error}", where="engine.api", mend=mend) from error
        self._library, self._api_key = anthropic, api_key
        super().__init__(*args, api_key=api_key, **kwargs)
        if "temperature" not in self._settings.extra_body:
            said = "the anthropic API is told no temperature: the server decodes as it does by default"
            note(f"{said} (engine.extra_body.temperature=0 for models that take one)")

    def _new_client(self, url: str, num_connections: int, /) -> Any:
        import httpx2  # what the client is built on

        library, limits = self._library, httpx2.Limits(max_connections=num_connections)
        return library.AsyncAnthropic(
            base_url=url.removesuffix("/v1"),
            api_key=self._api_key or "none",
            max_retries=0,
            timeout=None,  # the whole answer has a time limit
            http_client=library.DefaultAsyncHttpxClient(follow_redirects=False, limits=limits),
        )

    async def _post(self, client: Any, _: str, request: GenerationRequest, /) -> Response:
        library, told = self._library, self._settings.extra_body
        try:
            answer = await client.messages.with_raw_response.create(
                model=self._model,
                max_tokens=request.sampling.max_new_tokens,
                messages=self._message(request),
                extra_body={name: value for name, value in told.items() if value is not None},
            )
        except library.APIStatusError as error:
            found: Response = error.response
        except library.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            is_refused = cause in ("ConnectError", "ConnectTimeout")
            text = "cannot reach the server" if is_refused else "no whole answer"
            raise Fault(f"{text}: {cause} {self._reader.shorten(error)}", of_server=is_refused) from error
        else:
            found = answer.http_response
        return found

    async def _check(self, *_: object) -> None:
        """Leave it to the next request to show whether the server is there again."""

    def _read(self, answer: Any) -> ChatAnswer:
        return read_anthropic(answer)
