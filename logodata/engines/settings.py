"""Choose the engine that generates, and open it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from logodata.common.errors import UserError
from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import JsonFields, OrPath, TemplateArgs, Tokens, token_count
from logodata.engines import Engine
from logodata.models.adapter_fit import check_served_whole
from logodata.models.adapters import adapter_fingerprint
from logodata.models.facts import model_fingerprint, model_window
from logodata.models.loading import (
    DType,
    device_named,
    dtype_for,
    load_config,
    load_model,
    load_tokenizer,
    resolve_model,
)
from logodata.models.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from logodata.engines.reasoning import Reasoning

EngineKind = Literal["transformers", "vllm", "openai", "chat"]
EngineDType = Literal["auto", "float32", "bfloat16", "float16"]
_OWN_FIELDS = ("model", "messages", "max_tokens", "max_completion_tokens", "n", "stream")


class EngineSettings(RecipeModel):
    """The engine of a build or an evaluation. A field that names engines in its description is read by those only."""

    kind: EngineKind = "transformers"
    """``transformers`` runs anywhere; ``vllm`` runs vLLM in this process; ``openai`` asks a running
    server that takes token ids (vLLM), and ``chat`` one that takes messages."""
    dtype: EngineDType = "auto"
    """The dtype of weights and activations (transformers, vllm). ``auto`` is bfloat16 on a GPU that computes in it, and
    float32 elsewhere. Logits are float32 everywhere."""
    device: str = "auto"
    """The device of the model (transformers): ``cpu``, ``cuda``, ``cuda:1``; ``auto`` is CUDA if there is one."""
    max_model_len: Tokens | None = None
    """The most tokens of a prompt with its response; by default the model's window."""
    max_batch_tokens: Tokens = 16384
    """The most padded prompt tokens of a batch, all rows together (transformers). It bounds the KV cache. A longer
    prompt runs alone."""
    max_batch_rows: int = Field(default=32, gt=0)
    """The most responses decoded together (transformers)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """The share of the GPU's memory that vLLM takes (vllm)."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """The number of GPUs that share one copy of the model (vllm)."""
    base_urls: tuple[str, ...] = ()
    """Servers of the same model, such as ``http://127.0.0.1:8000/v1`` (openai, chat). Requests are spread over them. A
    server that is down is left out until it answers again."""
    served_model: str | None = None
    """The model's name on the servers (openai, chat); by default the name or folder given as model. With ``chat`` it
    may be another model: model is then the one whose tokenizer counts, cuts chunks and writes responses in tokens."""
    api: Literal["openai", "anthropic"] = "openai"
    """The shape of requests (chat): ``openai`` is that of most servers (``/v1/chat/completions``), and ``anthropic``
    that of Anthropic (``/v1/messages``), which needs the extra ``anthropic`` and tells no temperature."""
    extra_body: JsonFields = Field(default_factory=dict)
    """Fields to add to each request (chat), such as ``{reasoning_effort: low}``. One that is null is left out of it,
    such as ``{temperature: null}`` for models that refuse to be told one."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field that bounds a response (chat, with ``api: openai``). OpenAI's own newer models know the second only."""
    prices: Path | None = None
    """A YAML or JSON file with prices (chat): for the name of each model ``prompt`` and ``response``, what a
    million tokens of either cost, in any currency. LiteLLM's table of prices is read, too."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the key (openai, chat). The key itself never stands in a recipe."""
    concurrency: int = Field(default=32, gt=0)
    """Requests in flight per server (openai, chat)."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds to wait for one answer (openai, chat)."""
    max_retries: int = Field(default=6, ge=0)
    """Tries after the first one, with growing waits: of one request, and of a server that gives no answer at all
    (openai, chat). Only faults that may pass are retried, such as 429, 5xx and lost connections."""
    requests_per_minute: int | None = Field(default=None, gt=0)
    """Each server's rate limit (openai, chat); none by default."""
    tokens_per_minute: int | None = Field(default=None, gt=0)
    """Each server's limit of prompt tokens and ``max_new_tokens`` together (openai, chat); none by default."""

    @model_validator(mode="after")
    def _check_servers(self) -> Self:
        if self.asks_servers and not self.base_urls:
            raise ValueError(f"kind {self.kind} needs base_urls")
        for name in _OWN_FIELDS:
            if name in self.extra_body:
                raise ValueError(f"extra_body: {name} is set by the engine")
        # An address with a secret would end in manifests, so it is refused and not repeated.
        for number, url in enumerate(self.base_urls, 1):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"base_urls: number {number} is not an http address")
            try:
                _ = parts.port
            except ValueError:
                raise ValueError(f"base_urls: the port of number {number} is not valid") from None
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ValueError("base_urls: an address may hold no password and no query, use api_key_env")
        return self

    @property
    def decodes_as_told(self) -> bool:
        """Whether responses are decoded greedily, or sampled, as the command says. A chat server may not be told so."""
        return self.kind != "chat" or (self.api == "openai" and "temperature" not in self.extra_body)

    @property
    def asks_servers(self) -> bool:
        """Whether running servers answer."""
        return self.kind in ("openai", "chat")


