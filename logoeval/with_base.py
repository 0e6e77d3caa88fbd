"""A base model and an adapter of it in one command (``--with-base``).

Both are measured by one recipe, into ordinary folders of results, ``base/`` and ``adapter/``: each goes on where it
stopped, and ``logoeval compare`` takes either. The base comes first, and what was loaded for it serves the adapter
next. transformers' weights take the adapter into them, merged, so its scores are those of a run of its own
(:class:`logoeval.session.Weights`). vLLM is started once, with the adapter beside the weights, and is asked with it and
without.

An adapter may have been trained with another RoPE or a larger window. The base is then measured with its own, as it
would be alone, and the model is loaded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import locked
from logodata.engines import Engine
from logodata.engines.vllm_engine import VllmEngine
from logodata.models.adapter_fit import check_adapter_fits
from logoeval.checkpoints import at_adapter
from logoeval.recipe.settings import EvalRecipe
from logoeval.run import evaluate
from logoeval.session import Session, rope_and_window
from logoeval.tasks.longbench.task import prompt_limit
from logoeval.tasks.longbench2.task import prompt_limits
from logoeval.tasks.needles.heads import HEADS_FILE
from logoeval.tasks.ruler.task import find_lengths
from logoeval.tasks.table import find_task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BASE, ADAPTER = "base", "adapter"
"""Folders of the results."""


def evaluate_with_base(recipe: EvalRecipe, tasks: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Run ``tasks`` on the recipe's model without its adapter and with it, and return the folders of the results,
    ``folder/base`` and ``folder/adapter``.

    Where the retrieval score is measured, the base model's heads are measured on both, unless the recipe names others.

    Raises:
        UserError: the adapter does not fit the model, or base and adapter could not be compared, both before any work;
            or see :func:`logoeval.run.evaluate`.
    """
    assert recipe.adapter is not None
    check_adapter_fits(recipe.model, recipe.adapter)
    base_folder, adapter_folder = folder / BASE, folder / ADAPTER
    # A server has the adapter under a name of its own, and the base under the model's.
    engine = recipe.engine.model_copy(update={"served_model": None})
    base_recipe = recipe.model_copy(update={"adapter": None, "engine": engine})
    adapter_recipe = at_adapter(recipe, recipe.adapter, base_folder / HEADS_FILE)
    adapted = Session(adapter_recipe)
    base = _BaseSession(base_recipe, adapted)
    sections: dict[str, Any] = {task: recipe.section(task) for task in tasks}
    if "longbench" in tasks:
        base.check_prompts_agree("longbench", partial(prompt_limit, sections["longbench"]))
    if "longbench2" in tasks:
        base.check_prompts_agree("longbench2", partial(prompt_limits, sections["longbench2"]))
    if "short" in tasks and sections["short"].truncate:
        base.check_prompts_agree("short")
    if "ruler" in tasks:
        base.check_lengths_agree(sections["ruler"])
    if any(find_task(task).evaluator.may_reason(section) for task, section in sections.items()):
        base.check_budgets_agree()
    with locked(folder):
        note("base model")
        evaluate(base_recipe, tasks, base_folder, session=base, notes=base.notes)
        if base.has_other_rope:
            base.close()
        del base  # with weights that the adapter cannot use
        note("with the adapter")
        evaluate(adapter_recipe, tasks, adapter_folder, session=adapted)
    return base_folder, adapter_folder


class _BaseSession(Session):
    """The base model, measured before ``adapted``, a session of the same model with an adapter. Both share weights, and
    one vLLM where one RoPE serves both."""

    def __init__(self, recipe: EvalRecipe, adapted: Session) -> None:
        super().__init__(recipe, adapted.weights)
        self._adapted = adapted

    @property
    def has_other_rope(self) -> bool:
        """Whether the adapter was trained with another RoPE or window than the base model's."""
        return rope_and_window(self.config) != rope_and_window(self._adapted.config)

    @property
    def notes(self) -> list[str]:
        """The notes that a reader of the base model's numbers needs."""
        if not self.has_other_rope:
            return []
        return [
            f"the base model is measured with its own {_describe(self.config)}; "
            f"the adapter was trained with {_describe(self._adapted.config)}"
        ]

    @cached_property
    def engine(self) -> Engine:
        """The engine, without the adapter."""
        kind = self.settings.engine.kind
        if kind == "transformers" or (kind == "vllm" and self.has_other_rope):
            return super().engine
        # First the adapter's: what is wrong with it shows before the base model's work is done.
        engine = self._adapted.engine
        return engine.without_adapter() if isinstance(engine, VllmEngine) else super().engine

    def check_window(self, num_tokens: int, what: str) -> None:
        """Refuse work that would leave the window, as the base class does; the adapter's window may be larger."""
        trained = self._adapted.window
        if self.window < num_tokens <= trained:
            raise UserError(
                f"{what} needs {num_tokens} positions; the adapter was trained for {trained}, the base model has "
                f"{self.window}",
                where=self.settings.model,
                mend="lower it, or leave out --with-base",
            )
        super().check_window(num_tokens, what)

    def check_prompts_agree(self, task: str, limit: Callable[[Session], object] = lambda it: it.engine_window) -> None:
        """Raise a ``UserError`` if ``task`` would cut prompts of base and adapter to other lengths, since the adapter
        was trained with another window: there would be nothing to compare. ``limit`` gives what a session's prompts are
        cut to."""
        if limit(self) != limit(self._adapted):
            before, after = self.window, self._adapted.window
            raise UserError(
                f"{task}: the base model has {before} positions, the adapter was trained for {after}: their prompts "
                "would be cut to other lengths",
                where=str(self._adapted.settings.adapter),
                mend=f"set engine.max_model_len={min(before, after)}, or leave out --with-base",
            )

    def check_budgets_agree(self) -> None:
        """Raise a ``UserError`` if the default budget of reasoning follows from the window, and the adapter's is
        another: results of both would not be compared."""
        before, after = self.reasoning.budget, self._adapted.reasoning.budget
        if before != after:
            raise UserError(
                f"by its window the base model may reason for {before} tokens, with the adapter for {after}",
                where=str(self._adapted.settings.adapter),
                mend=f"set thinking_tokens={min(before, after)}, or leave out --with-base",
            )

    def check_lengths_agree(self, settings: Any) -> None:
        """Raise a ``UserError`` if RULER's lengths follow from the window, and the adapter's holds others."""
        before, after = find_lengths(settings, self), find_lengths(settings, self._adapted)
        if before != after:
            raise UserError(
                f"ruler: the base model's window holds the lengths up to {before[-1]}, the adapter's up to {after[-1]}",
                where=str(self._adapted.settings.adapter),
                mend="give ruler.lengths, or leave out --with-base",
            )


def _describe(config: PreTrainedConfig) -> str:
    found, window = rope_and_window(config)
    rope: dict[str, Any] = found or {}
    factor = f" times {rope['factor']:g}" if "factor" in rope else ""
    return f"RoPE ({rope.get('rope_type', 'default')}{factor}) and window ({window})"
