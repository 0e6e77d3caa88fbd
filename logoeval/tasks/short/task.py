"""Run the harness: one call for each number of examples, each kept when it is finished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.engines.settings import EngineSettings
from logodata.models.loading import resolve_model
from logodata.models.vocabulary import vocabulary_size
from logoeval.records import Outcome, TaskResult
from logoeval.session import Session
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import reasoning_note
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.short.harness import folder_fingerprint, harness_version, load, open_manager, quiet
from logoeval.tasks.short.outcome import (
    OWN_LONGBENCH_NOTE,
    HarnessCall,
    collect,
    is_own_longbench,
    is_partial,
    metric,
    notes,
    sample_rows,
)
from logoeval.tasks.short.settings import ShortSettings, ShortTask
from logoeval.tasks.short.units import Unit, units

if TYPE_CHECKING:
    from logoeval.tasks.short.recording import Recorded


def describe(settings: ShortSettings, engine: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common; own tasks by their contents, wherever they lie.

    Raises:
        UserError: the harness does not run on this engine, or is not installed.
    """
    if engine.kind not in ("transformers", "vllm"):
        raise UserError(
            f"short: lm-evaluation-harness runs on transformers and vllm here, and engine.kind is {engine.kind}",
            mend="set engine.kind, and another -o than that of the other tasks; or leave short out",
        )
    return {
        **settings.model_dump(mode="json", exclude={"batch_size", "include_path"}),
        "include_fingerprint": folder_fingerprint(settings.include_path),
        "max_model_len": engine.max_model_len,
        "lm_eval": harness_version(),
        **({"engine": engine.kind} if engine.kind == "vllm" else {}),
    }


def run(settings: ShortSettings, session: Session, predictions: Path) -> Outcome:
    """Measure all tasks; a sample is a document. ``short.jsonl`` keeps finished calls, ``short_answers.jsonl`` every
    answer of the model."""
    finished = RecordFile(predictions / "short.jsonl", HarnessCall)
    calls: dict[str, list[ShortTask]] = {}
    for task in settings.tasks:
        calls.setdefault("own shots" if task.shots is None else f"{task.shots}-shot", []).append(task)
    waiting = {call: tasks for call, tasks in calls.items() if call not in finished}
    if waiting:
        with quiet():
            _measure(waiting, settings, session, finished, predictions / "short_answers.jsonl")
    done = [finished[call] for call in calls]
    order = [task.name for task in settings.tasks]
    records = sorted((record for call in done for record in call.units), key=lambda record: order.index(record.asked))
    found = list(notes(records, limit=settings.limit))
    found += [
        f"{call.id}: {call.num_cut:,} of {call.num_requests:,} prompts were longer than the "
        f"window of {call.window:,} tokens and lost their beginning"
        for call in done
        if call.num_cut
    ]
    found += _how_asked(settings, session, done)
    return Outcome(
        [metric(record, limit=settings.limit) for record in records],
        sample_rows(records),
        found,
        {} if settings.include_path is None else {"include_path": str(settings.include_path.resolve())},
        {"versions": {record.name: record.version for record in records}},
    )


def _how_asked(settings: ShortSettings, session: Session, done: Sequence[HarnessCall]) -> Iterator[str]:
    if not settings.apply_chat_template:
        without = ": texts to continue, for which the model gets no tokens to reason"
        yield f"prompts without chat template{without if session.reasoning.budget else ''}"
        return
    yield "prompts written as chats"
    if session.reasoning.budget:
        counts = [(call.num_requests, call.num_reasoned, call.num_reasoning_cut) for call in done]
        yield reasoning_note(session.reasoning, *map(sum, zip(*counts, strict=True)))
        yield "lm-eval made the prompts, our engine replied, greedily, and lm-eval scored what follows the reasoning"


