"""Write the report of the study: ``README.md`` with tables, figures and commands, ``results-SCALE.json``, and the
measurements (:mod:`study.archive`)."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.files import write_atomic, write_json
from logoeval.compare.compare import MIN_CLUSTERS
from logoeval.records import read_results
from study import figures, tables
from study.archive import pack
from study.claims import NOT_TESTABLE, Claim, claims_of, judge
from study.jobs import Job, Study
from study.outcome import (
    ENDED,
    F1,
    FRESH_F1,
    FRESH_MEASURES,
    MARGIN,
    MEASURES,
    PERPLEXITY,
    RECALL,
    RIGHT,
    WORDS,
    Measure,
    Outcomes,
    outcome_measure,
)
from study.rows import BASE, LOGO, Row
from study.schedule import Journal

_CAPTIONS = {
    "needles": "Needles found by prompt length (the form of the paper's Figure 3).",
    "perplexity": "Perplexity of Python's documentation; dashed: no weight was trained (Figure 4).",
    "tradeoff": "Answers against perplexity, every setting; the models of the first seed (Figure 6).",
    "margins": "Reward margin of held-out pairs, mean over seeds (Figure 6).",
    "training": "The first seed's checkpoints over training (the form of the paper's Figure 7).",
    "errors": "How held-out answers go wrong (Figure 9).",
    "rates": "Word F1 of the validation answers by learning rate, one seed; few questions, so only large steps tell.",
}

_TRIAL = (
    "**A trial**: every command at about a tenth of the size (two updates, a few questions, one seed), to see that all "
    "of them run. It says nothing of the methods."
)


def write_report(study: Study, rates: Mapping[str, float], journal: Journal, folder: Path) -> None:
    """Write the report into ``folder``, and the measurements beside it. It includes ``remarks.md`` from there, which is
    written by hand."""
    outcomes = Outcomes(study, rates, journal.collapsed())
    if BASE not in {one.name for one in outcomes.rows}:
        mend = "let the study run until the base model is measured"
        raise UserError("there is nothing to report yet", where=str(study.folder), mend=mend)
    outcomes.check()
    drawn = figures.draw_all(outcomes, folder / f"figures-{study.scale.name}")
    write_atomic(folder / "README.md", _page(outcomes, journal, folder, drawn))
    write_json(folder / f"results-{study.scale.name}.json", record(outcomes, journal))
    pack(study, folder / f"measurements-{study.scale.name}.tar.xz")


def _page(outcomes: Outcomes, journal: Journal, folder: Path, drawn: Mapping[str, Path]) -> str:
    study = outcomes.study
    row, rows = outcomes.row, outcomes.rows
    claims, replicated, together = claims_of(outcomes)
    main, ablations = [one for one in rows if one.main], [one for one in rows if not one.main or one.name == LOGO]
    trained = [one for one in main if not one.is_untrained]
    remarks = folder / "remarks.md"
    jobs = all_jobs(study, outcomes.rates)
    taken = [journal.taken(job) for job in jobs]
    hours, cores = sum(one.seconds for one in taken) / 3600 / study.scale.workers, sum(one.cpu_seconds for one in taken)
    questions, pairs, books = (outcomes.level(row(BASE), measure) for measure in (F1, MARGIN, PERPLEXITY))
    prompts = outcomes.level(row(BASE), RECALL)
    size = f"{study.scale.name} scale{', a trial' if study.is_trial else ''}"
    parts = [
        f"# Does it work? The paper's comparisons on SmolLM2-135M-Instruct ({size})",
        *([_TRIAL] if study.is_trial else []),
        *([_so_far(outcomes)] if outcomes.missing else []),
        *_collapsed(outcomes),
        _written_by(study),
        f"What was decided before the runs is in [protocol.md]({_from(folder, study.scale.protocol)}). Numbers in "
        "brackets are 95 % intervals, paired where they are differences, resampled by what samples share: "
        f"{questions.num_samples} held-out questions of {questions.num_clusters} documents, {pairs.num_samples} pairs "
        f"of {pairs.num_clusters}, {prompts.num_clusters} needle prompts; perplexity is of {books.num_clusters} "
        f"documents. ± is the standard deviation over {len(study.scale.seeds)} seeds of training. A row trained with "
        "several seeds is the mean of its models, sample by sample.",
        *([remarks.read_text(encoding="utf-8").strip()] if remarks.is_file() else []),
        "## What the paper claims, and what was found",
        "The rule: *confirmed* if the interval of the paired difference and every seed lie on the claimed side, "
        "*refuted* if the interval lies on the other, else *not confirmed*; from fewer than "
        f"{MIN_CLUSTERS} independent samples nothing is said.",
        tables.claims_table(outcomes, claims, "The paper's claims").markdown(),
        "Not testable at this size:\n\n" + "\n".join(f"- {text}" for text in NOT_TESTABLE),
        "## The rows of Table 1",
        tables.levels(outcomes, main, "Rows").markdown(),
        tables.changes(outcomes, trained, row(BASE), (F1, RIGHT, WORDS, RECALL, PERPLEXITY, MARGIN)).markdown(),
        _figures(drawn, ("needles", "perplexity", "training", "margins", "errors"), folder),
        *(_settings(outcomes, ablations) if len(ablations) > 1 else ()),
        _figures(drawn, ("tradeoff",), folder),
        *(_fresh(outcomes, replicated, together) if replicated else ()),
        *_longbench(study),
        "## Learning rates",
        "Each method was trained at each of these, with the same seed; the one whose answers to the validation "
        "questions have the best word F1 was taken (bold). Settings of LOGO take LOGO's.",
        tables.rates_table(outcomes).markdown(),
        _figures(drawn, ("rates",), folder),
        "## Data",
        tables.data_table(outcomes, study.builds()).markdown(),
        "## What it took",
        f"All {len(jobs)} commands: {cores / 3600:.1f} hours of processor, about {hours:.1f} hours on "
        f"{os.cpu_count()} cores ({study.scale.workers} commands side by side).",
        tables.cost_table(outcomes, journal).markdown(),
        "## Every number's command",
        f"`{study.command}` runs all of them, and goes on where it was stopped. With `--measured FILE` it takes what "
        f"is measured already from the `measurements-{study.scale.name}.tar.xz` beside this page, which has every "
        "answer and score, and runs the rest. One by one, in the root of the repository (the documents are put "
        "together by it):",
        "\n\n".join(_commands(title, found) for title, found in _phases(study, outcomes.rates)),
    ]
    return "\n\n".join(parts) + "\n"


def _so_far(outcomes: Outcomes) -> str:
    return (
        "**Not finished.** This is what has been measured so far. Claims about other rows are left out, and means are "
        f"over the seeds that there are. Still to come: {'; '.join(outcomes.missing)}."
    )


def _from(folder: Path, path: Path) -> str:
    """Return a path as a link in a page of ``folder``."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _settings(outcomes: Outcomes, ablations: Sequence[Row]) -> list[str]:
    """Return the sections on the settings of LOGO, which is the first of these rows."""
    return [
        "## Settings of LOGO (Figure 6)",
        "Settings of LOGO have its learning rate, and its other settings too but for what their names say; rows of "
        "instruct tuning stand beside them for comparison, with its own rate where no other is named. One seed "
        f"({outcomes.study.scale.seeds[0]}), but where a deviation over seeds stands: compare levels in the first "
        "column, which is of that seed in every row. Differences are from LOGO of the same seeds.",
        tables.levels(outcomes, ablations, "Settings", of_first_seed=F1).markdown(),
        tables.changes(outcomes, ablations[1:], ablations[0], (F1, WORDS, PERPLEXITY, MARGIN)).markdown(),
        "## Does any setting of LOGO beat instruct tuning?",
        "The settings above, and what the protocol names as remedies, against instruct tuning on the response with as "
        "many updates, over the seeds that both have. At 95 %, one comparison in forty would lie above zero by chance.",
        tables.remedies(outcomes, (F1, WORDS, ENDED, MARGIN)).markdown(),
    ]


