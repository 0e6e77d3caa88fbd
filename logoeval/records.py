"""What an evaluation leaves behind: ``results.json``, a versioned record with one entry a task, scores sample by
sample.

Scores are kept by sample, not only as means, so that two runs can be compared pair by pair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field

from logodata.common.errors import UserError
from logodata.common.files import read_if_whole, read_json, write_json
from logodata.common.records import Record
from logodata.common.resampling import Array
from logodata.contract import PreferenceSample
from logodata.dataset.samples import iterate_samples, sample_files

RESULTS_FILE = "results.json"
PREDICTIONS_DIR = "predictions"
_MEND = "evaluate again into another folder"


class Excerpt(Record):
    """The fields of a JSON object that are needed; it may have others."""

    model_config = ConfigDict(extra="ignore")


class VersionedRecord(Record):
    """The content of a file that says in which version of its format it is written."""

    schema_version: int = 1

    @classmethod
    def from_json(cls, value: object, *, where: str, mend: str) -> Self:
        """Return the record that a JSON value holds. One of another version raises a ``UserError``."""
        found = value.get("schema_version") if isinstance(value, dict) else None
        known = cls.model_fields["schema_version"].default
        if found != known:
            raise UserError(f"schema version {found}, this program reads {known}", where=where, mend=mend)
        return super().from_json(value, where=where, mend=mend)


_NO_DIFFERENCE = 1e-9


class Metric(Record):
    """One number a sample gets, and how its mean is read."""

    key: str
    label: str
    explanation: str
    """One sentence for a reader who knows neither the task nor the code."""
    kind: Literal["share", "count", "nats", "perplexity"]
    """``share`` lies in [0, 1]; ``perplexity`` is stored as a mean negative log-likelihood in nats and shown as its
    exponential."""
    better: Literal["higher", "lower"] | None = None
    """Which direction is an improvement; None where neither is."""
    decimals: int = 1
    """Digits after the point of a share in percent."""
    headline: bool = True
    """Whether the first table of a report shows it."""
    slice_by: list[str] = Field(default_factory=list)
    """Facts by which the metric is also reported, besides over all samples."""
    also_by: list[list[str]] = Field(default_factory=list)
    """Further lists of facts, each reported like ``slice_by``."""
    mean_of: list[str] = Field(default_factory=list)
    """Facts, outer first, such as category and task: the mean is taken in each group, then over groups."""

    @classmethod
    def share(
        cls, key: str, label: str, explanation: str, better: Literal["higher", "lower"] | None = "higher", **fields: Any
    ) -> Self:
        """Return a metric that is a share, with further ``fields``."""
        return cls(key=key, label=label, explanation=explanation, kind="share", better=better, **fields)

    @property
    def transform(self) -> Callable[[Array], Array]:
        """The function that turns the mean of the stored scores into what is shown."""
        return np.exp if self.kind == "perplexity" else np.asarray

    def show(self, value: float) -> str:
        """Return a value as people read it."""
        return f"{100 * value:.{self.decimals}f} %" if self.kind == "share" else f"{value:.2f}"

    def show_interval(self, low: float | None, high: float | None) -> str:
        """Return an interval as people read it, or a dash if there is none."""
        return "-" if low is None or high is None else f"{self.show(low)} to {self.show(high)}"

    def show_difference(self, value: float) -> str:
        """Return a difference with its sign. Those of shares are in percentage points.

        A bound just below zero keeps its minus sign, because a verdict rests on it; a rounding error of zero has none.
        """
        digits = {"share": self.decimals, "perplexity": 3}.get(self.kind, 2)
        value = 0.0 if abs(value) < _NO_DIFFERENCE else value
        return f"{round(100 * value if self.kind == 'share' else value, digits):+.{digits}f}"

    def show_change(self, change: float, low: float | None, high: float | None) -> str:
        """Return a difference with its interval, such as ``+3.1 [+0.4, +5.9]``."""
        ends = "" if low is None or high is None else f" [{self.show_difference(low)}, {self.show_difference(high)}]"
        return self.show_difference(change) + ends


class SampleRow(Record):
    """Scores of one sample. ``cluster`` names what it shares with others (its document); resampling draws whole
    clusters."""

    model_config = ConfigDict(allow_inf_nan=False)

    id: str
    cluster: str
    prompt_hash: str
    scores: dict[str, float]
    facts: Mapping[str, object] = Field(default_factory=dict)
    """What is known of the sample, by name: metrics are also reported by them (:attr:`Metric.slice_by`)."""


class SummaryRow(Record):
    """The mean of a metric over the samples whose facts match ``slice``, with its 95 % interval (none for one
    cluster)."""

    metric: str
    slice: Mapping[str, object]
    value: float
    low: float | None
    high: float | None
    num_samples: int
    num_clusters: int


class Provenance(Record):
    """What produced a result."""

    logo_align: str
    python: str
    torch: str
    transformers: str
    engine: str | None
    """Name and version of the engine that generated; None for tasks that generate nothing."""
    device: str
    model: str
    model_fingerprint: str
    adapter: str | None
    adapter_fingerprint: str | None
    tokenizer_fingerprint: str
    date: str
    """When the task ended, UTC."""
    seconds: float
    """Time this command spent on the task; a resumed task counts its last part only."""


class TaskResult(Record):
    """One task's entry of ``results.json``."""

    task: str
    """Its name in :data:`logoeval.tasks.table.TASKS`."""
    settings: Mapping[str, object]
    """What two comparable runs must have in common; the model and the adapter are under ``provenance``."""
    notes: list[str] = Field(default_factory=list)
    """What a reader of the numbers should know, such as a haystack that had to be repeated."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Folders that were read, by name; not compared, since contents are."""
    provenance: Provenance
    metrics: list[Metric]
    summary: list[SummaryRow]
    samples: list[SampleRow]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task gives back: see the fields of :class:`TaskResult`."""

    metrics: list[Metric]
    samples: list[SampleRow]
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    """What comparable runs must have in common and only the work shows, such as the heads that were measured."""


class CurveValue(Record):
    """The mean of a metric at one step, and its paired change from the base model, with 95 % intervals (none for one
    cluster)."""

    metric: str
    value: float
    low: float | None
    high: float | None
    change: float
    change_low: float | None
    change_high: float | None
    num_samples: int


class CurvePoint(Record):
    """One checkpoint, measured in the folder ``step-N`` beside ``results.json``; step 0 is the base model."""

    step: int
    adapter_fingerprint: str | None
    values: list[CurveValue]

    def of(self, metric: Metric) -> CurveValue:
        """Return the value of a metric."""
        return next(value for value in self.values if value.metric == metric.key)


class Curve(Record):
    """A task over the checkpoints of a training run."""

    task: str = "niah"  # the only one, when results did not say which
    checkpoints: str
    """The run's folder of checkpoints; not compared."""
    settings: Mapping[str, object]
    metrics: list[Metric]
    points: list[CurvePoint]


