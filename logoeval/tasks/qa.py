"""Question answering: the model's own greedy answers to all questions of held-out documents.

The prompts are those of a build's training contexts: all chunks that a question needs among others. Give a build with
``--questions-only``, which keeps every question: one whose pairs were judged holds only questions that the model it was
built with answered right in one way and wrong in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import Tokens
from logodata.common.words import without_reasoning
from logodata.contract import ImportManifest, PreferenceSample
from logodata.dataset.samples import read_manifest, read_samples, sample_files
from logodata.engines import GenerationResult, Sampling
from logodata.engines.settings import EngineSettings
from logodata.judge.measures import token_f1, word_share
from logodata.models.facts import tokenizer_fingerprint
from logoeval.records import Metric, Outcome, SampleRow, TaskResult, data_fingerprint
from logoeval.session import Session
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import Completion, PromptItem, complete, with_reasoning
from logoeval.tasks.record_file import RecordFile


class HeldOutSettings(RecipeModel):
    """Samples that ``logodata build`` wrote, of documents that were not trained on, and an answer to each prompt."""

    data: Path
    """Folder that ``logodata build`` wrote, from documents that were not trained on."""
    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first samples of the folder; null uses all."""
    max_new_tokens: Tokens = 64
    """Length cap of the model's own answer."""


class QaSettings(HeldOutSettings):
    """The model's own answers to the questions of held-out documents. Build their folder with ``--questions-only``,
    which keeps all questions."""


class QaAnswer(Completion):
    """The model's answer to a question, with its scores: a line of ``qa.jsonl`` and ``pairs.jsonl``. Imported pairs
    have no references, and mostly no question."""

    question: str
    answers: list[str]
    word_share: float | None
    token_f1: float | None
    ended: bool

    @property
    def scores(self) -> dict[str, float]:
        """The scores by the keys of :func:`metrics`."""
        found = {"word_share": self.word_share, "token_f1": self.token_f1}
        return {
            **{key: value for key, value in found.items() if value is not None},
            "ended": float(self.ended),
            "answer_tokens": float(self.num_response_tokens),
        }


def metrics(what: str, *, references: bool = True) -> list[Metric]:
    """Return what is measured of an answer, with or without ``references`` to compare it with. Labels begin with
    ``what``."""
    compared = [
        Metric.share(
            "word_share",
            f"{what}: reference words",
            "Share of the reference's content words in the model's own greedy answer; long ones find more.",
        ),
        Metric.share(
            "token_f1",
            f"{what}: word F1",
            "Overlap of the greedy answer's words with the reference; missing and needless ones both cost.",
        ),
    ]
    return [
        *(compared if references else []),
        Metric.share(
            "ended", f"{what}: ended by itself", "Share of greedy answers that the model ended before the length cap."
        ),
        Metric(
            key="answer_tokens",
            label=f"{what}: length in tokens",
            explanation="Length of the greedy answer"
            + ("; read the two measures above beside it." if references else "."),
            kind="count",
        ),
    ]


METRICS = metrics("Held-out answer")


def describe(settings: HeldOutSettings, _: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common; the data by their contents, wherever they lie."""
    return {**settings.model_dump(mode="json", exclude={"data"}), "data_fingerprint": data_fingerprint(settings.data)}


def run(settings: QaSettings, session: Session, predictions: Path) -> Outcome:
    """Answer all questions; a row is a question."""
    samples = load_samples(settings, session, "qa")
    if bare := sum(not sample.answers for sample in samples):
        raise UserError(
            f"{bare} of {len(samples)} samples have no reference answer",
            where=str(settings.data),
            mend="measure them with logoeval pairs, or give a data set that logodata build wrote from references",
        )
    answers = answer(samples, settings, session, predictions / "qa.jsonl", label="qa")
    rows = [
        SampleRow(
            id=sample.id,
            cluster=sample.cluster,
            prompt_hash=record.prompt_hash,
            scores=record.scores,
            facts={"kind": sample.kind},
        )
        for sample, record in zip(samples, answers, strict=True)
    ]
    outcome = Outcome(METRICS, rows, sources={"data": str(settings.data.resolve())})
    return with_reasoning(outcome, session, answers)


def load_samples(settings: HeldOutSettings, session: Session, task: str) -> list[PreferenceSample]:
    """Return the samples of a build that ``task`` is measured on, checked against the model.

    Raises:
        UserError: there is no build, it was made with another tokenizer, or the window does not hold a prompt with an
            answer.
    """
    samples = read_samples(settings.data)
    if settings.max_samples is not None and settings.max_samples < len(samples):
        note(f"the first {settings.max_samples} of {len(samples)} held-out samples are used ({task}.max_samples)")
        samples = samples[: settings.max_samples]
    if not samples:
        raise UserError("holds no samples", where=str(settings.data), mend="see its rejected.jsonl for the reasons")
    if read_manifest(settings.data).tokenizer_fingerprint != tokenizer_fingerprint(session.tokenizer):
        raise UserError(
            "the data hold token ids of another tokenizer",
            where=str(settings.data),
            mend=f"build or import them with --model {session.settings.model}",
        )
    if session.settings.chat_template_args:
        note(f"{task}: the prompts are those of the data set, and chat_template_args change nothing in them")
    longest = max(len(sample.prompt_ids) for sample in samples)
    session.check_room(longest + settings.max_new_tokens, f"the longest held-out prompt with {task}.max_new_tokens")
    return samples


def answer(
    samples: Sequence[PreferenceSample], settings: HeldOutSettings, session: Session, path: Path, *, label: str
) -> list[QaAnswer]:
    """Return the model's greedy answer to the prompt of each sample, in order. They are kept in ``path``."""
    by_id = {sample.id: sample for sample in samples}
    manifest = read_manifest(settings.data)
    # Of imported pairs the prompts themselves are all there is.
    template = manifest.source.sha256 if isinstance(manifest, ImportManifest) else manifest.prompt_fingerprints.answer
    sampling = Sampling(settings.max_new_tokens, session.stop_ids)

    def record(made: Completion, _: GenerationResult) -> QaAnswer:
        sample = by_id[made.id]
        said = without_reasoning(made.response)
        return QaAnswer(
            **dict(made),
            question=sample.question or "",
            answers=sample.answers,
            word_share=word_share(said, sample.answers) if sample.answers else None,
            token_f1=token_f1(said, sample.answers) if sample.answers else None,
            ended=made.finish_reason == "stop",
        )

    return complete(
        session,
        [PromptItem(sample.id, tuple(sample.prompt_ids), sampling, template) for sample in samples],
        RecordFile(path, QaAnswer),
        record=record,
        label=label,
    )


def inputs(settings: HeldOutSettings) -> Iterator[tuple[str, Path]]:
    """Yield the folder of the held-out samples, which must hold some."""
    sample_files(settings.data)
    yield "the data set", settings.data


def limits(result: TaskResult) -> Iterator[str]:
    """Say whether ``max_samples`` left samples out."""
    most = result.settings.get("max_samples")
    if most is not None and most == len(result.samples):  # fewer: there were no more
        what = "questions" if result.task == "qa" else "pairs"
        yield f"the first {most} held-out {what} only ({result.task}.max_samples)"


EVALUATOR = Evaluator(settings=QaSettings, version=1, describe=describe, run=run, inputs=inputs, limits=limits)