def _measure(
    waiting: dict[str, list[ShortTask]],
    settings: ShortSettings,
    session: Session,
    finished: RecordFile[HarnessCall],
    answers: Path,
) -> None:
    """Read all data and check all that can be checked, then load the model, then call the harness."""
    from lm_eval import simple_evaluate

    manager = open_manager(settings, resolve_model(session.settings.model))
    plans = {call: _plan(manager, tasks, settings) for call, tasks in waiting.items()}
    planned = [unit for _, found in plans.values() for unit in found]
    _check_disjoint(planned)
    if may_reason(settings) and session.reasoning.budget:
        _check_reasoning(item for objects, _ in plans.values() for item in objects)
    if any(is_own_longbench(task) for unit in planned for task in unit.parts):
        note(f"short: {OWN_LONGBENCH_NOTE}")
    model = _open_model(settings, session, answers)
    for call, (objects, found) in plans.items():
        model.count_from_zero(f"short: {call}")
        results = simple_evaluate(
            model=model,
            tasks=objects,
            num_fewshot=waiting[call][0].shots,
            limit=settings.limit,
            bootstrap_iters=2,  # means have a formula; what is bootstrapped here is not reported
            apply_chat_template=settings.apply_chat_template,
            task_manager=manager,
        )
        finished.append(
            HarnessCall(
                id=call,
                units=[record for unit in found for record in collect(unit, results)],
                num_requests=model.num_requests,
                num_cut=model.num_cut,
                window=model.max_length,
                num_reasoned=model.num_reasoned,
                num_reasoning_cut=model.num_reasoning_cut,
            )
        )
        note(f"short: {call} done ({', '.join(task.name for task in waiting[call])})")


def _plan(manager: Any, tasks: Sequence[ShortTask], settings: ShortSettings) -> tuple[list[Any], list[Unit]]:
    """The harness's objects of one call, and what will be reported of them."""
    loaded = load(manager, [task.name for task in tasks])
    found = [unit for task in tasks for item in loaded[task.name] for unit in units(task, item, settings)]
    return [item for task in tasks for item in loaded[task.name]], found


def _check_disjoint(found: Sequence[Unit]) -> None:
    asked: dict[str, str] = {}
    for unit in found:
        for task in unit.parts:
            if task in asked:
                fault = f"{task} is part of {asked[task]!r} and of {unit.asked.name!r}"
                raise UserError(fault, where="short.tasks", mend="drop one of them")
            asked[task] = unit.asked.name


def may_reason(settings: ShortSettings) -> bool:
    """Return whether the model may reason: without a chat template prompts are texts to continue."""
    return settings.apply_chat_template


def _check_reasoning(items: Iterable[Any]) -> None:
    """Refuse tasks of the harness whose answers cannot follow a reasoning."""
    mend = "leave it out, or short.apply_chat_template, or set thinking_tokens=0"
    for task in (
        task for item in items for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item])
    ):
        if task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                "compares log-likelihoods of answers, and a model that reasons first would write none of them there",
                where=task.task_name,
                mend=mend,
            )
        if (task.get_config("generation_kwargs") or {}).get("do_sample"):
            raise UserError(
                "samples its responses, and those of a model that reasons are greedy here",
                where=task.task_name,
                mend=mend,
            )


def _open_model(settings: ShortSettings, session: Session, answers: Path) -> Recorded:
    from logoeval.tasks.short.recording import HarnessAnswer

    recipe = session.settings
    # A tokenizer of its own: the harness may change it.
    tokenizer = recipe.load_tokenizer(needs_template=settings.apply_chat_template)
    window = session.engine_window
    kept = RecordFile(answers, HarnessAnswer)
    reasons = session if may_reason(settings) and session.reasoning.budget else None
    if recipe.engine.kind == "vllm":
        engine = session.engine  # first: it says what is not installed
        from logoeval.tasks.short.vllm_model import VllmHarnessModel

        return VllmHarnessModel(
            engine,
            resolve_model(recipe.model),
            tokenizer,
            vocabulary=vocabulary_size(session.config),
            window=window,
            truncate=settings.truncate,
            answers=kept,
            reasons=reasons,
        )
    from logoeval.tasks.short.model import HarnessModel

    model = session.model
    # The harness ties the head to the embeddings again, which a merged adapter may have parted.
    model.tie_weights = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        return HarnessModel(
            model,
            tokenizer,
            window=window,
            batch_size=settings.batch_size,
            truncate=settings.truncate,
            answers=kept,
            reasons=reasons,
        )
    finally:
        del model.tie_weights


def limits(result: TaskResult) -> Iterator[str]:
    """Say whether ``short.limit`` left samples out."""
    if any(is_partial(metric) for metric in result.metrics):
        yield f"the first {result.settings['limit']} samples of each of the harness's tasks only (short.limit)"


EVALUATOR = Evaluator(
    settings=ShortSettings,
    version=1,
    describe=describe,
    run=run,
    generates=False,
    reasons=may_reason,
    inputs=lambda settings: [("the tasks", settings.include_path)] if settings.include_path else [],
    limits=limits,
)