class Results(VersionedRecord):
    """``results.json``: tasks accumulate, each under its name."""

    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    curve: Curve | None = None


def read_results(folder: Path, *, missing_ok: bool = False) -> Results:
    """Return the results of a folder. Damaged ones, ones of another version, or none (unless ``missing_ok``) raise a
    ``UserError``."""
    path = folder / RESULTS_FILE
    if path.exists():
        return Results.from_json(read_json(path), where=str(path), mend=_MEND)
    if missing_ok:
        return Results()
    raise UserError("holds no results", where=str(folder), mend=f"run: logoeval run RECIPE -o {folder}")


def continue_results(folder: Path) -> Results:
    """Return the results of a folder that a run goes on with; there may be none yet. A file that was cut is put aside,
    and made again from the predictions. Ones of another version raise a ``UserError``."""
    path = folder / RESULTS_FILE
    content = read_if_whole(path)
    return Results() if content is None else Results.from_json(content, where=str(path), mend=_MEND)


def has_predictions(predictions: Path, task: str) -> bool:
    """Return whether a folder of predictions holds some of a task."""
    patterns = (f"{task}.jsonl", f"{task}[-_]*.jsonl", f"{task}/*.jsonl")
    return any(any(predictions.glob(pattern)) for pattern in patterns)


def write_results(folder: Path, results: Results) -> None:
    """Write ``results.json``, atomically."""
    write_json(folder / RESULTS_FILE, results.to_json())


def sample_hash(sample: PreferenceSample) -> str:
    """Return a hash of all token ids of a sample, on which its scores depend."""
    return hash_ids(sample.prompt_ids, sample.chosen.token_ids, *(response.token_ids for response in sample.rejected))


def data_fingerprint(folder: Path) -> str:
    """Return a hash of what models are measured by in a folder's samples: token ids, documents, questions, answers.

    A build that takes its responses from a cache writes other files than one that generates them, and equal samples.
    """
    digest = hashlib.sha256()
    for sample in iterate_samples(folder):
        known = [sample.id, sample.cluster, sample.kind, sample_hash(sample), sample.question, sample.answers]
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()[:16]


def files_fingerprint(folder: Path) -> str:
    """Return the hash of the files of samples, by which earlier versions knew a folder."""
    digest = hashlib.sha256()
    for file in sample_files(folder):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def hash_ids(*sequences: Sequence[int]) -> str:
    """Return a hash of sequences of token ids, borders included."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(len(sequence).to_bytes(8, "little"))
        digest.update(np.asarray(sequence, dtype="<i4").tobytes())
    return digest.hexdigest()[:16]
