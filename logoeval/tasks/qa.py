"""Question answering: the model's own greedy answers to all questions of held-out documents.

The prompts are those of a build's training contexts: all chunks that a question needs among others. Give a build with
``judge.enabled=false``, which keeps every question: one whose pairs were judged holds only questions that the model it
was built with answered right in one way and wrong in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import Tokens
from logodata.common.words import without_reasoning
from logodata.contract import PreferenceSample
from logodata.dataset.samples import read_manifest, read_samples, sample_files
from logodata.engines import GenerationResult, Sampling
from logodata.engines.settings import EngineSettings
from logodata.judge.measures import token_f1, word_share
from logodata.models.facts import tokenizer_fingerprint
from logoeval.records import Metric, Outcome, SampleRow, TaskResult, data_fingerprint, hash_ids
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import PromptItem, complete

if TYPE_CHECKING:
    from logoeval.session import Session


class HeldOutSettings(RecipeModel):
    """Samples that ``logodata build`` wrote, of documents that were not trained on, and an answer to each prompt."""

    data: Path
    """Folder that ``logodata build`` wrote, from documents that were not trained on."""
    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first samples of the folder; null uses all."""
    max_new_tokens: Tokens = 64
    """Length cap of the model's own answer."""


class QaSettings(HeldOutSettings):
    """The model's own answers to the questions of held-out documents. Build their folder with ``judge.enabled=false``,
    which keeps all questions."""


def metrics(what: str) -> list[Metric]:
    """What is measured of an answer; labels begin with ``what``."""
    return [
        Metric(
            key="word_share",
            label=f"{what}: reference words",
            explanation="Share of the reference's content words in the model's own greedy answer; long ones find more.",
            kind="share",
            better="higher",
        ),
        Metric(
            key="token_f1",
            label=f"{what}: word F1",
            explanation="Overlap of the greedy answer's words with the reference; missing and needless ones both cost.",
            kind="share",
            better="higher",
        ),
        Metric(
            key="ended",
            label=f"{what}: ended by itself",
            explanation="Share of greedy answers that the model ended before the length cap.",
            kind="share",
            better="higher",
        ),
        Metric(
            key="answer_tokens",
            label=f"{what}: length in tokens",
            explanation="Length of the greedy answer; read the two measures above beside it.",
            kind="count",
        ),
    ]


METRICS = metrics("Held-out answer")


def describe(settings: HeldOutSettings, _: EngineSettings) -> dict[str, Any]:
    """What two comparable runs have in common; the data by their contents, wherever they lie."""
    return {**settings.model_dump(mode="json", exclude={"data"}), "data_fingerprint": data_fingerprint(settings.data)}


def run(settings: QaSettings, session: Session, predictions: Path) -> Outcome:
    """Answer all questions; a row a question."""
    samples = load_samples(settings, session, "qa")
    answers = answer(samples, settings, session, predictions / "qa.jsonl", label="qa")
    rows = [
        SampleRow(
            id=sample.id,
            cluster=sample.doc_id,
            prompt_hash=hash_ids(sample.prompt_ids),
            scores=scores(record),
            facts={"kind": sample.kind},
        )
        for sample, record in zip(samples, answers, strict=True)
    ]
    return Outcome(METRICS, rows, sources={"data": str(settings.data.resolve())})


def load_samples(settings: HeldOutSettings, session: Session, task: str) -> list[PreferenceSample]:
    """The samples of a build that a task is measured on, checked against the model.

    Args:
        settings: of the task.
        session: of the model; its tokenizer must be the data's, and its window hold every prompt with an answer.
        task: its name, for messages.

    Raises:
        UserError: no build there, one with another tokenizer, or prompts that do not fit.
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
            mend=f"build them with --model {session.settings.model}",
        )
    longest = max(len(sample.prompt_ids) for sample in samples)
    session.check_window(longest + settings.max_new_tokens, f"the longest held-out prompt with {task}.max_new_tokens")
    return samples


def answer(
    samples: Sequence[PreferenceSample],
    settings: HeldOutSettings,
    session: Session,
    path: Path,
    *,
    label: str,
) -> list[dict[str, Any]]:
    """The model's greedy answer to the prompt of each sample: prediction records, in order, kept in ``path``."""
    by_id = {sample.id: sample for sample in samples}
    template = read_manifest(settings.data).prompt_fingerprints.answer

    def fields(response: str, result: GenerationResult) -> dict[str, Any]:
        sample = by_id[result.id]
        return {
            "question": sample.question,
            "answers": sample.answers,
            "word_share": word_share(without_reasoning(response), sample.answers),
            "token_f1": token_f1(without_reasoning(response), sample.answers),
            "ended": result.finish_reason == "stop",
        }

    return complete(
        session.engine,
        session.tokenizer,
        [PromptItem(sample.id, tuple(sample.prompt_ids), template) for sample in samples],
        sampling=Sampling(settings.max_new_tokens, session.stop_ids),
        path=path,
        fields=fields,
        label=label,
    )


def scores(record: dict[str, Any]) -> dict[str, float]:
    """The :func:`metrics` of a prediction record."""
    return {
        "word_share": record["word_share"],
        "token_f1": record["token_f1"],
        "ended": float(record["ended"]),
        "answer_tokens": float(record["num_response_tokens"]),
    }


def inputs(settings: HeldOutSettings) -> Iterator[tuple[str, Path]]:
    """The folder of the held-out samples.

    Raises:
        UserError: it holds none.
    """
    sample_files(settings.data)
    yield "the data set", settings.data


def limits(result: TaskResult) -> Iterator[str]:
    """Whether ``max_samples`` left samples out."""
    most = result.settings.get("max_samples")
    if most is not None and most == len(result.samples):  # fewer: there were no more
        what = "questions" if result.task == "qa" else "pairs"
        yield f"the first {most} held-out {what} only ({result.task}.max_samples)"


EVALUATOR = Evaluator(settings=QaSettings, version=1, describe=describe, run=run, inputs=inputs, limits=limits)
