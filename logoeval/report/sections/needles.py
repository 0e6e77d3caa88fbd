"""The needles' section of the report: maps of recall, a panel a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from logodata.common.markup import Html, join, tag
from logoeval.compare.compare import Comparison, Row, show_change
from logoeval.records import SampleRow
from logoeval.report import figures
from logoeval.report.measures import changes_table
from logoeval.report.tables import Section, all_points, figure
from logoeval.tasks.needles.scores import DEPTH_BINS, depth_scores

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


def niah_section(comparison: Comparison) -> Section:
    """Recall by length and depth for a single needle; else by haystack and length, and by depth and length."""
    settings = comparison.runs[0].results.tasks["niah"].settings
    texts = [_TEXTS.get(name, f"{name} is real text") for name in settings["haystacks"]]
    single = settings.get("variant", "multivalue") == "single"
    table = changes_table(comparison, "niah")
    body = join(
        tag(
            "p",
            _WHAT[settings.get("variant", "multivalue")].format(**settings),
            f" Recall is the share that the response gives. Of the haystacks: {'; '.join(texts)}. ",
            f"A cell of the {'' if single else 'first '}figures stands for {settings['num_samples']} "
            f"{'prompt' if settings['num_samples'] == 1 else 'prompts'}.",
        ),
        *(_maps(comparison, settings) if single else _random_depths(comparison, settings)),
        all_points(table),
    )
    return Section("Needles in a haystack: what the model finds", body, [table] if table else [])


def _maps(comparison: Comparison, settings: dict[str, Any]) -> list[Html]:
    """A figure a haystack: depth by length, run beside run."""
    rows = {depth: f"{depth} %" for depth in settings["depths"]}
    drawn = []
    for name in settings["haystacks"]:

        def scores(sample: SampleRow, name: str = name) -> dict[int, float]:
            return {sample.facts["depth"]: sample.scores["recall"]} if sample.facts["haystack"] == name else {}

        mean = _mean_row(comparison, name)
        caption = (
            f"Haystack {name}: recall in percent by where in the text the number stood (0 % is the beginning) and "
            f"prompt length.{_means(comparison, mean)}"
        )
        titles = [
            f"{run.label}: mean {mean.metric.show(mean.values[i].value)}" for i, run in enumerate(comparison.runs)
        ]
        drawn.append(_figure(comparison, settings, rows, scores, "depth of the needle", caption, titles))
    return drawn


def _mean_row(comparison: Comparison, haystack: str) -> Row:
    rows = {str(row.slice): row for row in comparison.rows if row.task == "niah" and row.metric.key == "recall"}
    return rows.get(str({"haystack": haystack}), rows["{}"])  # one haystack is no slice


def _means(comparison: Comparison, row: Row) -> str:
    """The mean over a map for each run, and the paired difference; of more than two runs the tables tell it."""
    if len(comparison.runs) > 2:
        return ""
    first, *others = comparison.labels
    text = f" Mean: {first} {row.metric.show(row.values[0].value)}"
    for label, value, difference in zip(others, row.values[1:], row.differences, strict=True):
        change = show_change(row, difference.change).replace("-", "\N{MINUS SIGN}")
        text += f"; {label} {row.metric.show(value.value)}, difference {change}, {difference.verdict}"
    return f"{text}."


def _random_depths(comparison: Comparison, settings: dict[str, Any]) -> list[Html]:
    """Two figures: haystack by length, and depth by length over all haystacks."""

    def of_haystack(sample: SampleRow) -> dict[str, float]:
        return {sample.facts["haystack"]: sample.scores["recall"]}

    def of_depth(sample: SampleRow) -> dict[str, float]:
        return depth_scores(sample.facts["depths"], sample.facts["found"])

    names = {name: name for name in settings["haystacks"]}
    bins = {f"recall@{low}": f"{low} to {min(high, 100)} %" for low, high in DEPTH_BINS}
    by_depth = (
        "Recall in percent, by where in the text a number stood: 0 % is the beginning. A cell is the mean over the "
        "prompts that hide a number there."
    )
    by_haystack = "Recall in percent, by haystack and prompt length."
    return [
        _figure(comparison, settings, names, of_haystack, "haystack", by_haystack),
        _figure(comparison, settings, bins, of_depth, "depth of the needle", by_depth),
    ]


def _figure(
    comparison: Comparison,
    settings: dict[str, Any],
    rows: Mapping[KeyT, str],
    scores: Callable[[SampleRow], Mapping[KeyT, float]],
    row_label: str,
    caption: str,
    titles: Sequence[str] = (),
) -> Html:
    """A map a run: the mean of the samples' ``scores`` by their keys, those of ``rows``, and by length. Over the maps
    stand ``titles``, or else the runs' labels."""
    maps = []
    columns = figures.token_labels(settings["lengths"])
    for run, title in zip(comparison.runs, titles or comparison.labels, strict=True):
        cells: dict[tuple[KeyT, int], list[float]] = {}
        for sample in run.results.tasks["niah"].samples:
            for key, value in scores(sample).items():
                cells.setdefault((key, sample.facts["length"]), []).append(value)
        grid = [[float(np.mean(cells.get((key, length), [np.nan]))) for length in settings["lengths"]] for key in rows]
        maps.append(figures.heat_map(title, list(rows.values()), columns, grid, row_label=row_label))
    return figure(maps, caption)