def _fresh(outcomes: Outcomes, replicated: Sequence[Claim], together: Sequence[Claim]) -> list[str]:
    """Return the section on the questions that were asked a second time."""
    questions, fresh = (outcomes.level(outcomes.row(BASE), measure).num_samples for measure in (F1, FRESH_F1))
    return [
        "## Does the best of them hold on fresh questions?",
        f"What looks best among many settings on the same {questions} questions may be luck. So it was "
        f"trained with every seed and asked {fresh} other questions of the held-out documents, which "
        "nobody had looked at, beside what it has to beat; the rule of confirmation is that of the claims.",
        tables.claims_table(outcomes, replicated, "On fresh questions").markdown(),
        "The same over both sets of questions, for a summary of all there is; no test of its own, since both had been "
        "seen.",
        tables.claims_table(outcomes, together, "On all questions").markdown(),
        tables.levels(outcomes, [one for one in outcomes.rows if one.replicated], "Rows", FRESH_MEASURES).markdown(),
    ]


def _written_by(study: Study) -> str:
    names = ("torch", "transformers", "peft")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    cached = (
        f"Responses of the model were taken from `{study.cache}`" if study.cache else "Every response was generated"
    )
    return (
        f"Written by `{study.command}` on {datetime.now(UTC):%Y-%m-%d} ({platform.machine()}, "
        f"{os.cpu_count()} cores; {versions}). {cached}."
    )


