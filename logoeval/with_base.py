"""A base model and an adapter of it in one command (``--with-base``).

Both are measured by one recipe, into ordinary folders of results, ``base/`` and ``adapter/``: each goes on where it
stopped, and ``logoeval compare`` takes either. The base comes first, and what was loaded for it serves the adapter
next. transformers' weights take the adapter into them, merged, so its scores are those of a run of its own. vLLM is
started once, with the adapter beside the weights, and is asked with it and without.

An adapter may have been trained with another RoPE or a larger window. The base is then measured with its own, as it
would be alone, and the model is loaded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import locked
from logodata.engines import Engine
from logodata.engines.settings import open_engine
from logodata.engines.vllm_engine import VllmEngine
from logodata.models.adapter_fit import check_adapter_fits
from logodata.models.adapters import merge_adapter
from logodata.models.loading import load_config
from logodata.models.text_config import config_window
from logoeval.checkpoints import at_adapter
from logoeval.recipe.settings import EvalRecipe
from logoeval.run import evaluate
from logoeval.session import Session, rope_and_window
from logoeval.tasks.needles.heads import HEADS_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

BASE, ADAPTER = "base", "adapter"
"""Folders of the results."""


def evaluate_with_base(recipe: EvalRecipe, tasks: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Run ``tasks`` on the recipe's model without its adapter and with it.

    Where the retrieval score is measured, the base model's heads are measured on both, unless the recipe names others.

    Args:
        recipe: names an adapter.
        tasks: that have settings in it.
        folder: of both folders of results.

    Returns:
        the folders of the results, ``folder/base`` and ``folder/adapter``.

    Raises:
        UserError: the adapter does not fit the model, or base and adapter could not be compared, both before any work;
            or see :func:`logoeval.run.evaluate`.
    """
    assert recipe.adapter is not None
    check_adapter_fits(recipe.model, recipe.adapter)
    own, trained = load_config(recipe.model), load_config(recipe.model, adapter=recipe.adapter)
    _check_windows(recipe, tasks, own, trained)
    notes = []
    if rope_and_window(own) != rope_and_window(trained):
        notes.append(
            f"the base model is measured with its own {_describe(own)}; "
            f"the adapter was trained with {_describe(trained)}"
        )
    base_folder, adapter_folder = folder / BASE, folder / ADAPTER
    with locked(folder):
        session = _BaseSession(recipe)
        note("base model")
        evaluate(_without_adapter(recipe), tasks, base_folder, open_session=lambda _: session, notes=notes)
        note("with the adapter")
        evaluate(
            at_adapter(recipe, recipe.adapter, base_folder / HEADS_FILE),
            tasks,
            adapter_folder,
            open_session=lambda here: _AdapterSession(here, session),
        )
    return base_folder, adapter_folder


def _without_adapter(recipe: EvalRecipe) -> EvalRecipe:
    # A server has the adapter under a name of its own, and the base under the model's.
    engine = recipe.engine.model_copy(update={"served_model": None})
    return recipe.model_copy(update={"adapter": None, "engine": engine})


def _check_windows(recipe: EvalRecipe, tasks: Sequence[str], own: PreTrainedConfig, trained: PreTrainedConfig) -> None:
    """LongBench cuts prompts to the window: under two windows they would be other prompts, and nothing to compare."""
    before, after = config_window(own), config_window(trained)
    windows = sorted((before, after))
    limit = recipe.engine.max_model_len
    if "longbench" in tasks and windows[0] < windows[1] and (limit is None or limit > windows[0]):
        raise UserError(
            f"longbench: the base model has {before} positions, the adapter was trained for {after}: their prompts "
            "would be cut to other lengths",
            where=str(recipe.adapter),
            mend=f"set engine.max_model_len={windows[0]}, or leave out --with-base",
        )


def _describe(config: PreTrainedConfig) -> str:
    found, window = rope_and_window(config)
    rope: dict[str, Any] = found or {}
    factor = f" times {rope['factor']:g}" if "factor" in rope else ""
    return f"RoPE ({rope.get('rope_type', 'default')}{factor}) and window ({window})"


class _BaseSession(Session):
    """Of the base model; what it loads serves the adapter next.

    Args:
        adapted: the recipe with the adapter.
    """

    def __init__(self, adapted: EvalRecipe) -> None:
        super().__init__(_without_adapter(adapted))
        self._adapted = adapted
        self.adapted_engine: Engine | None = None
        """The engine with the adapter, if it was opened already."""

    @cached_property
    def engine(self) -> Engine:
        """What generates, without the adapter."""
        kind = self.settings.engine.kind
        if kind == "transformers" or (kind == "vllm" and self._has_other_rope):
            return super().engine
        # First the adapter's: what is wrong with it shows before the base model's work is done.
        engine = open_engine(self._adapted.engine, self._adapted.model, adapter=self._adapted.adapter)
        self.adapted_engine = engine
        return engine.without_adapter() if isinstance(engine, VllmEngine) else super().engine

    @cached_property
    def _trained(self) -> PreTrainedConfig:
        return load_config(self._adapted.model, adapter=self._adapted.adapter)

    @property
    def _has_other_rope(self) -> bool:
        return rope_and_window(self.config) != rope_and_window(self._trained)

    def check_window(self, num_tokens: int, what: str) -> None:
        """See the base class; the adapter's window may be larger."""
        trained = config_window(self._trained)
        if self.window < num_tokens <= trained:
            raise UserError(
                f"{what} needs {num_tokens} positions; the adapter was trained for {trained}, the base model has "
                f"{self.window}",
                where=self.settings.model,
                mend="lower it, or leave out --with-base",
            )
        super().check_window(num_tokens, what)

    def release(self) -> PreTrainedModel | None:
        """Let go of all that serves the base alone, and hand over its weights, if they were read."""
        engine = self.__dict__.pop("engine", None)
        if isinstance(engine, VllmEngine) and self.adapted_engine is None:
            engine.close()
        return self.__dict__.pop("model", None)


class _AdapterSession(Session):
    """Of the adapter, which takes over what the base's session loaded."""

    def __init__(self, recipe: EvalRecipe, base: _BaseSession) -> None:
        super().__init__(recipe)
        self._weights, self._engine = base.release(), base.adapted_engine

    @cached_property
    def model(self) -> PreTrainedModel:
        """In transformers, the adapter merged."""
        weights, self._weights = self._weights, None
        if weights is None or rope_and_window(weights.config) != rope_and_window(self.config):
            del weights  # before others are read
            return super().model
        assert self.settings.adapter is not None
        return merge_adapter(weights, self.settings.adapter)

    @cached_property
    def engine(self) -> Engine:
        """What generates, with the adapter."""
        return self._engine or super().engine
