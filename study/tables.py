"""Make the tables of the report."""

from __future__ import annotations

from collections.abc import Sequence

from logoeval.intervals import Estimate
from logoeval.report.tables import Table
from study.claims import Claim, judge
from study.outcome import MEASURES, Measure, Outcomes, spread
from study.rows import LOGO, LOGO_LONG, SFT, SFT_LONG_SAME_RATE, SFT_SAME_RATE, Row
from study.schedule import Journal


def value(measure: Measure, number: float, *, signed: bool = False) -> str:
    """Format a number for a table. A share is in percent."""
    digits = {"share": 1, "count": 1}.get(measure.kind, 2)
    return f"{100 * number if measure.kind == 'share' else number:{'+' if signed else ''}.{digits}f}"


def estimate(measure: Measure, found: Estimate, *, signed: bool = False) -> str:
    """Format a number with its interval."""
    text = value(measure, found.value, signed=signed)
    if found.interval is None:
        return text
    low, high = (value(measure, edge, signed=signed) for edge in found.interval)
    return f"{text} [{low}, {high}]"


def levels(
    outcomes: Outcomes,
    rows: Sequence[Row],
    title: str,
    measures: Sequence[Measure] = MEASURES,
    of_first_seed: Measure | None = None,
) -> Table:
    """Return a table of every measure of every row, with 95 % intervals over samples and the deviation over seeds.

    With ``of_first_seed`` the first column has that measure for the first seed alone, because rows have different
    numbers of seeds.
    """
    lines = []
    for one in rows:
        cells = [] if of_first_seed is None else [value(of_first_seed, outcomes.by_seed(one, of_first_seed)[0])]
        for measure in measures:
            if not outcomes.has(one, measure):
                cells.append("-")
                continue
            by_seed = spread(outcomes.by_seed(one, measure))
            text = estimate(measure, outcomes.level(one, measure))
            cells.append(text if by_seed is None else f"{text} ±{value(measure, by_seed)}")
        lines.append([one.label, *cells])
    first = [] if of_first_seed is None else [f"{of_first_seed.label}, first seed"]
    return Table(title, ["", *first, *(measure.label for measure in measures)], lines)


def changes(outcomes: Outcomes, rows: Sequence[Row], other: Row, measures: Sequence[Measure]) -> Table:
    """Return a table of paired differences of rows from ``other``."""
    lines = []
    for one in rows:
        cells = [
            estimate(measure, outcomes.change(one, other, measure), signed=True)
            if outcomes.has(one, measure) and outcomes.has(other, measure)
            else "-"
            for measure in measures
        ]
        lines.append([one.label, *cells])
    return Table(f"Difference from {other.label}", ["", *(measure.label for measure in measures)], lines)


def remedies(outcomes: Outcomes, measures: Sequence[Measure]) -> Table:
    """Return a table of LOGO in each of its settings against instruct tuning with as many updates."""
    lines, row = [], outcomes.row
    compared = [
        (row(LOGO), row(SFT)),
        (row(LOGO), row(SFT_SAME_RATE)),
        (row(LOGO_LONG), row(SFT_LONG_SAME_RATE)),
        *((row(name), row(SFT_SAME_RATE)) for name in ("logo-lambda0.5", "logo-paper")),  # the best of one epoch
    ]
    compared += [(one, row(one.against)) for one in outcomes.rows if one.against]
    for one, other in compared:
        if not {one, other} <= set(outcomes.rows):
            continue  # not measured yet
        found = [estimate(measure, outcomes.change(one, other, measure), signed=True) for measure in measures]
        lines.append([one.label, other.label, *found])
    head = ["", "against", *(measure.label for measure in measures)]
    return Table("LOGO's settings against instruct tuning", head, lines, text_columns={1})


def claims_table(outcomes: Outcomes, claims: Sequence[Claim], title: str) -> Table:
    """Return a table of the claims, each with the difference that decides it."""
    lines = []
    for claim in claims:
        found = judge(claim, outcomes)
        seeds = ", ".join(value(claim.measure, number, signed=True) for number in found.by_seed)
        lines.append(
            [
                claim.text,
                f"{outcomes.row(claim.row).label} - {outcomes.row(claim.other).label}",
                claim.measure.label,
                estimate(claim.measure, found.change, signed=True),
                seeds,
                found.verdict,
            ]
        )
    head = ["the claim", "compared", "in", "difference [95 %]", "by seed", "here"]
    return Table(title, head, lines, text_columns={1, 2, 5})


def rates_table(outcomes: Outcomes) -> Table:
    """Return a table of the validation F1 of each method by learning rate."""
    found = outcomes.validation_f1
    rates = sorted({rate for scores in found.values() for rate in scores})

    def cell(name: str, rate: float) -> str:
        if rate not in found[name]:
            return "-"
        if outcomes.has_collapsed(outcomes.row(name), outcomes.study.scale.seeds[0], rate):
            return "collapsed"
        shown = f"{100 * found[name][rate]:.1f}"
        return f"**{shown}**" if rate == outcomes.rates.get(name) else shown

    lines = [[outcomes.row(name).label, *(cell(name, rate) for rate in rates)] for name in found]
    return Table("Validation F1, %, by learning rate", ["", *(f"{rate:g}" for rate in rates)], lines)


def data_table(outcomes: Outcomes, names: Sequence[str]) -> Table:
    """Return a table of the contents of each data set."""
    lines = []
    for name in names:
        stats = outcomes.statistics(name)
        if stats is not None:
            lines.append([name, str(stats.questions), str(stats.kept), f"{stats.answer_in_critical:.0%}"])
    return Table("Data sets", ["", "questions", "kept", "answer in critical chunks"], lines)


def cost_table(outcomes: Outcomes, journal: Journal) -> Table:
    """Return a table of the time and memory of training and measuring one run of each row, that of the first seed."""
    study, lines = outcomes.study, []
    trained = {job.name: job for job in [*study.pilots(), *study.trainings(outcomes.rates)]}
    measured = {job.name: job for job in study.measurements(outcomes.rates)}
    for one in outcomes.rows:
        seed = outcomes.seeds(one)[0]
        rate = study.rate(one, outcomes.rates)
        run = study.run(one, seed, rate).relative_to(study.folder).as_posix()
        training = journal.taken(trained[run]) if one.overrides is not None else None
        measuring = journal.taken(measured[study.measured(one, seed).relative_to(study.folder).as_posix()])
        cells = ["-"] * 2 if training is None else [f"{training.cpu_seconds:.0f}", f"{training.peak_gib:.1f}"]
        lines.append([one.label, *cells, f"{measuring.cpu_seconds:.0f}", f"{measuring.peak_gib:.1f}"])
    head = ["", "training, core-seconds", "GiB", "measuring, core-seconds", "GiB"]
    return Table("What a row costs", head, lines)