def _figures(drawn: Mapping[str, Path], names: Sequence[str], folder: Path) -> str:
    return "\n\n".join(
        f"![{_CAPTIONS[name]}]({drawn[name].relative_to(folder).as_posix()})\n\n*{_CAPTIONS[name]}*"
        for name in names
        if name in drawn
    )


def _longbench(study: Study) -> list[str]:
    if study.longbench is None:
        return []
    lines = []
    for name in (BASE, *study.scale.curves):
        found = read_results(study.folder / "longbench" / name).tasks["longbench"]
        shown = {line.metric: line for line in found.summary if not line.slice}
        scores = [f"{100 * line.value:.1f}" for line in shown.values()]
        lines.append(f"| {study.scale.row(name).label} | {' | '.join(scores)} |")
    head = [next(metric.label for metric in found.metrics if metric.key == key) for key in shown]
    rule = " | ".join(["---"] + ["---:"] * len(head))
    count = len(found.samples)
    return [
        "## LongBench, what fits",
        f"{count} rows in a window of {study.scale.longbench_window:,} tokens: far too few for official scores.",
        "\n".join([f"|  | {' | '.join(head)} |", f"| {rule} |", *lines]),
    ]


def _collapsed(outcomes: Outcomes) -> Iterator[str]:
    """Say which rows collapsed at their own learning rate. They are in no number."""
    lost = {one: outcomes.collapsed_seeds(one) for one in outcomes.study.scale.rows}
    found = [f"{one.label} (seed {', '.join(map(str, seeds))})" for one, seeds in lost.items() if seeds]
    if found:
        yield (
            f"**Collapsed**, and so in no number: {'; '.join(found)}. No claim of such a row is confirmed, "
            "and none is listed of one that collapsed with every seed."
        )


def _phases(study: Study, rates: Mapping[str, float]) -> list[tuple[str, list[Job]]]:
    return [
        ("Data", [*study.first_builds(), *study.later_builds()]),
        ("Learning rates", [*study.pilots(), *study.validations()]),
        ("Training", study.trainings(rates)),
        ("Measurements: Tables, Figures 3, 4, 6 and 9; fresh questions", study.measurements(rates)),
        ("Curves over training; LongBench", [chain[-1] for chain in study.curves(rates)]),
    ]


def all_jobs(study: Study, rates: Mapping[str, float]) -> list[Job]:
    """Return all commands of the study, in order."""
    return [job for _, jobs in _phases(study, rates) for job in jobs]


def _commands(title: str, jobs: Sequence[Job]) -> str:
    listed = "\n".join(job.command for job in jobs)
    return f"<details><summary>{title}: {len(jobs)}</summary>\n\n```\n{listed}\n```\n\n</details>"


def record(outcomes: Outcomes, journal: Journal) -> dict[str, Any]:
    """Return the rows, claims, rates and costs of the report as JSON, for other programs."""
    study = outcomes.study
    shown = [*MEASURES, outcome_measure("hallucination"), outcome_measure("instruction_unfollowing")]

    def measured(one: Row, measures: Sequence[Measure]) -> dict[str, Any]:
        found = {}
        for measure in measures:
            if outcomes.has(one, measure):
                level, by_seed = outcomes.level(one, measure), outcomes.by_seed(one, measure)
                found[measure.key] = {"value": level.value, "interval": level.interval, "by_seed": by_seed}
        return found

    rows = {
        one.name: {
            "label": one.label,
            "seeds": outcomes.seeds(one),
            "measures": measured(one, shown),
            "fresh_questions": measured(one, FRESH_MEASURES),
        }
        for one in outcomes.rows
    }
    claims = []
    for claim in chain(*claims_of(outcomes)):
        finding = judge(claim, outcomes)
        claims.append(
            {
                "claim": claim.text,
                "rows": [claim.row, claim.other],
                "measure": claim.measure.key,
                "questions": claim.measure.questions,
                "change": finding.change.value,
                "interval": finding.change.interval,
                "by_seed": finding.by_seed,
                "verdict": finding.verdict,
            }
        )
    jobs = {job.name: {"command": job.command, **_taken(journal, job)} for job in all_jobs(study, outcomes.rates)}
    return json.loads(  # tuples as lists
        json.dumps(
            {
                "scale": study.scale.name,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "rates": {"chosen": outcomes.rates, "validation_f1": outcomes.validation_f1},
                "rows": rows,
                "claims": claims,
                "jobs": jobs,
            }
        )
    )


def _taken(journal: Journal, job: Job) -> dict[str, float]:
    taken = journal.taken(job)
    return {"seconds": taken.seconds, "cpu_seconds": taken.cpu_seconds, "peak_gib": taken.peak_gib}
