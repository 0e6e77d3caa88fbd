"""The pipeline: documents, chunks, scores, contexts, responses, judge, data set.

Planning and judging are pure; only generation is slow, and every response is on disk as soon as it is there
(:mod:`logodata.responses`). A build that was killed therefore plans again, finds what it has, generates the rest, and
ends in the same data set as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from logodata import __version__
from logodata.candidates import Candidate, Fault, Planner, Pool
from logodata.common.console import note, progress
from logodata.common.errors import UserError
from logodata.common.run_dir import bind_settings, locked, read_json, write_atomic, write_json
from logodata.contract import SCHEMA_VERSION, ContextChunk, PreferenceSample, Response, write_samples
from logodata.evaluators import open_evaluator
from logodata.judge import Reason, word_share
from logodata.models import load_tokenizer, model_fingerprint, model_window, tokenizer_fingerprint
from logodata.parts import PART_FILE, Part, part_record
from logodata.recipe import BuildRecipe
from logodata.report import dataset_card, describe, statistics
from logodata.responses import ResponseLog, Responses
from logodata.sources import Source, read_source, source_fingerprint


@dataclass(slots=True)
class Outcome:
    """Samples kept, and rows of ``rejected.jsonl``."""

    samples: list[PreferenceSample] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def add(self, plan: Candidate | Fault, responses: Responses, chosen: Response | Reason | None) -> None:
        """One question: a sample, or a row with the reason and what was generated."""
        row: dict[str, Any] = {
            "id": plan.question.id,
            "doc_id": plan.document.doc_id,
            "where": plan.document.where,
            "question": plan.question.question,
        }
        if isinstance(plan, Fault):
            self.rejected.append({**row, "reason": plan.reason, "detail": plan.detail, "stage": "contexts"})
            return
        row["answers"] = plan.question.answers
        if not isinstance(chosen, Response):
            texts = [response.text for response in responses.preferred(plan)]
            self.rejected.append({**row, "reason": chosen, "stage": "judge", "preferred": texts})
            return
        rejected = responses.rejected(plan)
        reason = responses.fault_beside(chosen, rejected, plan)
        if reason is None:
            self.samples.append(_sample(plan, chosen, rejected))
            return
        texts = [response.text for response in rejected]
        self.rejected.append({**row, "reason": reason, "stage": "judge", "preferred": [chosen.text], "rejected": texts})


def build(recipe: BuildRecipe, output: Path, part: Part | None = None) -> dict[str, Any]:
    """Make a data set in ``output``; continue one that was interrupted; do nothing to one that is finished.

    Args:
        recipe: how.
        output: folder.
        part: build this part of it only, for ``logodata merge``; a part in which no sample was kept is no error.

    Returns:
        the statistics, as in ``stats.json``.

    Raises:
        UserError: the source is at fault, ``output`` holds a build with other settings, or no sample was kept.
    """
    settings = {
        "recipe": recipe.model_dump(mode="json", exclude={"engine"}),
        "source_fingerprint": source_fingerprint(recipe.source),
        "model_fingerprint": model_fingerprint(recipe.model),
        **({"shard": str(part)} if part else {}),
    }
    with locked(output):
        (output / "work").mkdir(exist_ok=True)
        finished = (output / "manifest.json").exists()
        # A source with a fault does not bind the folder: mended, it may be built there.
        source = None if finished else read_source(recipe.source)
        bind_settings(output, "work/settings.json", settings)
        if source is None:
            note(f"{output} is finished already")
            stats: dict[str, Any] = read_json(output / "stats.json")
            return stats
        return _build(recipe, source, settings, output, part)


def _build(
    recipe: BuildRecipe, source: Source, settings: dict[str, Any], output: Path, part: Part | None
) -> dict[str, Any]:
    tokenizer = load_tokenizer(recipe.model, recipe.chat_template)
    planner = Planner(recipe, tokenizer, model_window(recipe.model))
    evaluator = open_evaluator(recipe.evaluator)
    log = ResponseLog(output / "work" / "responses.jsonl", settings["model_fingerprint"], recipe.generation.cache)
    responses = Responses(recipe, log, tokenizer, planner.stop_ids[0])
    faults = [fault for fault in source.faults if part is None or part.owns(fault["doc_id"])]
    outcome = Outcome(rejected=[{**fault, "stage": "source"} for fault in faults])

    pools, total = _pools(planner, source, part)
    planned = (plan for pool in pools for plan in planner.candidates(pool, evaluator))
    with progress("build", total) as tracker:
        while group := list(islice(planned, recipe.generation.group_size)):
            candidates = [plan for plan in group if isinstance(plan, Candidate)]
            responses.generate([request for plan in candidates for request in plan.preferred], tracker)
            chosen = {plan.question.id: responses.choose(plan) for plan in candidates}
            # Dis-preferred responses only where there is something to prefer to them.
            worthwhile = [plan for plan in candidates if isinstance(chosen[plan.question.id], Response)]
            responses.generate([request for plan in worthwhile for request in plan.rejected.values()], tracker)
            for plan in group:
                outcome.add(plan, responses, chosen.get(plan.question.id))
            tracker.advance(len(group), kept=len(outcome.samples))

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
        "engine": responses.engine_name,
        "source": {"path": recipe.source.path, "sha256": settings["source_fingerprint"]},
        "recipe": recipe.model_dump(mode="json"),
        "samples": len(outcome.samples),
    }
    if part is None:
        return write_data_set(output, outcome.samples, outcome.rejected, manifest)
    ended = [sample.id for sample in outcome.samples] + [row["id"] for row in outcome.rejected]
    write_json(output / PART_FILE, part_record(part, source, ended))
    return write_data_set(output, outcome.samples, outcome.rejected, manifest, may_be_empty=True)


def _pools(planner: Planner, source: Source, part: Part | None) -> tuple[Iterable[Pool], int]:
    """The pools to build, and how many questions they hold. A part owns a pool by its first document, so that pools are
    those of the unsharded build also where documents are joined."""
    if part is None:
        return planner.pools(source.documents), source.documents.num_questions
    own = [pool for pool in planner.pools(source.documents) if part.owns(pool.documents[0].doc_id)]
    return own, sum(len(document.questions) for pool in own for document in pool.documents)


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


def write_data_set(
    output: Path,
    samples: Sequence[PreferenceSample],
    rejected: Sequence[dict[str, Any]],
    manifest: dict[str, Any],
    *,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """All files of a data set; ``manifest.json`` last, since it says that the build is finished.

    Returns:
        the statistics, as in ``stats.json``.

    Raises:
        UserError: no sample was kept, unless the set may be empty (a part of one may).
    """
    stats = statistics(samples, rejected, manifest["recipe"]["judge"]["right_at"])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
    write_atomic(output / "rejected.jsonl", lines)
    write_json(output / "stats.json", stats)
    if not samples and not may_be_empty:
        raise UserError(
            f"no pair was kept: {describe(stats)}",
            where=str(output / "rejected.jsonl"),
            mend="look at the reasons there; see 'No pair was kept' in the guide",
        )
    (output / "data").mkdir(exist_ok=True)
    write_samples(output / "data" / "train-00000-of-00001.parquet", samples)
    if samples:
        write_atomic(output / "README.md", dataset_card(manifest, stats))
    write_json(output / "manifest.json", manifest)
    return stats
