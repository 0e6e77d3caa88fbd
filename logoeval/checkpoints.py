"""A needle test at every checkpoint of a training run (LOGO, Fig. 7): the base model, then each adapter in order.

Every step is an evaluation of its own in ``step-N/``, the base model in ``step-0/``: an interrupted curve goes on where
it stopped, and ``logoeval compare`` takes any of the folders. Where retrieval is measured, the base model's heads are
measured at every step. The base model's weights are loaded once; adapters are put on and taken off unmerged, so no
rounding of one step is left in the next.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import locked
from logodata.models.adapter_fit import check_adapter_fits
from logodata.models.adapters import ADAPTER_FILES, attach_adapter
from logodata.models.loading import load_config, load_model
from logoeval.intervals import estimate_difference, groups
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import Curve, CurvePoint, CurveValue, Results, TaskResult, continue_results, write_results
from logoeval.run import evaluate
from logoeval.session import Session, rope_and_window
from logoeval.tasks.needles.heads import HEADS_FILE
from logoeval.tasks.needles.settings import NiahSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

NIAH = "niah"


def find_adapters(checkpoints: Path) -> dict[int, Path]:
    """The adapter of each ``step-N`` of a training run's ``checkpoints`` folder, by step.

    Raises:
        UserError: there are none, or a checkpoint holds no adapter.
    """
    names = {path: path.name.removeprefix("step-") for path in checkpoints.glob("step-*") if path.is_dir()}
    steps = sorted((int(name), path / "adapter") for path, name in names.items() if name.isdecimal() and int(name) > 0)
    if not steps:
        inside = checkpoints / "checkpoints"
        mend = f"give {inside}" if inside.is_dir() else "give RUN/checkpoints of a logotrain run"
        raise UserError("holds no checkpoint (step-N)", where=str(checkpoints), mend=mend)
    for _, adapter in steps:
        if not (adapter / ADAPTER_FILES[0]).is_file():
            raise UserError(
                "the checkpoint holds no adapter",
                where=str(adapter.parent),
                mend="give a run with tuning=lora or qlora; models tuned whole are evaluated one by one",
            )
    return dict(steps)


def evaluate_checkpoints(recipe: EvalRecipe, checkpoints: Path, folder: Path) -> Results:
    """Run the recipe's needle test at every step and write ``folder/step-N/`` and the curve in ``folder/results.json``.

    Args:
        recipe: names the base model and has settings for niah.
        checkpoints: of a logotrain run.
        folder: of the results.

    Raises:
        UserError: see :func:`find_adapters` and :func:`logoeval.run.evaluate`; or an adapter does not fit the model, or
            the recipe names an adapter or another engine than transformers.
    """
    if recipe.adapter is not None:
        raise UserError("--checkpoints with an adapter", where=str(recipe.adapter), mend="leave out --adapter")
    if recipe.engine.kind != "transformers":
        raise UserError(
            f"--checkpoints puts adapters on a model in memory: engine.kind={recipe.engine.kind} has none",
            mend="use engine.kind=transformers",
        )
    adapters = find_adapters(checkpoints)
    for found_adapter in adapters.values():
        check_adapter_fits(recipe.model, found_adapter)
    with locked(folder):
        weights = OneBase(recipe)
        found: dict[int, TaskResult] = {}
        for step, adapter in ((0, None), *adapters.items()):
            note(f"step {step}" if step else "base model")
            results = evaluate(
                at_adapter(recipe, adapter, folder / "step-0" / HEADS_FILE),
                ["niah"],
                folder / f"step-{step}",
                open_session=lambda here: _CheckpointSession(here, weights),
            )
            found[step] = results.tasks["niah"]
        whole = continue_results(folder).model_copy(update={"curve": _curve(found, checkpoints)})
        write_results(folder, whole)
        return whole


def at_adapter(recipe: EvalRecipe, adapter: Path | None, base_heads: Path) -> EvalRecipe:
    """The recipe with an adapter (None: without), and with the base model's heads unless others are given."""
    changes: dict[str, Any] = {"adapter": adapter}
    niah = recipe.section(NIAH)
    assert niah is None or isinstance(niah, NiahSettings)
    if adapter is not None and niah is not None and niah.retrieval is not None and niah.retrieval.heads is None:
        retrieval = niah.retrieval.model_copy(update={"heads": base_heads})
        changes[NIAH] = niah.model_copy(update={"retrieval": retrieval})
    return recipe.model_copy(update=changes)


