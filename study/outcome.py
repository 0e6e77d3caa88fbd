"""Read what the commands of the study measured: scores by sample, averaged over seeds, and differences between rows.

If a row is trained with several seeds, the score of a sample is the mean over its models. So an interval over samples
is about the method, not about one model. The deviation over seeds is reported beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from logodata.common.append_log import AppendLog
from logodata.contract import Stats
from logodata.dataset.files import read_stats
from logoeval.compare.compare import read_runs
from logoeval.compare.wrong_answers import OUTCOMES, Outcome, classify
from logoeval.intervals import Array, Estimate, estimate_difference, estimate_mean
from logoeval.records import PREDICTIONS_DIR, Curve, Results, SampleRow, read_results
from logoeval.tasks.perplexity import settings_of
from study.jobs import Study
from study.rows import Row


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the tables.

    Attributes:
        task: the task of logoeval.
        key: key of the metric, or ``outcome:`` and an outcome.
        label: label of the column.
        kind: kind of the number, such as ``share``.
        better: +1 if a larger number is better, -1 if a smaller one is, 0 if neither.
        where: facts that the samples must have.
        questions: the held-out questions, the fresh ones of the same documents, or both together.
    """

    task: str
    key: str
    label: str
    kind: str
    better: int
    where: tuple[tuple[str, Any], ...] = ()
    questions: Literal["held-out", "fresh", "both"] = "held-out"

    @property
    def transform(self) -> Callable[[Array], Array]:
        """The function from the mean of the scores to the number that is shown."""
        return np.exp if self.kind == "perplexity" else np.asarray


F1 = Measure("qa", "token_f1", "answer F1, %", "share", +1)
WORDS = Measure("qa", "word_share", "reference words, %", "share", +1)
ENDED = Measure("qa", "ended", "ended by itself, %", "share", +1)
TOKENS = Measure("qa", "answer_tokens", "answer tokens", "count", 0)
RECALL = Measure("niah", "recall", "needle recall, %", "share", +1)
MARGIN = Measure("pairs", "margin", "margin, nats a token", "nats", +1)
CHOSEN = Measure("pairs", "chosen", "log-prob. of preferred", "nats", +1)


def perplexity(length: int) -> Measure:
    """Return the measure of the perplexity of the first ``length`` tokens."""
    return Measure("ppl", f"ppl@{length}", f"perplexity at {length:,}", "perplexity", -1)


def outcome_measure(outcome: Outcome) -> Measure:
    """Return the measure of the share of held-out answers with one outcome."""
    return Measure("qa", f"outcome:{outcome}", f"{OUTCOMES[outcome]}, %", "share", +1 if outcome == "right" else -1)


PERPLEXITY = perplexity(4096)
RIGHT = outcome_measure("right")

MEASURES = (F1, RIGHT, WORDS, ENDED, TOKENS, RECALL, PERPLEXITY, MARGIN, CHOSEN)
"""The columns of the tables."""

FRESH_F1 = replace(F1, label="fresh answer F1, %", questions="fresh")
BOTH_F1 = replace(F1, label="answer F1 of both, %", questions="both")
FRESH_MEASURES = (FRESH_F1, *(replace(measure, questions="fresh") for measure in (WORDS, ENDED, TOKENS)))
"""The columns of the table of fresh questions."""


def chosen_rates(study: Study, collapsed: Collection[str] = ()) -> dict[str, float]:
    """Return the learning rate of each method.

    It is the rate whose pilot has the best word F1 on the validation questions; of equal rates it is the lowest. A
    method whose pilots are not all validated yet has none. ``collapsed`` are the names of trainings that collapsed.
    """
    found, tried = validation_scores(study, collapsed), Counter(tuned.name for tuned, _ in study.tried())
    return {
        name: max(sorted(scores), key=lambda rate: scores[rate])
        for name, scores in found.items()
        if len(scores) == tried[name]
    }


def validation_scores(study: Study, collapsed: Collection[str] = ()) -> dict[str, dict[float, float]]:
    """Return the word F1 of the pilots of each method by learning rate, of those that are validated. It is 0 for one
    that collapsed."""
    found: dict[str, dict[float, float]] = {}
    for tuned, rate in study.tried():
        is_lost = has_collapsed(study, tuned, study.scale.seeds[0], rate, collapsed)
        score = 0.0 if is_lost else validation_score(study, tuned, rate)
        if score is not None:
            found.setdefault(tuned.name, {})[rate] = score
    return found


