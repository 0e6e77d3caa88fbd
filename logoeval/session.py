"""The model of one evaluation: tokenizer, weights and engine, each loaded when first needed, and once."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from logodata.common.errors import UserError
from logodata.common.turn_end import turn_end_ids
from logodata.engines import Engine
from logodata.engines.reasoning import Reasoning
from logodata.engines.settings import (
    AdaptedModelSettings,
    EngineSettings,
    engine_window,
    open_engine,
    weights_dtype,
)
from logodata.engines.vllm_engine import VllmEngine
from logodata.models.adapter_fit import check_adapter_fits
from logodata.models.adapters import merge_adapter
from logodata.models.facts import model_eos_ids
from logodata.models.loading import device_named, empty_model, load_config, load_model
from logodata.models.text_config import config_window, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class SessionSettings(AdaptedModelSettings):
    """The model of an evaluation. Two evaluations that differ in ``model`` and ``adapter`` only can be compared."""

    adapter: Path | None = None
    """Folder of an adapter, such as RUN/final of a logotrain run; merged into the weights."""
    seed: int = Field(default=0, ge=0)
    """Draws needles and haystacks."""
    engine: EngineSettings = EngineSettings()
    """What generates. Log-probabilities are computed by transformers whatever it is, with weights of ``engine.dtype``,
    in float32 from the head's output on. A chat server has none, since its model may be another one."""


_LOGPROBS_BYTES = 6 << 30
"""Memory for the states and logits of a long prompt, beside the weights. This is an assumption."""


def check_weights(engine: EngineSettings) -> None:
    """Refuse a task that computes log-probabilities under an engine that has none.

    Raises:
        UserError: The engine is a chat server.
    """
    if engine.kind == "chat":
        what = "a chat server returns text, and no log-probabilities of a given one"
        mend = "leave this task out: longbench, longbench2, niah, ruler and qa ask for text"
        raise UserError(what, where="engine.kind=chat", mend=mend)


class Weights:
    """The weights of one base model in transformers, for sessions one after another: without an adapter, and with each
    of several.

    An adapter is merged into them. Beside them it would give other numbers, by rounding, than in a run of its own. What
    merging rounds cannot be taken back, so the weights are read once for the base model and the first adapter, and
    again for each further adapter.
    """

    def __init__(self) -> None:
        self._base: PreTrainedModel | None = None

    def load(self, settings: SessionSettings, config: PreTrainedConfig, device: str) -> PreTrainedModel:
        """Return the model, with the adapter merged if ``settings`` name one. What was returned before must not be used
        any more. ``config`` has RoPE and window as the adapter was trained with.

        Raises:
            UserError: the model or the adapter cannot be loaded, or the adapter does not fit.
        """
        model, self._base = self._base, None
        if model is not None and rope_and_window(model.config) != rope_and_window(config):
            model = None  # before others are read
        if model is None:
            if settings.adapter is not None:
                check_adapter_fits(settings.model, settings.adapter)  # before gigabytes of weights are read
            model = load_model(settings.model, config=config, dtype=weights_dtype(settings.engine), device=device)
        if settings.adapter is not None:
            return merge_adapter(model, settings.adapter)
        self._base = model
        return model


