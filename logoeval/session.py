"""The model of one evaluation: tokenizer, weights and engine, each loaded when first needed, and once."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from logodata.common.errors import UserError
from logodata.engines import Engine
from logodata.engines.settings import EngineSettings, ModelSettings, open_engine
from logodata.models.adapters import ADAPTER_FILES, BASE_CONFIG, check_adapter
from logodata.models.facts import model_eos_ids
from logodata.models.loading import load_config, load_model, load_tokenizer
from logodata.models.text_config import config_window, text_config
from logodata.prompts import turn_end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class SessionSettings(ModelSettings):
    """The model of an evaluation. Two evaluations that differ in ``model`` and ``adapter`` only can be compared."""

    adapter: Path | None = None
    """Folder of an adapter, such as RUN/final of a logotrain run; merged into the weights."""
    seed: int = Field(default=0, ge=0)
    """Draws needles and haystacks."""
    engine: EngineSettings = EngineSettings()
    """What generates. Log-probabilities are computed by transformers whatever it is, with weights of ``engine.dtype``,
    in float32 from the head's output on."""


class Session:
    """What the tasks of one evaluation share.

    Args:
        settings: name model, adapter, dtype and engine.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.settings = settings

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Of the model, with RoPE and window as its adapter was trained with."""
        return load_config(self.settings.model, adapter=self.settings.adapter)

    @property
    def window(self) -> int:
        """Positions the model was made for, or was extended to when its adapter was trained."""
        return config_window(self.config)

    @cached_property
    def device(self) -> str:
        """Where the weights go."""
        import torch

        wanted = self.settings.engine.device
        if wanted != "auto":
            return wanted
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With its chat template."""
        return load_tokenizer(self.settings.model, self.settings.chat_template)

    @cached_property
    def bare_tokenizer(self) -> PreTrainedTokenizerBase:
        """Its vocabulary: also of a model without chat template, which some tasks do not need."""
        return load_tokenizer(self.settings.model, self.settings.chat_template, needs_template=False)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response."""
        return turn_end_ids(self.tokenizer, model_eos_ids(self.settings.model))

    @cached_property
    def model(self) -> PreTrainedModel:
        """In transformers, the adapter merged."""
        settings = self.settings
        return load_model(settings.model, adapter=settings.adapter, dtype=settings.engine.dtype, device=self.device)

    @cached_property
    def engine(self) -> Engine:
        """What generates; the transformers engine shares the weights of :attr:`model`."""
        engine = self.settings.engine
        if engine.kind != "transformers":
            return open_engine(engine, self.settings.model, adapter=self.settings.adapter)
        from logodata.engines.transformers_engine import TransformersEngine, check_supported

        check_supported(self.config)  # before gigabytes of weights are read
        return TransformersEngine(
            self.model,
            max_batch_tokens=engine.max_batch_tokens,
            max_batch_rows=engine.max_batch_rows,
            max_model_len=engine.max_model_len,
        )

    def check_window(self, num_tokens: int, what: str) -> None:
        """Refuse work that would leave the model's window, before it begins.

        Raises:
            UserError: it would; ``what`` names the setting.
        """
        if num_tokens > self.window:
            raise UserError(
                f"{what} needs {num_tokens} positions, the model has {self.window}",
                where=self.settings.model,
                mend="lower it, or take a model with a longer window",
            )


def rope_and_window(config: PreTrainedConfig) -> tuple[Any, int]:
    """What of a config an adapter may have been trained with otherwise."""
    return getattr(text_config(config), "rope_parameters", None), config_window(config)


def adapter_fingerprint(adapter: Path | None) -> str | None:
    """Hash of an adapter's config and weights, and of the RoPE it was trained with.

    Raises:
        UserError: there is none in the folder.
    """
    if adapter is None:
        return None
    check_adapter(adapter)
    digest = hashlib.sha256()
    for file in (adapter / name for name in (*ADAPTER_FILES, BASE_CONFIG)):
        if file.is_file():  # adapters of other trainers have no base config
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
