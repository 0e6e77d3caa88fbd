"""A build from beginning to end: documents, chunks, scores, contexts, responses, judge, data set.

Responses (:mod:`logodata.engines.response_log`) and the outcomes of questions (``work/outcomes.jsonl``) are on disk at
once. A killed build prepares the undecided questions again, finds its responses, and generates the rest. It ends in
the same data set as a build that was never killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from logodata import __version__
from logodata.build.forecast import warn_of_losses
from logodata.build.inputs import check_inputs
from logodata.build.pipeline import Asked, Pipeline, decide_here
from logodata.build.preparing import Pool, QuestionPreparer
from logodata.build.ray_driver import RayOptions, decide_on_ray
from logodata.build.shards import BuildShard, shard_record
from logodata.common.append_log import AppendLog
from logodata.common.console import note, progress
from logodata.common.files import bind_settings, locked, read_if_whole, write_json
from logodata.common.recipes.reading import as_today
from logodata.contract import SCHEMA_VERSION, Manifest, QuestionOutcome, SourceFile, Stats
from logodata.dataset.files import SHARD_FILE, read_stats, write_data_set
from logodata.engines.settings import asked_fingerprint
from logodata.recipe.settings import BuildRecipe
from logodata.sources import Source, check_outside, read_source, source_fingerprint

_OUTCOMES = Path("work") / "outcomes.jsonl"


def build(
    recipe: BuildRecipe, output: Path, shard: BuildShard | None = None, cluster: RayOptions | None = None
) -> Stats:
    """Make a data set in the folder ``output``. Continue a build that was interrupted; leave one that is finished.

    Args:
        shard: The shard to build, for ``logodata merge``. A shard may keep no sample. By default everything is built.
        cluster: The Ray cluster to run on; by default the build runs in this process.

    Raises:
        UserError: The source has a fault, ``output`` holds a build with other settings, or no sample was kept.
    """
    check_outside(recipe.source, output)
    check_inputs(recipe, recipe.source, output)
    source_file = SourceFile(path=recipe.source.path, sha256=source_fingerprint(recipe.source))
    pipeline = Pipeline(
        recipe, asked_fingerprint(recipe.engine, recipe.model, recipe.adapter), output / "work" / "responses.jsonl"
    )
    settings = {
        "recipe": recipe.binding(),
        "source_fingerprint": source_file.sha256,
        **pipeline.identity.to_json(),
        **({"shard": str(shard)} if shard else {}),
    }
    with locked(output):
        (output / "work").mkdir(exist_ok=True)
        finished = read_if_whole(output / "manifest.json") is not None
        # A source with a fault does not bind the folder, so that it may be built there once it is mended.
        source = None if finished else read_source(recipe.source, needs_references=recipe.needs_references)
        # Responses alone bind nothing, because each is filed under the settings that it depends on.
        started = finished or (output / _OUTCOMES).exists()
        bind_settings(output, "work/settings.json", settings, started=started, as_today=_as_today)
        if source is None:
            note(f"{output} is finished already")
            return read_stats(output)
        return _build(recipe, pipeline, source, source_file, output, shard, cluster)


def _as_today(settings: dict[str, Any]) -> dict[str, Any]:
    recipe = as_today(BuildRecipe, settings.get("recipe"))
    return settings if recipe is None else {**settings, "recipe": recipe.binding()}


def _build(
    recipe: BuildRecipe,
    pipeline: Pipeline,
    source: Source,
    source_file: SourceFile,
    output: Path,
    shard: BuildShard | None,
    cluster: RayOptions | None,
) -> Stats:
    identity = pipeline.identity
    outcomes = AppendLog(output / _OUTCOMES)
    engines = {key: AppendLog(output / "work" / f"{key}s.jsonl", key="name") for key in ("engine", "judge_engine")}
    total = source.documents.num_questions
    if shard is not None:
        owned = (document for pool in _pools(pipeline.preparer, source, shard) for document in pool.documents)
        total = sum(len(document.questions) for document in owned)
    order: list[str] = []
    num_kept = sum("sample" in outcome for outcome in outcomes.values())

    def undecided() -> Iterator[Asked]:
        for pool in _pools(pipeline.preparer, source, shard):
            asked = [question.id for document in pool.documents for question in document.questions]
            order.extend(asked)
            if ids := frozenset(question_id for question_id in asked if question_id not in outcomes):
                yield pool, ids

    # With a cluster, this machine may have no room for the evaluator's model.
    if not outcomes and (cluster is None or recipe.evaluator.name in ("entity", "lexical")):
        warn_of_losses(recipe, pipeline.preparer, source.documents, pipeline.evaluator)
    with progress("build", total, len(outcomes)) as tracker:
        if cluster is None:
            deciding = decide_here(pipeline, undecided(), recipe.generation.group_size, tracker)
        else:
            left = total - len(outcomes)
            deciding = decide_on_ray(recipe, identity.model_fingerprint, undecided(), left, cluster, tracker)
        with closing(deciding) as results:
            for decided, names in results:
                for key, name in names.items():
                    engines[key].append({"name": name})
                outcomes.append(*(outcome.to_json() for outcome in decided))
                num_kept += sum(outcome.sample is not None for outcome in decided)
                tracker.advance(len(decided), kept=num_kept)

    pipeline.note_usage()
    rejected = [row for row in source.rejected if shard is None or shard.owns(row.doc_id or row.id)]
    if shard is not None:
        write_json(output / SHARD_FILE, shard_record(shard, source, [*(row.id for row in rejected), *order]).to_json())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        logo_align=__version__,
        model=recipe.model,
        **dict(identity),
        engine=", ".join(engines["engine"]) or "none: nothing was generated",
        judge_engine=(", ".join(engines["judge_engine"]) or "none: nothing was asked") if recipe.judge.asked else None,
        source=source_file.model_copy(update={"lost": dict(source.lost) or None}),
        recipe=recipe.model_dump(mode="json"),
        # The text, because the file is found from the folder of the build command only.
        chat_template=pipeline.preparer.tokenizer.chat_template if recipe.has_own_template else None,
        samples=0,
    )

    def all_outcomes() -> Iterator[QuestionOutcome]:
        for row in rejected:
            yield QuestionOutcome(id=row.id, decisions=[], rejected=row)
        for question_id in order:
            yield QuestionOutcome.from_json(
                outcomes[question_id],
                where=f"{outcomes.path}: question {question_id}",
                mend="delete this file and run the same command again: responses are kept",
            )

    return write_data_set(output, all_outcomes(), manifest, recipe, may_be_empty=shard is not None)


def _pools(preparer: QuestionPreparer, source: Source, shard: BuildShard | None) -> Iterator[Pool]:
    # The first document decides who owns a pool: documents are joined as they are without shards.
    for place, pool in enumerate(preparer.pools(source.documents)):
        if shard is None or shard.owns(pool.documents[0].doc_id, place):
            yield pool
