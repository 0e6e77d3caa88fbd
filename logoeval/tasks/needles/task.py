"""The task: a grid of samples, answered, scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from operator import eq
from pathlib import Path

from logodata.engines import GenerationResult, Sampling
from logodata.engines.settings import EngineSettings
from logoeval.records import Outcome, SampleRow
from logoeval.session import Session
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import NO_PREFIX_NOTE, Completion, PromptItem, complete, with_reasoning
from logoeval.tasks.needles.haystacks import BUILT_IN, haystacks
from logoeval.tasks.needles.heads import Heads
from logoeval.tasks.needles.placement import NiahSample, SampleBuilder
from logoeval.tasks.needles.saw_said import CALIBRATION_SEED_OFFSET, TraceItem, check, extend
from logoeval.tasks.needles.scores import NiahFacts, depth_scores, metrics, score_response
from logoeval.tasks.needles.settings import NiahSettings, NiahVariant
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.texts import text_files


def describe(settings: NiahSettings, _: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common; folders by name and contents, wherever they lie."""
    texts = {haystack.name: haystack.fingerprint for haystack in haystacks(settings)}
    dump = settings.model_dump(mode="json", exclude={"haystacks": True, "retrieval": {"heads"}})
    described = {**dump, "haystacks": texts}
    if settings.retrieval is not None:
        # None stands for the model's own heads, which the work will find.
        given = settings.retrieval.heads
        described["retrieval_heads"] = None if given is None else Heads.read(given).fingerprint
    return described


def build_samples(
    settings: NiahSettings, session: Session, *, seed_offset: int = 0
) -> list[tuple[NiahSample, PromptItem]]:
    """Return all samples of the grid, with what an engine is asked. ``seed_offset`` is added to the recipe's seed. A
    model that reasons first is asked without the answer prefix, whose tokens its answer may have more.

    Raises:
        UserError: a length leaves the model's window, or has no room for the needles.
    """
    longest, new_tokens = max(settings.lengths), settings.max_new_tokens
    what = f"niah.lengths: the longest, {longest} tokens, with niah.max_new_tokens={new_tokens}"
    session.check_room(longest + new_tokens, what)
    samples = []
    for haystack in haystacks(settings):
        builder = SampleBuilder(
            session.tokenizer,
            haystack,
            seed=session.settings.seed + seed_offset,
            num_values=settings.num_values,
            variant=settings.variant,
        )
        for length in settings.lengths:
            for depth in settings.depths or (None,):
                for index in range(settings.num_samples):
                    sample = builder.build(length, index, depth)
                    unsent = sample.prefix_tokens if session.reasoning.budget else 0
                    prompt_ids = sample.prompt_ids[: len(sample.prompt_ids) - unsent]
                    sampling = Sampling(new_tokens + unsent, session.stop_ids)
                    samples.append((sample, PromptItem(sample.id, prompt_ids, sampling, builder.template)))
    return samples


class NiahAnswer(Completion):
    """The response to a prompt with needles, with its scores: a line of ``niah.jsonl``."""

    haystack: str
    length: int
    key: str
    values: tuple[str, ...]
    depths: tuple[int, ...]
    found: list[bool]
    response_ids: tuple[int, ...]
    recall: float
    precision: float
    distinct_values: float