def weights_dtype(settings: EngineSettings) -> DType:
    """Return the dtype of a model's weights under an engine on this machine. Beside servers, which have their own, it
    is float32 unless the settings say otherwise."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if settings.asks_servers else dtype_for(device_named(settings.device))


def engine_name(library: str, version: str, dtype: str) -> str:
    """Return the name of an engine that computes here: its library, and the dtype of the weights unless it is
    float32."""
    return f"{library} {version}" + f", {dtype}" * (dtype != "float32")


def engine_window(settings: EngineSettings, model: str, adapter: Path | None = None) -> int:
    """Return the most tokens that a prompt with its response may have under this engine: the window of the model, or
    the one that ``adapter`` was trained with, or ``settings.max_model_len`` if that is less. With ``chat`` another
    model may answer, whose window only ``max_model_len`` tells."""
    if settings.kind == "chat" and settings.max_model_len:
        return settings.max_model_len
    window = model_window(model, adapter)
    return min(window, settings.max_model_len or window)


def asked_model(settings: EngineSettings, model: str) -> str:
    """Return the name of the model that answers under this engine."""
    return settings.served_model or model if settings.kind == "chat" else model


def asked_fingerprint(settings: EngineSettings, model: str, adapter: Path | None = None) -> str:
    """Return what identifies the model that answers under this engine, in manifests and caches: its weights, and
    those of the adapter. Of the model of a chat server there is only its name, with what every request tells it."""
    if settings.kind != "chat":
        found = model_fingerprint(model)
        return found if adapter is None else f"{found}+{adapter_fingerprint(adapter)}"
    told = json.dumps(settings.extra_body, sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8] if settings.extra_body else ""
    return f"{asked_model(settings, model)}@{settings.api} chat{digest and f', {digest}'}"


class ModelSettings(RecipeModel):
    """Which model a command asks, and what runs it. Recipes that ask a model add their own fields."""

    model: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """The model: ``embedded``, a folder, or a hub name."""
    chat_template: Path | None = None
    """A Jinja file with a chat template, for models whose tokenizer has none."""
    chat_template_args: TemplateArgs = Field(default_factory=dict)
    """Variables of the chat template, such as ``{enable_thinking: false}`` of Qwen3."""
    thinking_tokens: Annotated[int, Field(ge=0), BeforeValidator(token_count)] | None = None
    """Tokens that a model which reasons may write before its answer, beside those of the answer. An answer is what
    follows the end of the reasoning. By default 8,192 (32,768 from windows of 256,000 on) where the chat template
    itself opens the reasoning, else none; 0 gives none there, too."""
    thinking_end: str | None = Field(default=None, min_length=1)
    """The text that ends the reasoning; by default the one in the chat template, or ``</think>``."""
    engine: EngineSettings = EngineSettings()
    """The engine that runs the model."""

    @property
    def has_own_template(self) -> bool:
        """Whether the chat template is another one than the tokenizer's, or reads variables that are given."""
        return self.chat_template is not None or bool(self.chat_template_args)

    def load_tokenizer(self, *, needs_template: bool = True) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the model with its chat template (:func:`logodata.models.loading.load_tokenizer`)."""
        return load_tokenizer(
            self.model, self.chat_template, needs_template=needs_template, template_args=self.chat_template_args
        )

    def reasoning(self, tokenizer: PreTrainedTokenizerBase, window: int) -> Reasoning:
        """Return how the model reasons, whose tokenizer and window these are."""
        from logodata.engines.reasoning import Reasoning

        return Reasoning(tokenizer, tokens=self.thinking_tokens, end=self.thinking_end, window=window)


class AdaptedModelSettings(ModelSettings):
    """Which model a command asks, perhaps with an adapter, and what runs it."""

    adapter: Path | None = None
    """The folder of an adapter, such as RUN/final of a logotrain run."""

    @model_validator(mode="after")
    def _adapter_is_served(self) -> Self:
        if self.adapter is not None and self.engine.kind == "chat":
            raise ValueError("a chat server is told no adapter: serve it, and give its name as engine.served_model")
        return self


def open_engine(
    settings: EngineSettings,
    model: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter: Path | None = None,
) -> Engine:
    """Load the model, or connect to its servers. Prompts will be tokens of ``tokenizer``, in its chat template, by
    default that of the model.

    ``adapter`` is the folder of a LoRA adapter. With ``openai`` the server must serve it, as ``served_model``, with the
    RoPE that it was trained with (see :class:`logodata.engines.openai_engine.OpenAIEngine`).

    Raises:
        UserError: The model cannot be loaded, vLLM is not installed, a server does not serve this model, or the adapter
            does not fit the model or the engine.
    """
    if settings.kind == "transformers":
        from logodata.engines.batching_trial import find_batching
        from logodata.engines.transformers_engine import TransformersEngine

        config = load_config(model, adapter=adapter)
        find_batching(config)  # what cannot generate is refused before gigabytes of weights are read
        device, dtype = device_named(settings.device), weights_dtype(settings)
        return TransformersEngine(
            load_model(model, adapter=adapter, config=config, dtype=dtype, device=device), settings
        )
    if adapter is not None:
        check_served_whole(model, adapter)
    if settings.kind == "vllm":
        from logodata.engines.vllm_engine import VllmEngine

        return VllmEngine(resolve_model(model), settings, adapter=adapter)
    if settings.kind == "chat":
        from logodata.engines.anthropic_engine import AnthropicEngine
        from logodata.engines.chat_engine import ChatEngine

        chat = AnthropicEngine if settings.api == "anthropic" else ChatEngine
        return chat(
            settings,
            asked_model(settings, model),
            tokenizer=tokenizer or load_tokenizer(model, needs_template=False),
            api_key=_api_key(settings.api_key_env),
            window=engine_window(settings, model),
        )
    assert settings.kind == "openai", settings.kind
    from logodata.common.console import note
    from logodata.engines.openai_engine import OpenAIEngine

    if adapter is not None and settings.served_model is None:
        mend = f"start it with --enable-lora --lora-modules NAME={adapter} and set engine.served_model=NAME"
        raise UserError("an adapter must be served by the server", where=str(adapter), mend=mend)
    engine = OpenAIEngine(
        settings,
        settings.served_model or resolve_model(model),
        needs_adapter=adapter is not None,
        api_key=_api_key(settings.api_key_env),
        vocabulary=vocabulary_size(load_config(model)),
    )
    if engine.window is not None and engine.window < (planned := engine_window(settings, model, adapter)):
        note(
            f"{settings.base_urls[0]}: the server takes {engine.window:,} tokens, {model} takes {planned:,}: a longer "
            f"prompt would end the command (max_model_len={engine.window} of this engine leaves such questions out, if "
            "it is set before the first ones are decided)"
        )
    return engine


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        # Some people write the key itself there, so only what looks like a name is repeated.
        where, name = (variable, variable) if variable.isupper() else ("engine.api_key_env", "NAME")
        mend = f"export {name}=... or drop engine.api_key_env"
        raise UserError("this environment variable is not set", where=where, mend=mend)
    return key