class OneBase:
    """One copy of a base model's weights, with one adapter on it at a time.

    Args:
        recipe: names the model, its type and device.
    """

    def __init__(self, recipe: EvalRecipe) -> None:
        self._recipe, self._device = recipe, Session(recipe).device
        self._base: PreTrainedModel | None = None
        self._adapted: PeftModel | None = None
        self._content: dict[str, Any] = {}

    def model(self, adapter: Path | None) -> PreTrainedModel:
        """The model with ``adapter``, unmerged, or with none; what was returned before changes with it.

        The weights are read again only where the adapter was trained with another RoPE or window than they have, or the
        one before changed them: one with biases, or one made by PiSSA.

        Raises:
            UserError: the adapter does not fit the model.
        """
        if self._adapted is not None:
            self._base, self._adapted = _without_adapter(self._adapted), None
            if _content(self._base) != self._content:
                self._base = None
        config = load_config(self._recipe.model, adapter=adapter)
        if self._base is None or rope_and_window(config) != rope_and_window(self._base.config):
            self._base = None  # before the next is loaded
            self._base = load_model(
                self._recipe.model, config=config, dtype=self._recipe.engine.dtype, device=self._device
            )
            self._content = _content(self._base)
        if adapter is None:
            return self._base
        self._adapted = attach_adapter(self._base, adapter)
        return self._base  # the adapter's layers are inside it


def _without_adapter(adapted: PeftModel) -> PreTrainedModel:
    """The base model as it was: PEFT's ``unload`` leaves modules that were trained whole (the embedding) in it."""
    from peft.utils import ModulesToSaveWrapper

    modules = adapted.get_base_model().named_modules()
    originals = {name: module.original_module for name, module in modules if isinstance(module, ModulesToSaveWrapper)}
    base: PreTrainedModel = adapted.unload()
    for name, module in originals.items():
        base.set_submodule(name, module)
    return base


def _content(model: PreTrainedModel) -> dict[str, Any]:
    """What tells all weights apart from changed ones: their names, shapes, hashes (of even counts of one number, 0) and
    sums."""
    import torch

    found = {}
    for name, value in model.state_dict().items():
        numbers = value.view(torch.uint8) if value.element_size() == 1 else value  # torch hashes no float8
        digest = torch.hash_tensor(numbers).view(torch.int64).item()
        found[name] = (value.shape, digest, numbers.sum(dtype=torch.float64).item())
    return found


class _CheckpointSession(Session):
    """A session whose model shares its weights with those of other steps."""

    def __init__(self, recipe: EvalRecipe, weights: OneBase) -> None:
        super().__init__(recipe)
        self._weights = weights

    @cached_property
    def model(self) -> PreTrainedModel:
        """In transformers, the adapter on it."""
        return self._weights.model(self.settings.adapter)


def _curve(found: dict[int, TaskResult], checkpoints: Path) -> Curve:
    base = found[0]
    points = [
        CurvePoint(step=step, adapter_fingerprint=result.provenance.adapter_fingerprint, values=_values(base, result))
        for step, result in found.items()
    ]
    # The settings of the steps: the base model's heads are its own, theirs are given, and they are the same.
    return Curve(checkpoints=str(checkpoints), settings=base.settings, metrics=base.metrics, points=points)


def _values(base: TaskResult, result: TaskResult) -> list[CurveValue]:
    """Means over all samples, and their paired differences from the base model."""
    values = []
    for row in result.summary:
        if row.slice:
            continue
        metric = next(metric for metric in result.metrics if metric.key == row.metric)
        pairs = [
            (before, after)
            for before, after in zip(base.samples, result.samples, strict=True)
            if metric.key in after.scores
        ]
        change = estimate_difference(
            [before.scores[metric.key] for before, _ in pairs],
            [after.scores[metric.key] for _, after in pairs],
            [after.cluster for _, after in pairs],
            groups=groups(metric, [after for _, after in pairs]),
            transform=metric.transform,
        )
        low, high = change.interval or (None, None)
        values.append(
            CurveValue(
                metric=metric.key,
                value=row.value,
                low=row.low,
                high=row.high,
                change=change.value,
                change_low=low,
                change_high=high,
                num_samples=row.num_samples,
            )
        )
    return values
