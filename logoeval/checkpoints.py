"""A task at every checkpoint of a training run (LOGO, Fig. 7): the base model, then each adapter in order.

Every step is an evaluation of its own in ``step-N/``, the base model in ``step-0/``: an interrupted curve goes on where
it stopped, and ``logoeval compare`` takes any of the folders. Where retrieval is measured, the base model's heads are
measured at every step. Each adapter is merged into the base model's weights (:class:`logoeval.session.Weights`), so the
numbers of a step are those of its adapter in a run of its own.
"""

from __future__ import annotations

from pathlib import Path

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import locked
from logodata.models.adapter_fit import check_adapter_fits
from logodata.models.adapters import ADAPTER_FILES
from logoeval.compare.compare import Row, measured_rows, read_runs
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import Curve, CurvePoint, CurveValue, Results, TaskResult, continue_results, write_results
from logoeval.run import evaluate
from logoeval.session import Session, Weights
from logoeval.tasks.needles.heads import HEADS_FILE
from logoeval.tasks.needles.settings import NiahSettings

_NIAH = "niah"


def find_adapters(checkpoints: Path) -> dict[int, Path]:
    """Return the adapter of each ``step-N`` of a training run's ``checkpoints`` folder, by step.

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


def evaluate_checkpoints(recipe: EvalRecipe, task: str, checkpoints: Path, folder: Path) -> Results:
    """Measure a task of the recipe at every step of a training run's ``checkpoints``, and write ``folder/step-N/`` and
    the curve in ``folder/results.json``.

    Raises:
        UserError: see :func:`find_adapters`, :func:`logoeval.run.evaluate` and
            :func:`logoeval.compare.compare.read_runs`; or an adapter does not fit the model, the recipe names an
            adapter or another engine than transformers, or the folder holds the curve of another task.
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
        other = continue_results(folder).curve
        if other is not None and other.task != task:
            raise UserError(f"holds a curve of {other.task}", where=str(folder), mend="give the other task another -o")
        weights = Weights()
        found: dict[int, TaskResult] = {}
        for step, adapter in ((0, None), *adapters.items()):
            note(f"step {step}" if step else "base model")
            here = at_adapter(recipe, adapter, folder / "step-0" / HEADS_FILE)
            results = evaluate(here, [task], folder / f"step-{step}", session=Session(here, weights))
            found[step] = results.tasks[task]
        # Steps that were measured before may be of another engine or tokenizer.
        read_runs({f"step {step}": folder / f"step-{step}" for step in found}, [task])
        whole = continue_results(folder).model_copy(update={"curve": _curve(task, found, checkpoints)})
        write_results(folder, whole)
        return whole


def at_adapter(recipe: EvalRecipe, adapter: Path | None, base_heads: Path) -> EvalRecipe:
    """Return the recipe with an adapter (None: without), and with the base model's heads unless others are given."""
    niah = recipe.section(_NIAH)
    assert niah is None or isinstance(niah, NiahSettings)
    if adapter is not None and niah is not None and niah.retrieval is not None and niah.retrieval.heads is None:
        retrieval = niah.retrieval.model_copy(update={"heads": base_heads})
        niah = niah.model_copy(update={"retrieval": retrieval})
    return recipe.model_copy(update={"adapter": adapter, _NIAH: niah})


def _curve(task: str, found: dict[int, TaskResult], checkpoints: Path) -> Curve:
    """Means over all samples of each step, and their paired differences from the base model, which is step 0."""
    base = found[0]
    whole = [metric.model_copy(update={"slice_by": [], "also_by": []}) for metric in base.metrics]
    rows = list(measured_rows(task, whole, [base.samples, *(result.samples for result in found.values())]))
    points = [
        CurvePoint(
            step=step,
            adapter_fingerprint=result.provenance.adapter_fingerprint,
            values=[_value(row, number) for row in rows],
        )
        for number, (step, result) in enumerate(found.items())
    ]
    # The settings of the steps: the base model's heads are its own, theirs are given, and they are the same.
    return Curve(task=task, checkpoints=str(checkpoints), settings=base.settings, metrics=base.metrics, points=points)


def _value(row: Row, number: int) -> CurveValue:
    value, change = row.values[number + 1], row.differences[number].change
    return CurveValue(
        metric=row.metric.key,
        value=value.value,
        low=value.low,
        high=value.high,
        change=change.value,
        change_low=change.low,
        change_high=change.high,
        num_samples=row.num_samples,
    )
