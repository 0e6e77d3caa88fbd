"""The report: one self-contained HTML page, the same table as Markdown, the same numbers as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from logodata import __version__
from logodata.common.markup import Html, join, number_cell, page, raw, tag
from logodata.common.run_dir import write_atomic, write_json
from logoeval.compare import SCHEMA_VERSION, Comparison, Difference, Row, Run, markdown_table, show_change
from logoeval.longbench.report import longbench_section
from logoeval.niah.curve_report import curve_section
from logoeval.niah.report import niah_section
from logoeval.niah.retrieval_report import retrieval_section
from logoeval.report_sections import data_section, pairs_section, perplexity_section, training_section
from logoeval.short.report import short_section


def write_report(
    comparison: Comparison,
    path: Path,
    *,
    data: Path | None = None,
    run: Path | None = None,
    curves: Sequence[Path] = (),
) -> None:
    """Write ``path`` (HTML), and beside it the same with ``.md`` and ``.json``.

    Args:
        comparison: what to tell.
        path: the ``.html`` file.
        data: folder of the training data, to tell how they were built.
        run: folder of the training run, for its curve.
        curves: folders of needle tests over checkpoints.

    Raises:
        UserError: a folder does not hold what it should, or a file cannot be written.
    """
    html = render(comparison, data=data, run=run, curves=curves)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, html)
    write_atomic(path.with_suffix(".md"), _markdown(comparison))
    write_json(path.with_suffix(".json"), _record(comparison))


def render(
    comparison: Comparison, *, data: Path | None = None, run: Path | None = None, curves: Sequence[Path] = ()
) -> str:
    """The HTML page. All text from data is escaped; nothing is loaded from elsewhere."""
    style = resources.files("logoeval").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _headline(comparison),
        longbench_section(comparison) if "longbench" in comparison.tasks else raw(""),
        pairs_section(comparison, data) if "pairs" in comparison.tasks else raw(""),
        niah_section(comparison) if "niah" in comparison.tasks else raw(""),
        retrieval_section(comparison) if "niah" in comparison.tasks else raw(""),
        curve_section(curves) if curves else raw(""),
        perplexity_section(comparison) if "ppl" in comparison.tasks else raw(""),
        short_section(comparison) if "short" in comparison.tasks else raw(""),
        data_section(data) if data else raw(""),
        training_section(run) if run else raw(""),
        _provenance(comparison),
    ]
    return page(_title(comparison), style, *sections)


def _title(comparison: Comparison) -> str:
    return " and ".join(run.label for run in comparison.runs)


def _headline(comparison: Comparison) -> Html:
    first, *others = comparison.runs
    dates = sorted(result.provenance.date[:10] for run in comparison.runs for result in run.results.tasks.values())
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    rows = [row for row in comparison.rows if row.metric.headline and not row.slice]
    return join(
        tag("h1", "What the training changed" if len(comparison.runs) == 2 else "What each training changed"),
        tag("p", f"{_title(comparison)}, measured {span} on the same samples", class_="subtitle"),
        tag(
            "ul",
            *(tag("li", tag("strong", run.label), f": {_describe(run)}") for run in comparison.runs),
            class_="runs",
        ),
        *(
            tag("p", _summary(first, other, [(row, row.differences[number]) for row in rows]))
            for number, other in enumerate(others)
        ),
        _table(comparison, rows),
        tag(
            "p",
            "Differences are taken sample by sample, and the brackets are 95 % intervals from 10,000 resamplings "
            "(whole documents at a time where samples share one). A measure “rose” or “fell” if that interval "
            "leaves out zero; one measure in twenty does so by chance. With fewer than six independent samples no "
            "verdict is given.",
            class_="note",
        ),
    )


def _describe(run: Run) -> str:
    provenance = next(iter(run.results.tasks.values())).provenance
    adapter = f"adapter {provenance.adapter} ({provenance.adapter_fingerprint})" if provenance.adapter else "no adapter"
    return f"model {provenance.model} ({provenance.model_fingerprint}), {adapter}"


def _summary(first: Run, other: Run, moves: Sequence[tuple[Row, Difference]]) -> str:
    counts = Counter(_judged(row, difference) for row, difference in moves)
    phrases = {
        "better": "moved for the better",
        "worse": "moved for the worse",
        "moved": "moved where neither way is better",
        "no clear change": "show no clear change",
        "too few to tell": "have too few samples to tell",
    }
    parts = [f"{counts[key]} {phrase}" for key, phrase in phrases.items() if counts[key]]
    return f"Of {len(moves)} measures, from {first.label} to {other.label}: {', '.join(parts)}."


def _judged(row: Row, difference: Difference) -> str:
    """``better``, ``worse``, ``moved`` where neither is, or the verdict that says that it did not."""
    moved = {"rose": "higher", "fell": "lower"}.get(difference.verdict)
    if moved is None:
        return difference.verdict
    return "moved" if row.metric.better is None else "better" if moved == row.metric.better else "worse"


def _table(comparison: Comparison, rows: Sequence[Row]) -> Html:
    """The headline table; on a telephone each measure becomes a block, its numbers with their names before them."""
    first, *others = (run.label for run in comparison.runs)
    names = ["n", first, *others]
    head = [tag("th", "measure"), *(tag("th", name, class_="n") for name in names)]
    for label in others:
        change = "difference [95 %]" if len(others) == 1 else f"{label} - {first} [95 %]"
        head += [tag("th", change, class_="n"), tag("th", "verdict")]
    body = []
    for row in rows:
        better = f" {row.metric.better.capitalize()} is better." if row.metric.better else ""
        values = [str(row.num_samples), *(row.metric.show(value.value) for value in row.values)]
        cells = [tag("th", row.label, tag("span", row.metric.explanation + better, class_="hint"), scope="row")]
        cells += [number_cell(text, name) for name, text in zip(names, values, strict=True)]
        for label, difference in zip(others, row.differences, strict=True):
            cells.append(number_cell(show_change(row, difference.change), "change" if len(others) == 1 else label))
            cells.append(tag("td", _verdict(row, difference), class_="verdict"))
        body.append(tag("tr", *cells))
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="stacks")
    return tag("div", table, class_="scroll" if len(others) == 1 else "scroll wide")


def _verdict(row: Row, difference: Difference) -> Html:
    return tag("span", difference.verdict, class_=_judged(row, difference).replace(" ", "-"))


def _provenance(comparison: Comparison) -> Html:
    fields = ("device", "engine", "torch", "transformers", "logo_align", "date", "seconds")
    head = tag("tr", *(tag("th", text) for text in ("run", "task", *(field.replace("_", "-") for field in fields))))
    body = [
        tag(
            "tr",
            tag("td", run.label),
            tag("td", task),
            *(tag("td", _text(getattr(run.results.tasks[task].provenance, field))) for field in fields),
        )
        for run in comparison.runs
        for task in comparison.tasks
    ]
    notes = [
        f"{run.label}, {task}: {note}"
        for run in comparison.runs
        for task in comparison.tasks
        for note in run.results.tasks[task].notes
    ]
    settings = {task: comparison.runs[0].results.tasks[task].settings for task in comparison.tasks}
    return join(
        tag("h2", "Where the numbers come from"),
        tag(
            "p",
            "All runs were made with the settings below; model and adapter are all that differs. Each folder keeps "
            "every response and score.",
        ),
        tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll"),
        tag("ul", *(tag("li", note) for note in dict.fromkeys(notes)), class_="small") if notes else "",
        tag("details", tag("summary", "settings"), tag("pre", json.dumps(settings, indent=2, ensure_ascii=False))),
        tag(
            "footer",
            tag(
                "p",
                f"Written by logoeval {__version__} from {', '.join(str(run.folder) for run in comparison.runs)}.",
                class_="small",
            ),
        ),
    )


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:,.0f}" if isinstance(value, float) else str(value)


def _markdown(comparison: Comparison) -> str:
    runs = "\n".join(f"- **{run.label}**: {_describe(run)}" for run in comparison.runs)
    return (
        f"# {_title(comparison)}\n\n{runs}\n\n{markdown_table(comparison)}\n\nDifferences are paired; brackets are "
        "95 % bootstrap intervals. A measure rose or fell if its interval leaves out zero; with fewer than six "
        "independent samples no verdict is given.\n"
    )


def _record(comparison: Comparison) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {
                "label": run.label,
                "folder": str(run.folder),
                "tasks": {task: run.results.tasks[task].provenance.model_dump() for task in comparison.tasks},
            }
            for run in comparison.runs
        ],
        "settings": {task: comparison.runs[0].results.tasks[task].settings for task in comparison.tasks},
        "rows": [row.model_dump() for row in comparison.rows],
    }