def run(settings: NiahSettings, session: Session, predictions: Path) -> Outcome:
    """Answer all samples; a row is a sample, in the order of the grid."""
    if settings.retrieval is not None:
        check(session)
    built = build_samples(settings, session)
    samples = {sample.id: sample for sample, _ in built}

    def record(made: Completion, result: GenerationResult) -> NiahAnswer:
        sample = samples[made.id]
        scores = score_response(made.response, sample.values)
        return NiahAnswer(
            **dict(made),
            haystack=sample.haystack,
            length=sample.length,
            key=sample.key,
            values=sample.values,
            depths=sample.depths,
            found=[value in made.response for value in sample.values],
            response_ids=result.token_ids,
            recall=scores["recall"],
            precision=scores["precision"],
            distinct_values=scores["distinct_values"],
        )

    answers = complete(
        session,
        [item for _, item in built],
        RecordFile(predictions / "niah.jsonl", NiahAnswer),
        record=record,
        label="niah",
    )
    rows = [_row(answer, samples[answer.id].cluster, settings.variant) for answer in answers]
    told = [NO_PREFIX_NOTE] if session.reasoning.budget else []
    outcome = Outcome(metrics(settings.variant), rows, [*told, *_notes(built)])
    outcome = with_reasoning(outcome, session, answers)
    if settings.retrieval is None:
        return outcome
    fewer = settings.model_copy(update={"num_samples": settings.retrieval.num_calibration})
    calibration = build_samples(fewer, session, seed_offset=CALIBRATION_SEED_OFFSET)
    return extend(
        outcome,
        settings.retrieval,
        session,
        predictions,
        items=[
            TraceItem(sample.id, sample.prompt_ids, sample.values, answer.response_ids)
            for (sample, _), answer in zip(built, answers, strict=True)
        ],
        calibration=[
            TraceItem(f"calibration-{sample.id}", sample.prompt_ids, sample.values) for sample, _ in calibration
        ],
    )


def shared_prefix_tokens(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many prompt tokens need not be computed twice: those that a prompt shares, from its beginning on, with
    the one before it in the order of their tokens. That order walks the prefix tree, so no other order shares more, and
    a cache needs to hold one prompt only."""
    return sum(sum(takewhile(bool, map(eq, first, second))) for first, second in pairwise(sorted(prompts)))


def _row(answer: NiahAnswer, cluster: str, variant: NiahVariant) -> SampleRow:
    single = variant == "single"
    return SampleRow(
        id=answer.id,
        cluster=cluster,
        prompt_hash=answer.prompt_hash,
        scores={
            "recall": answer.recall,
            "precision": answer.precision,
            "distinct_values": answer.distinct_values,
            **({} if single else depth_scores(answer.depths, answer.found)),
        },
        facts=NiahFacts(
            haystack=answer.haystack,
            length=answer.length,
            depths=list(answer.depths),
            found=answer.found,
            depth=answer.depths[0] if single else None,
        ).to_json(),
    )


def _notes(built: Sequence[tuple[NiahSample, PromptItem]]) -> Iterator[str]:
    samples = [sample for sample, _ in built]
    for name, length in dict.fromkeys((sample.haystack, sample.length) for sample in samples if sample.repeats):
        yield f"the haystack {name!r} is shorter than {length} tokens and was repeated at that length"
    shortest: dict[tuple[str, int], int] = {}
    for sample in samples:
        cell = sample.haystack, sample.length
        shortest[cell] = min(len(sample.prompt_ids), shortest.get(cell, sample.length))
    for (name, length), num_tokens in shortest.items():
        if num_tokens < 0.9 * length:
            yield f"prompts of {length} tokens have as few as {num_tokens} in {name!r}: its sentences are long"
    prompts = [item.prompt_ids for _, item in built]
    total, shared = sum(map(len, prompts)), shared_prefix_tokens(prompts)
    yield (
        f"{shared:,} of {total:,} prompt tokens ({100 * shared / total:.0f} %) lie in a beginning shared with another "
        "prompt, which a prefix cache computes once"
    )


def inputs(settings: NiahSettings) -> Iterator[tuple[str, Path]]:
    """Yield the paths of texts of one's own, which must be there, and of a file of heads."""
    for name in settings.haystacks:
        if name not in BUILT_IN:
            text_files(Path(name))
            yield "a text", Path(name)
    if settings.retrieval is not None and settings.retrieval.heads is not None:
        yield "the heads", settings.retrieval.heads


EVALUATOR = Evaluator(settings=NiahSettings, version=3, describe=describe, run=run, inputs=inputs)
