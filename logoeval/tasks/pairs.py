"""Held-out preference pairs: does the model lean to the preferred response, and what does it answer itself?

Log-probabilities come from the trainer's own functions over the shared-prefix row (:mod:`logotrain`), at natural
positions: the margin measured here is the one that is trained (paper Eq. 2), before beta and gamma.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.common.console import progress
from logodata.common.finite import check_responses
from logodata.contract import Manifest, PreferenceSample
from logodata.dataset.samples import check_pairs, iterate_samples, read_manifest
from logodata.engines.settings import EngineSettings
from logodata.models.vocabulary import check_ids, vocabulary_size
from logoeval.records import Metric, Outcome, SampleRow, sample_hash
from logoeval.session import Session, check_weights
from logoeval.tasks import qa
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import with_reasoning
from logoeval.tasks.record_file import Prediction, RecordFile, check_kept

if TYPE_CHECKING:
    from logotrain.loss.logprobs import LogprobModel


class PairsSettings(qa.HeldOutSettings):
    """Held-out preference pairs: their log-probabilities, and the model's own answer to the same prompt."""


class PairLogprobs(Prediction):
    """The mean log-probability per token in nats of each response of a pair: a line of ``pairs_logprobs.jsonl``."""

    chosen: float
    rejected: list[float]


_ASK = "these are questions to ask: logoeval qa"
_BUILD = "build the data set again with this model"

_MARGINS = [
    Metric(
        key="margin",
        label="Reward margin",
        explanation="Mean log-probability per token of the preferred response, minus the mean of the dis-preferred "
        "ones'; above 0 the model would rather say the preferred one. This is what the training raises.",
        kind="nats",
        better="higher",
    ),
    Metric.share(
        "prefers_chosen",
        "Pairs with a positive margin",
        "Share of held-out questions where the preferred response is likelier, token for token.",
    ),
    Metric(
        key="chosen",
        label="Log-probability, preferred",
        explanation="Mean log-probability per token of the preferred response, in nats; nearer 0 is likelier.",
        kind="nats",
        better="higher",
    ),
    Metric(
        key="rejected",
        label="Log-probability, dis-preferred",
        explanation="The same, averaged over the dis-preferred responses.",
        kind="nats",
    ),
]

METRICS = [*_MARGINS, *qa.metrics("Answer")]


def mean_logprobs(model: LogprobModel, sample: PreferenceSample, window: int) -> list[float]:
    """Return the mean log-probability per token in nats, r(y) in the paper, of the preferred response and then of each
    dis-preferred one, at natural positions. The model must be inside
    :func:`logotrain.attention.shared_prefix.use_shared_prefix`.

    Raises:
        UserError: the sample does not fit the window.
    """
    import torch

    from logotrain.loss.logprobs import split_logprobs
    from logotrain.recipe.settings import PositionSettings
    from logotrain.rows.collate import Collator

    row = Collator(PositionSettings(mode="natural"), window, seed=0)([(0, sample)]).to(model.causal_lm.device)
    with torch.inference_mode():
        (logprobs,) = split_logprobs(model(row), row)
    return [float(values.double().mean()) for values in logprobs.responses]


def run(settings: PairsSettings, session: Session, predictions: Path) -> Outcome:
    """Score all pairs and answer their prompts; a row is a sample."""
    samples = qa.load_samples(settings, session, "pairs")
    check_pairs(samples, str(settings.data), mend=_ASK)
    answers = qa.answer(samples, settings, session, predictions / "pairs.jsonl", label="pairs: answers")
    scored = _score(samples, session, predictions / "pairs_logprobs.jsonl")
    rows = [_row(*columns) for columns in zip(samples, scored, answers, strict=True)]
    has_references = any(sample.answers for sample in samples)
    measured = METRICS if has_references else [*_MARGINS, *qa.metrics("Answer", references=False)]
    outcome = Outcome(measured, rows, sources={"data": str(settings.data.resolve())})
    return with_reasoning(outcome, session, answers)


def _score(samples: Sequence[PreferenceSample], session: Session, path: Path) -> list[PairLogprobs]:
    file = RecordFile(path, PairLogprobs)
    hashes = {sample.id: sample_hash(sample) for sample in samples}
    check_kept(file, hashes)
    waiting = [sample for sample in samples if sample.id not in file]
    if waiting:
        from logotrain.attention.choice import choose_attention
        from logotrain.loss.logprobs import LogprobModel
        from logotrain.plan.shape import widest_head
        from logotrain.trainable import read_traits

        config, device, dtype = session.model.config, session.model.device, session.model.dtype
        attention = choose_attention(read_traits(config), device, dtype, head_width=widest_head(config))
        with (
            attention.of(session.model),
            progress("pairs: log-probabilities", len(samples), len(samples) - len(waiting)) as tracker,
        ):
            for sample in waiting:
                texts = (sample.prompt_ids, *(said.token_ids for said in (sample.chosen, *sample.rejected)))
                check_ids(vocabulary_size(session.model.config), *texts, where=f"sample {sample.id}", mend=_BUILD)
                chosen, *rejected = mean_logprobs(LogprobModel(session.model), sample, session.window)
                check_responses(chosen, rejected, sample.id)
                file.append(PairLogprobs(id=sample.id, prompt_hash=hashes[sample.id], chosen=chosen, rejected=rejected))
                tracker.advance()
    return [file[sample.id] for sample in samples]


def _row(sample: PreferenceSample, logprobs: PairLogprobs, answer: qa.QaAnswer) -> SampleRow:
    rejected = sum(logprobs.rejected) / len(logprobs.rejected)
    margin = logprobs.chosen - rejected
    return SampleRow(
        id=sample.id,
        cluster=sample.cluster,
        prompt_hash=logprobs.prompt_hash,
        scores={
            "margin": margin,
            "prefers_chosen": float(margin > 0),
            "chosen": logprobs.chosen,
            "rejected": rejected,
            **answer.scores,
        },
        facts={"origin": sample.origin, "kind": sample.kind},
    )


def describe(settings: PairsSettings, engine: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common.

    Raises:
        UserError: the engine has no log-probabilities.
    """
    check_weights(engine)
    return qa.describe(settings, engine)


def inputs(settings: PairsSettings) -> Iterator[tuple[str, Path]]:
    """Yield the folder of the held-out pairs, which must not be questions alone."""
    yield from qa.inputs(settings)
    manifest = read_manifest(settings.data)
    if isinstance(manifest, Manifest) and manifest.recipe.get("generation", {}).get("rejected") == "none":
        check_pairs(iterate_samples(settings.data), str(settings.data), mend=_ASK)


EVALUATOR = Evaluator(
    settings=PairsSettings, version=1, describe=describe, run=run, scores=True, inputs=inputs, limits=qa.limits
)
