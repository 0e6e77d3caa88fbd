"""The needles' section of the report: maps of recall, a panel a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from logodata.common.markup import Html, join, tag
from logoeval.compare.compare import Comparison, Row, show_change
from logoeval.records import Excerpt
from logoeval.report import figures
from logoeval.report.measures import changes_table
from logoeval.report.tables import Section, all_points, figure
from logoeval.tasks.needles.scores import DEPTH_BINS, NiahFacts, depth_scores
from logoeval.tasks.needles.settings import NiahVariant

KeyT = TypeVar("KeyT")

_WHAT = {
    "multivalue": "Each prompt hides {num_values} seven-digit numbers under one name in a long text, and asks for all "
    "of them.",
    "single": "Each prompt hides a seven-digit number under a name in a long text, and asks for it.",
    "shared_answer": "Each prompt hides {num_values} sentences in a long text, each with one seven-digit number, and "
    "asks one question whose answer needs all of them.",
}
_TEXTS = {
    "noise": "the noise haystack repeats five plain sentences",
    "distractors": "distractors are sentences like the hidden ones, of other names",
}


class _Grid(Excerpt):
    """The settings of the task that say which samples there are."""

    variant: NiahVariant
    lengths: list[int]
    depths: list[int]
    num_samples: int
    num_values: int
    haystacks: dict[str, str]


def niah_section(comparison: Comparison) -> Section:
    """Return the section: recall by length and depth for a single needle; else by haystack and length, and by depth and
    length."""
    grid = _Grid.model_validate(comparison.runs[0].results.tasks["niah"].settings)
    texts = [_TEXTS.get(name, f"{name} is real text") for name in grid.haystacks]
    single = grid.variant == "single"
    table = changes_table(comparison, "niah")
    body = join(
        tag(
            "p",
            _WHAT[grid.variant].format(num_values=grid.num_values),
            f" Recall is the share that the response gives. Of the haystacks: {'; '.join(texts)}. ",
            f"A cell of the {'' if single else 'first '}figures stands for {grid.num_samples} "
            f"{'prompt' if grid.num_samples == 1 else 'prompts'}.",
        ),
        *(_maps(comparison, grid) if single else _random_depths(comparison, grid)),
        all_points(table),
    )
    return Section("Needles in a haystack: what the model finds", body, [table] if table else [])


def _maps(comparison: Comparison, grid: _Grid) -> Iterator[Html]:
    """A figure a haystack: depth by length, run beside run."""
    rows = {depth: f"{depth} %" for depth in grid.depths}
    means = {str(row.slice): row for row in comparison.rows if row.task == "niah" and row.metric.key == "recall"}
    for name in grid.haystacks:

        def scores(facts: NiahFacts, recall: float, name: str = name) -> dict[int, float]:
            return {facts.depth: recall} if facts.haystack == name and facts.depth is not None else {}

        mean = means.get(str({"haystack": name}), means["{}"])  # one haystack is no slice
        caption = (
            f"Haystack {name}: recall in percent by where in the text the number stood (0 % is the beginning) and "
            f"prompt length.{_means(comparison, mean)}"
        )
        titles = [
            f"{run.label}: mean {mean.metric.show(mean.values[i].value)}" for i, run in enumerate(comparison.runs)
        ]
        yield _figure(comparison, grid.lengths, rows, scores, "depth of the needle", caption, titles)


def _means(comparison: Comparison, row: Row) -> str:
    """The mean over a map for each run, and the paired difference; of more than two runs the tables tell it."""
    if len(comparison.runs) > 2:
        return ""
    (first, second), (difference,) = comparison.labels, row.differences
    before, after = (row.metric.show(value.value) for value in row.values)
    change = show_change(row, difference.change).replace("-", "\N{MINUS SIGN}")
    return f" Mean: {first} {before}; {second} {after}, difference {change}, {difference.verdict}."


def _random_depths(comparison: Comparison, grid: _Grid) -> Iterator[Html]:
    """Two figures: haystack by length, and depth by length over all haystacks."""

    def of_haystack(facts: NiahFacts, recall: float) -> dict[str, float]:
        return {facts.haystack: recall}

    def of_depth(facts: NiahFacts, _: float) -> dict[str, float]:
        return depth_scores(facts.depths, facts.found)

    names = {name: name for name in grid.haystacks}
    bins = {f"recall@{low}": f"{low} to {min(high, 100)} %" for low, high in DEPTH_BINS}
    by_depth = (
        "Recall in percent, by where in the text a number stood: 0 % is the beginning. A cell is the mean over the "
        "prompts that hide a number there."
    )
    by_haystack = "Recall in percent, by haystack and prompt length."
    yield _figure(comparison, grid.lengths, names, of_haystack, "haystack", by_haystack)
    yield _figure(comparison, grid.lengths, bins, of_depth, "depth of the needle", by_depth)


def _figure(
    comparison: Comparison,
    lengths: Sequence[int],
    rows: Mapping[KeyT, str],
    scores: Callable[[NiahFacts, float], Mapping[KeyT, float]],
    row_label: str,
    caption: str,
    titles: Sequence[str] = (),
) -> Html:
    """A map a run: the mean of ``scores``, which are made of the facts and the recall of a sample, by the keys of
    ``rows`` and by length. Over the maps stand ``titles``, or else the runs' labels."""
    maps = []
    columns = figures.token_labels(lengths)
    for run, title in zip(comparison.runs, titles or comparison.labels, strict=True):
        cells: dict[tuple[KeyT, int], list[float]] = {}
        for sample in run.results.tasks["niah"].samples:
            facts = NiahFacts.model_validate(sample.facts)
            for key, value in scores(facts, sample.scores["recall"]).items():
                cells.setdefault((key, facts.length), []).append(value)
        grid = [[float(np.mean(cells.get((key, length), [np.nan]))) for length in lengths] for key in rows]
        maps.append(figures.heat_map(title, list(rows.values()), columns, grid, row_label=row_label))
    return figure(maps, caption)