class Session:
    """The model of ``settings``, for the tasks of one evaluation. ``weights`` are shared with sessions before and after
    this one."""

    def __init__(self, settings: SessionSettings, weights: Weights | None = None) -> None:
        self.settings = settings
        self.weights = weights or Weights()

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The config of the model, with RoPE and window as its adapter was trained with."""
        return load_config(self.settings.model, adapter=self.settings.adapter)

    @property
    def window(self) -> int:
        """Positions the model was made for, or was extended to when its adapter was trained."""
        if self.settings.engine.kind == "chat":
            return engine_window(self.settings.engine, self.settings.model)
        return config_window(self.config)

    @cached_property
    def device(self) -> str:
        """The device where the weights go."""
        return device_named(self.settings.engine.device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which must have a chat template."""
        return self.settings.load_tokenizer()

    @cached_property
    def bare_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, perhaps without a chat template, which some tasks do not need."""
        return self.settings.load_tokenizer(needs_template=False)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a response."""
        return turn_end_ids(self.tokenizer, model_eos_ids(self.settings.model))

    @property
    def engine_window(self) -> int:
        """Positions of a prompt with its response: the window, or ``engine.max_model_len`` if that is less."""
        return min(self.window, self.settings.engine.max_model_len or self.window)

    @cached_property
    def reasoning(self) -> Reasoning:
        """How the model reasons before it answers."""
        return self.settings.reasoning(self.bare_tokenizer, self.engine_window)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in transformers, with the adapter merged."""
        return self.weights.load(self.settings, self.config, self.device)

    @cached_property
    def engine(self) -> Engine:
        """The engine that generates. That of transformers shares the weights of :attr:`model`."""
        engine = self.settings.engine
        if engine.kind != "transformers":
            return open_engine(engine, self.settings.model, self.bare_tokenizer, adapter=self.settings.adapter)
        from logodata.engines.batching_trial import find_batching
        from logodata.engines.transformers_engine import TransformersEngine

        find_batching(self.config)  # what cannot generate is refused before gigabytes of weights are read
        return TransformersEngine(self.model, engine)

    def close(self) -> None:
        """Stop the engine, if one was started: a second vLLM has no room beside it."""
        if "engine" in vars(self) and isinstance(self.engine, VllmEngine):
            self.engine.close()

    def check_room_beside_vllm(self) -> None:
        """Raise a ``UserError`` if vLLM leaves too little of the GPU for the weights in transformers, which compute
        log-probabilities while it is open."""
        import torch

        engine = self.settings.engine
        name, _, number = self.device.partition(":")
        if engine.kind != "vllm" or name != "cuda" or int(number or 0) >= engine.tensor_parallel_size:
            return
        # Quantised weights are smaller; by how much is open.
        if getattr(self.config, "quantization_config", None) is not None:
            return
        with torch.device("meta"):
            count = empty_model(copy.deepcopy(self.config), self.settings.model).num_parameters()
        needed = count * getattr(torch, weights_dtype(engine)).itemsize + _LOGPROBS_BYTES
        total = torch.cuda.get_device_properties(self.device).total_memory
        share = math.floor(100 * (1 - needed / total)) / 100
        if engine.gpu_memory_utilization > share:
            raise UserError(
                f"log-probabilities need {needed / 2**30:.0f} GiB beside vLLM, of the GPU's {total / 2**30:.0f}",
                where=f"engine.gpu_memory_utilization={engine.gpu_memory_utilization:g}",
                mend=f"set it to {share:g} or less" if share > 0.5 else "set engine.kind=transformers for these tasks",
            )

    def check_window(self, num_tokens: int, what: str) -> None:
        """Raise a ``UserError`` if work needs more positions than the model's window has. ``what`` names the
        setting."""
        if num_tokens > self.window:
            raise UserError(
                f"{what} needs {num_tokens} positions, the model has {self.window}",
                where=self.settings.model,
                mend="lower it, or take a model with a longer window",
            )

    def check_room(self, num_tokens: int, what: str) -> None:
        """Raise a ``UserError`` if a prompt with its answer, of ``num_tokens`` together, and the budget of reasoning
        need more positions than the model or the engine has. ``what`` names the setting."""
        budget, limit = self.reasoning.budget, self.settings.engine.max_model_len
        needed = num_tokens + budget
        asked = what + (f" and thinking_tokens={budget}" if budget else "")
        self.check_window(needed, asked)
        if limit is not None and needed > limit:
            raise UserError(
                f"{asked} needs {needed} positions, engine.max_model_len is {limit}",
                mend="raise engine.max_model_len, or lower the others",
            )


def rope_and_window(config: PreTrainedConfig) -> tuple[Any, int]:
    """Return the RoPE and the window of a config. An adapter may have been trained with others."""
    return getattr(text_config(config), "rope_parameters", None), config_window(config)
