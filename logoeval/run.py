"""One evaluation of one model: its tasks in order, each skipped if the folder holds it already."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from logodata import __version__
from logodata.common.console import note
from logodata.common.files import bind_settings, locked, write_json
from logodata.common.recipes.reading import RecipeModel
from logodata.common.user_files import visible_files
from logodata.engines.settings import EngineSettings, asked_fingerprint, asked_model, weights_dtype
from logodata.models.adapters import adapter_fingerprint, trained_on
from logodata.models.facts import tokenizer_fingerprint
from logodata.models.loading import read_template, resolve_model
from logoeval.intervals import summarise
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import (
    PREDICTIONS_DIR,
    Provenance,
    Results,
    TaskResult,
    continue_results,
    files_fingerprint,
    has_predictions,
    write_results,
)
from logoeval.session import Session
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.table import find_task
from logoeval.tasks.texts import text_fingerprint


def evaluate(
    recipe: EvalRecipe,
    tasks: Sequence[str],
    folder: Path,
    *,
    session: Session | None = None,
    notes: Sequence[str] = (),
) -> Results:
    """Run ``tasks``, which must have settings in ``recipe``, and write ``folder/results.json`` and
    ``folder/predictions/``.

    A task that is finished under equal settings is not run again; one that was interrupted goes on from its
    predictions. ``session`` loads the model of ``recipe``; ``notes`` are put beside those of each task.

    Raises:
        UserError: the folder holds results of another model or of other settings, or a task's input is at fault.
    """
    # Before the folder is made: they say what is not installed.
    session = session or Session(recipe)
    settings_of = {task: _settings(session, recipe, find_task(task).evaluator, recipe.section(task)) for task in tasks}
    with locked(folder):
        results = continue_results(folder)
        left = [find_task(task).evaluator for task in tasks if task not in results.tasks]
        # What only scores opens no engine; all else does, the harness of ``short`` too.
        if any(it.scores for it in left) and any(it.generates or not it.scores for it in left):
            session.check_room_beside_vllm()
        predictions = folder / PREDICTIONS_DIR
        predictions.mkdir(exist_ok=True)
        measured: dict[str, Any] = {
            "model": asked_model(recipe.engine, recipe.model),
            "model_fingerprint": asked_fingerprint(recipe.engine, recipe.model),
            "adapter_fingerprint": adapter_fingerprint(recipe.adapter),
        }
        started = bool(results.tasks) or any(visible_files(predictions, (".jsonl",)))
        for result in results.tasks.values():
            _bind_again(predictions / "model.json", result.provenance.model_dump(), measured)
        bind_settings(predictions, "model.json", measured, started=started)
        notes = [*_adapter_notes(recipe), *notes]
        for task in tasks:
            evaluator, section = find_task(task).evaluator, recipe.section(task)
            settings = {**settings_of[task], "dtype": _dtype(recipe.engine, results.tasks.get(task))}
            started = task in results.tasks or has_predictions(predictions, task)
            if task in results.tasks:
                _bind_again(predictions / f"{task}.json", results.tasks[task].settings, settings)
            as_today = partial(_as_today, settings=settings, section=section)
            bind_settings(predictions, f"{task}.json", settings, started=started, as_today=as_today)
            if task in results.tasks:
                note(f"{task}: finished already")
                continue
            start = time.monotonic()
            outcome = evaluator.run(section, session, predictions)
            result = TaskResult(
                task=task,
                settings={**settings, **outcome.settings},
                notes=[*outcome.notes, *notes],
                sources=outcome.sources,
                provenance=Provenance(
                    **measured,
                    adapter=str(recipe.adapter) if recipe.adapter else None,
                    logo_align=__version__,
                    python=platform.python_version(),
                    torch=version("torch"),
                    transformers=version("transformers"),
                    engine=session.engine.name if evaluator.generates else None,
                    device=session.device,
                    tokenizer_fingerprint=tokenizer_fingerprint(session.bare_tokenizer),
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                    seconds=round(time.monotonic() - start, 1),
                ),
                metrics=outcome.metrics,
                summary=summarise(outcome.metrics, outcome.samples),
                samples=outcome.samples,
            )
            results = results.model_copy(update={"tasks": {**results.tasks, task: result}})
            write_results(folder, results)
        return results


def _bind_again(path: Path, found: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Write what a folder is bound to, if it is gone, by what its results say: predictions may be deleted for room."""
    if not path.exists():
        write_json(path, {field: found[field] for field in fields if field in found})


def _as_today(before: dict[str, Any], settings: Mapping[str, Any], section: Any) -> Mapping[str, Any]:
    """Return what a folder is bound to, its data known as they are today (:func:`data_fingerprint`)."""
    name = "data_fingerprint"
    if name in before and before[name] != settings.get(name) and before[name] == files_fingerprint(section.data):
        return {**before, name: settings.get(name)}
    return before


def _adapter_notes(recipe: EvalRecipe) -> list[str]:
    """Models of one family have equal shapes: what else tells that an adapter is measured on another one."""
    base = None if recipe.adapter is None else trained_on(recipe.adapter)
    if base is None or Path(base).name == Path(resolve_model(recipe.model)).name or base == recipe.model:
        return []
    return [f"the adapter was trained on {base}, and is measured on {recipe.model}"]


def _settings(
    session: Session, recipe: EvalRecipe, evaluator: Evaluator[Any], section: RecipeModel | None
) -> dict[str, object]:
    template = recipe.chat_template and text_fingerprint(read_template(recipe.chat_template))
    return {
        "task_version": evaluator.version,
        "seed": recipe.seed,
        "chat_template": template,
        **({"chat_template_args": recipe.chat_template_args} if recipe.chat_template_args else {}),
        **(_thinking(session) if evaluator.may_reason(section) else {}),
        **(_chat(session) if recipe.engine.kind == "chat" else {}),
        **evaluator.describe(section, recipe.engine),
    }


def _dtype(engine: EngineSettings, result: TaskResult | None) -> str:
    """Return the dtype of the weights; with ``auto`` that of the result that is there, else what suits this machine."""
    if engine.dtype == "auto" and result is not None:
        return str(result.settings["dtype"])
    return weights_dtype(engine)


def _chat(session: Session) -> dict[str, object]:
    """What a chat server is told, and whose tokens prompts and lengths are."""
    engine = session.settings.engine
    told = {"api": engine.api, "extra_body": engine.extra_body}
    return {"chat": {**told, "tokenizer_fingerprint": tokenizer_fingerprint(session.bare_tokenizer)}}


def _thinking(session: Session) -> dict[str, object]:
    """The budget and the end of the reasoning, given or by default, of a model that is expected to reason."""
    reasoning = session.reasoning
    return {"thinking": {"tokens": reasoning.budget, "end": reasoning.closing}} if reasoning.budget else {}
