"""The pipeline: documents, chunks, scores, contexts, responses, judge, data set.

Planning and judging are pure; only generation is slow, and every response is on disk as soon as it is there
(:mod:`logodata.responses`). A build that was killed therefore plans again, finds what it has, generates the rest, and
ends in the same data set as one that was not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata import __version__
from logodata.candidates import Candidate, Fault, Planner
from logodata.common.console import note, progress
from logodata.common.errors import UserError
from logodata.common.run_dir import bind_settings, locked, write_atomic, write_json
from logodata.contract import SCHEMA_VERSION, ContextChunk, PreferenceSample, Response, ResponseOrigin, write_samples
from logodata.engines import Engine, GenerationResult
from logodata.engines.settings import open_engine
from logodata.evaluators import open_evaluator
from logodata.judge import JudgedText, preferred_fault, rejected_fault, token_f1, word_share
from logodata.models import load_tokenizer, model_fingerprint, model_window, tokenizer_fingerprint
from logodata.prompts import decode_text, encode_text
from logodata.recipe import BuildRecipe
from logodata.report import dataset_card, describe, statistics
from logodata.responses import ResponseLog
from logodata.sources import read_source, source_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Outcome:
    """Samples kept, and rows of ``rejected.jsonl``."""

    samples: list[PreferenceSample] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


def build(recipe: BuildRecipe, output: Path) -> dict[str, Any]:
    """Make a data set in ``output``; continue one that was interrupted; do nothing to one that is finished.

    Returns:
        the statistics, as in ``stats.json``.

    Raises:
        UserError: the source is at fault, ``output`` holds a build with other settings, or no sample was kept.
    """
    settings = {
        "recipe": recipe.model_dump(mode="json", exclude={"engine"}),
        "source_fingerprint": source_fingerprint(recipe.source.path),
        "model_fingerprint": model_fingerprint(recipe.model),
    }
    with locked(output):
        (output / "work").mkdir(exist_ok=True)
        bind_settings(output, "work/settings.json", settings)
        if (output / "manifest.json").exists():
            note(f"{output} is finished already")
            stats: dict[str, Any] = json.loads((output / "stats.json").read_text(encoding="utf-8"))
            return stats
        return _build(recipe, settings, output)


def _build(recipe: BuildRecipe, settings: dict[str, Any], output: Path) -> dict[str, Any]:
    source = read_source(recipe.source)
    tokenizer = load_tokenizer(recipe.model, recipe.chat_template)
    planner = Planner(recipe, tokenizer, model_window(recipe.model))
    evaluator = open_evaluator(recipe.evaluator)
    log = ResponseLog(output / "work" / "responses.jsonl", settings["model_fingerprint"], recipe.generation.cache)
    outcome = Outcome(rejected=[{**fault, "stage": "source"} for fault in source.faults])
    engine: Engine | None = None

    planned = (plan for pool in planner.pools(source.documents) for plan in planner.candidates(pool, evaluator))
    total = sum(len(document.questions) for document in source.documents)
    with progress("build", total) as tracker:
        while group := list(islice(planned, recipe.generation.group_size)):
            candidates = [plan for plan in group if isinstance(plan, Candidate)]
            missing = [request for c in candidates for request in c.requests if log.get(request) is None]
            if missing and engine is None:
                engine = open_engine(recipe.engine, recipe.model)
            left = Counter(request.id.rsplit("/", 1)[0] for request in missing)
            tracker.advance(len(group) - len(left))
            requests = {request.id: request for request in missing}
            for result in engine.generate(missing) if engine else ():
                log.add(requests[result.id], result)
                question_id = result.id.rsplit("/", 1)[0]
                left[question_id] -= 1
                if not left[question_id]:
                    tracker.advance()
            for plan in group:
                _conclude(plan, log, recipe, tokenizer, planner.stop_ids[0], outcome)

    stats = statistics(outcome.samples, outcome.rejected)
    _write(outcome, stats, recipe, settings, tokenizer, planner, engine, output)
    if not outcome.samples:
        raise UserError(
            f"no pair was kept: {describe(stats)}",
            where=str(output / "rejected.jsonl"),
            mend="look at the reasons there; see 'No pair was kept' in the guide",
        )
    return stats


def _conclude(
    plan: Candidate | Fault,
    log: ResponseLog,
    recipe: BuildRecipe,
    tokenizer: PreTrainedTokenizerBase,
    turn_end: int,
    outcome: Outcome,
) -> None:
    """Judge one question: a sample, or a row of ``rejected.jsonl`` with the reason and what was generated."""
    row: dict[str, Any] = {
        "id": plan.question.id,
        "doc_id": plan.document.doc_id,
        "where": plan.document.where,
        "question": plan.question.question,
    }
    if isinstance(plan, Fault):
        outcome.rejected.append({**row, "reason": plan.reason, "detail": plan.detail, "stage": "contexts"})
        return

    def response(strategy: str, result: GenerationResult, origin: ResponseOrigin) -> Response:
        ended = result.finish_reason == "stop"
        text = decode_text(tokenizer, result.token_ids)
        return Response(
            strategy=strategy,
            text=text,
            token_ids=[*result.token_ids, turn_end] if ended else list(result.token_ids),
            ended=ended,
            word_share=word_share(text, answers),
            token_f1=token_f1(text, answers),
            origin=origin,
        )

    answers = plan.question.answers
    generation = recipe.generation
    preferred = [response(generation.preferred, *_logged(log, request)) for request in plan.preferred]
    if generation.preferred == "reference":
        reference = GenerationResult(plan.question.id, tuple(encode_text(tokenizer, answers[0])), "stop")
        preferred = [response("reference", reference, "live")]
    rejected = [response(strategy, *_logged(log, request)) for strategy, request in plan.rejected.items()]

    faults = [
        preferred_fault(JudgedText(r.text, r.ended), answers, recipe.judge, guided=generation.preferred == "guided")
        for r in preferred
    ]
    chosen = next((r for r, fault in zip(preferred, faults, strict=True) if fault is None), None)
    reason = faults[0] if chosen is None else None
    if chosen is not None:
        judged = JudgedText(chosen.text, chosen.ended)
        reason = next(
            filter(
                None, (rejected_fault(JudgedText(r.text, r.ended), judged, answers, recipe.judge) for r in rejected)
            ),
            None,
        )
    if reason is not None or chosen is None:
        texts = {"answers": answers, "preferred": [r.text for r in preferred], "rejected": [r.text for r in rejected]}
        outcome.rejected.append({**row, "reason": reason, "stage": "judge", **texts})
        return
    outcome.samples.append(_sample(plan, chosen, rejected))


def _logged(log: ResponseLog, request: Any) -> tuple[GenerationResult, ResponseOrigin]:
    found = log.get(request)
    if found is None:
        raise RuntimeError(f"the engine gave no response to request {request.id}")
    return found


def _sample(plan: Candidate, chosen: Response, rejected: Sequence[Response]) -> PreferenceSample:
    pool, critical = plan.pool, set(plan.contexts.critical)

    def chunks() -> Iterator[ContextChunk]:
        for index, (start, end) in zip(plan.contexts.training, plan.prompt.chunk_spans, strict=True):
            document, chunk = pool.chunks[index]
            yield ContextChunk(
                doc_id=document.doc_id,
                index=chunk.index,
                start=chunk.start,
                end=chunk.end,
                token_start=start,
                token_end=end,
                score=float(plan.scores[index]),
                critical=index in critical,
                text=pool.text(index),
            )

    return PreferenceSample(
        id=plan.question.id,
        doc_id=plan.document.doc_id,
        question_id=plan.question.id,
        kind=plan.question.kind,
        question=plan.question.question,
        answers=plan.question.answers,
        prompt_ids=list(plan.prompt.ids),
        chunks=list(chunks()),
        chosen=chosen,
        rejected=list(rejected),
        answer_in_critical=word_share(" ".join(pool.text(i) for i in plan.contexts.critical), plan.question.answers)
        == 1.0,
    )


def _write(
    outcome: Outcome,
    stats: dict[str, Any],
    recipe: BuildRecipe,
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    planner: Planner,
    engine: Engine | None,
    output: Path,
) -> None:
    """All files of the data set; ``manifest.json`` last, since it says that the build is finished."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "logo_align": __version__,
        "model": recipe.model,
        "model_fingerprint": settings["model_fingerprint"],
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "prompt_fingerprints": {
            "answer": planner.answer_format.fingerprint,
            "guided": [form.fingerprint for form in planner.guided_formats],
        },
        "engine": engine.name if engine else "none: every response was there already",
        "source": {"path": recipe.source.path, "sha256": settings["source_fingerprint"]},
        "recipe": recipe.model_dump(mode="json"),
        "samples": len(outcome.samples),
    }
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in outcome.rejected)
    write_atomic(output / "rejected.jsonl", lines)
    write_json(output / "stats.json", stats)
    if not outcome.samples:
        return
    (output / "data").mkdir(exist_ok=True)
    write_samples(output / "data" / "train-00000-of-00001.parquet", outcome.samples)
    write_atomic(output / "README.md", dataset_card(manifest, stats))
    write_json(output / "manifest.json", manifest)