def has_collapsed(study: Study, row: Row, seed: int, rate: float | None, collapsed: Collection[str]) -> bool:
    """Return whether a training is among those that collapsed."""
    return study.run(row, seed, rate).relative_to(study.folder).as_posix() in collapsed


def validation_score(study: Study, tuned: Row, rate: float | None) -> float | None:
    """Return the word F1 of the answers to the validation questions; without a rate, of the base model's answers.

    It is None if they are not all asked yet.
    """
    found = read_results(study.validated(tuned, rate), missing_ok=True).tasks.get(F1.task)
    return None if found is None else float(np.mean([sample.scores[F1.key] for sample in found.samples]))


class Outcomes:
    """All measurements of a study, so far.

    Args:
        study: the study whose folder is read.
        rates: the chosen learning rates.
        collapsed: names of the trainings that collapsed.
    """

    def __init__(self, study: Study, rates: Mapping[str, float], collapsed: Collection[str] = ()) -> None:
        self.study, self.rates = study, rates
        self._collapsed = collapsed
        self.validation_f1 = validation_scores(study, collapsed)
        self._read = cache(partial(read_results, missing_ok=True))
        self.answers = cache(self._answers)
        """The outcome of each held-out answer of a row and a seed, by sample id."""

    def check(self) -> None:
        """Check that rows that are compared sample by sample have the same samples and settings.

        Raises:
            UserError: results differ in tasks, settings, engine or prompts; the message names the difference.
        """

        def folders(where: Callable[[Row, int], Path], rows: Iterable[Row]) -> list[Path]:
            return [where(one, seed) for one in rows for seed in self.seeds(one)]

        read_runs(folders(self.study.measured, self.rows), (F1.task, MARGIN.task, PERPLEXITY.task))
        read_runs(folders(self.study.measured, (one for one in self.rows if one.main)), (RECALL.task,))
        if self.study.has_fresh_questions:
            read_runs(folders(self.study.asked, (one for one in self.rows if one.replicated)), (FRESH_F1.task,))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """What is compared: the rows that are measured with one seed at least."""
        return tuple(one for one in self._all if self.seeds(one))

    @property
    def _all(self) -> tuple[Row, ...]:
        return self.study.scale.rows

    def seeds(self, row: Row) -> tuple[int, ...]:
        """Return the seeds with which a row is measured."""
        return tuple(filter(partial(self._is_measured, row), self.study.seeds(row)))

    def shared_seeds(self, row: Row, other: Row) -> tuple[int, ...]:
        """Return the seeds with which two rows are both measured. An untrained model is compared with every seed."""
        if row.is_untrained or other.is_untrained:
            return self.seeds(other if row.is_untrained else row)
        return tuple(seed for seed in self.seeds(row) if seed in self.seeds(other))

    def collapsed_seeds(self, row: Row) -> tuple[int, ...]:
        """Return the seeds with which a row's model collapsed while it was trained."""
        return tuple(seed for seed in self.study.seeds(row) if self.has_collapsed(row, seed))

    def _is_measured(self, row: Row, seed: int) -> bool:
        tasks = {F1.task, MARGIN.task, PERPLEXITY.task, *([RECALL.task] if row.main else [])}
        fresh = not row.replicated or FRESH_F1.task in self._read(self.study.asked(row, seed)).tasks
        return fresh and tasks <= set(self._read(self.study.measured(row, seed)).tasks)

    @property
    def missing(self) -> list[str]:
        """What is not measured yet: rows with their seeds."""
        left = {
            one: [
                str(seed)
                for seed in self.study.seeds(one)
                if seed not in (*self.seeds(one), *self.collapsed_seeds(one))
            ]
            for one in self._all
        }
        return [f"{one.label} (seed {', '.join(seeds)})" for one, seeds in left.items() if seeds]

    def has_collapsed(self, row: Row, seed: int, rate: float | None = None) -> bool:
        """Return whether a training collapsed, by default that at the row's own learning rate, once it is chosen."""
        rate = rate or self.rates.get(row.rate_of or row.name)
        return rate is not None and has_collapsed(self.study, row, seed, rate, self._collapsed)

    def row(self, name: str) -> Row:
        """Return the row with this name."""
        return self.study.scale.row(name)

    def results(self, row: Row, *, fresh: bool = False) -> list[Results]:
        """Return the results of each seed, either of the fresh questions or of all other measurements."""
        folder = self.study.asked if fresh else self.study.measured
        return [self._read(folder(row, seed)) for seed in self.seeds(row)]

    @property
    def lengths(self) -> list[int]:
        """The lengths of the perplexity curve, in tokens."""
        return list(settings_of(self.results(self.rows[0])[0].tasks["ppl"]).lengths)

    def has(self, row: Row, measure: Measure) -> bool:
        """Return whether the measure was taken on this row."""
        if measure.questions != "held-out" and not row.replicated:
            return False
        return all(measure.task in results.tasks for results in self.results(row, fresh=measure.questions == "fresh"))

    def scores(self, row: Row, measure: Measure) -> tuple[Array, list[str]]:
        """Return the scores [seeds, samples] and the cluster of each sample."""
        if measure.questions == "both":
            held_out, fresh = (self.scores(row, replace(measure, questions=one)) for one in ("held-out", "fresh"))
            return np.concatenate([held_out[0], fresh[0]], axis=1), held_out[1] + fresh[1]
        columns, clusters = [], []
        found = self.results(row, fresh=measure.questions == "fresh")
        for seed, results in zip(self.seeds(row), found, strict=True):
            samples = [
                sample
                for sample in results.tasks[measure.task].samples
                if all(sample.facts[fact] == value for fact, value in measure.where)
            ]
            columns.append([self._score(row, seed, sample, measure) for sample in samples])
            clusters = [sample.cluster for sample in samples]
        return np.asarray(columns, dtype=float), clusters

    def _score(self, row: Row, seed: int, sample: SampleRow, measure: Measure) -> float:
        if not measure.key.startswith("outcome:"):
            return sample.scores[measure.key]
        return float(self.answers(row, seed)[sample.id] == measure.key.removeprefix("outcome:"))

    def _answers(self, row: Row, seed: int) -> dict[str, Outcome]:
        records = AppendLog(self.study.measured(row, seed) / PREDICTIONS_DIR / "qa.jsonl").values()
        return {record["id"]: classify(record["response"], record["question"], record["answers"]) for record in records}

    def level(self, row: Row, measure: Measure) -> Estimate:
        """Return the mean with its interval over samples."""
        scores, clusters = self.scores(row, measure)
        return estimate_mean(scores.mean(0), clusters, transform=measure.transform)

    def by_seed(self, row: Row, measure: Measure) -> list[float]:
        """Return the mean of the model of each seed."""
        scores, _ = self.scores(row, measure)
        return [float(measure.transform(mean)) for mean in scores.mean(1)]

    def change(self, row: Row, other: Row, measure: Measure) -> Estimate:
        """Return ``row`` minus ``other`` with its interval, over the same samples and seeds."""
        after, before, clusters = self._paired(row, other, measure)
        return estimate_difference(before.mean(0), after.mean(0), clusters, transform=measure.transform)

    def changes_by_seed(self, row: Row, other: Row, measure: Measure) -> list[float]:
        """Return ``row`` minus ``other`` for each seed."""
        after, before, _ = self._paired(row, other, measure)
        changes = measure.transform(after.mean(1)) - measure.transform(before.mean(1))
        return [float(change) for change in changes]

    def _paired(self, row: Row, other: Row, measure: Measure) -> tuple[Array, Array, list[str]]:
        """Return the scores [seeds, samples] of both rows for the seeds that both have, and the clusters.

        So the rows differ, not the seeds. An untrained model is compared with every seed of the other row.
        """
        (after, clusters), (before, _) = self.scores(row, measure), self.scores(other, measure)
        if row.is_untrained or other.is_untrained:
            after, before = np.broadcast_arrays(after, before)
            return after, before, clusters
        shared = self.shared_seeds(row, other)
        of_row, of_other = ([self.seeds(one).index(seed) for seed in shared] for one in (row, other))
        return after[of_row], before[of_other], clusters

    def curves(self) -> dict[str, Curve]:
        """Return what was measured over the training of rows, by name."""
        names = self.study.scale.curves
        found = {name: read_results(self.study.curve(name), missing_ok=True).curve for name in names}
        return {name: curve for name, curve in found.items() if curve is not None}

    def statistics(self, name: str) -> Stats | None:
        """Return ``stats.json`` of a data set, or None before it is built."""
        return read_stats(self.study.data(name)) if (self.study.data(name) / "stats.json").is_file() else None


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds, or None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
