"""Sections of the report: one for each task, one on the data, one on the training run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.markup import Html, join, number_cell, raw, tag
from logodata.common.run_dir import read_json
from logodata.contract import read_manifest, read_samples
from logoeval import figures
from logoeval.compare import Comparison, Row, Run, show_change
from logoeval.records import TaskName, is_cell
from logoeval.report_samples import held_out_samples, worked_samples


def pairs_section(comparison: Comparison, data: Path | None) -> Html:
    """Distribution of the margin, and three held-out questions as text."""
    columns = [_scores(run, "pairs", "margin") for run in comparison.runs]
    labels = [run.label for run in comparison.runs]
    panels = [figures.margin_histogram(labels, columns)]
    for number, (label, column) in enumerate(zip(labels[1:], columns[1:], strict=True), 1):
        changes = [after - before for before, after in zip(columns[0], column, strict=True)]
        panels.append(figures.change_histogram(f"{label} - {labels[0]}", changes, number))
    return join(
        tag("h2", "Held-out pairs: what the model would rather say"),
        tag(
            "p",
            "For each held-out question the model reads the context and is asked how likely it finds the preferred "
            "response and the dis-preferred ones. The margin is the difference of their mean log-probabilities a "
            "token. Training works on this number directly, so a larger margin shows that training did what it "
            "does; whether answers got better is for the measures that begin with “Answer”.",
        ),
        tag("p", _origin(comparison)),
        _overlap(comparison, data),
        tag(
            "figure",
            tag("div", *panels, class_="panels"),
            tag(
                "figcaption",
                f"Left: the margin of {len(columns[0])} held-out pairs, {labels[0]} dashed. Right of zero the "
                "preferred response is the likelier one. Then: how far each pair moved.",
            ),
        ),
        worked_samples(comparison),
    )


def _origin(comparison: Comparison) -> str:
    origins = Counter(row.facts["origin"] for row in comparison.runs[0].results.tasks["pairs"].samples)
    live, cached = origins["live"], origins["cache"]
    return f"Of the {live + cached} pairs, {live} were built live, {cached} with responses from the shipped cache."


def _overlap(comparison: Comparison, data: Path | None) -> Html:
    """Whether held-out questions share documents with the training data, where both folders are at hand."""
    held_out = held_out_samples(comparison)
    if data is None or not held_out:
        return raw("")
    trained = {chunk.doc_id for sample in read_samples(data) for chunk in sample.chunks}
    shared = sum(any(chunk.doc_id in trained for chunk in sample.chunks) for sample in held_out)
    if not shared:
        return tag("p", "None of their contexts holds a document that the training data hold, going by document names.")
    return tag(
        "p",
        tag("strong", f"{shared} of {len(held_out)} held-out contexts hold a document that the training data hold too"),
        ": what is measured on them is partly memory.",
    )


def perplexity_section(comparison: Comparison) -> Html:
    """The curve, with the change written in, its protocol, and its table."""
    settings = comparison.runs[0].results.tasks["ppl"].settings
    lengths, slides = settings["lengths"], settings.get("protocol") == "sliding"
    rows = {row.metric.key: row for row in comparison.rows if row.task == "ppl" and not row.slice}
    labels = [run.label for run in comparison.runs]
    panels = []
    titles = {"ppl": "perplexity of the first L tokens", "tail": "perplexity of tokens L/2 to L"}
    for kind, title in {"sliding": "perplexity of the document"}.items() if slides else titles.items():
        chosen = [rows[f"{kind}@{length}"] for length in lengths]
        columns = [[row.values[number].value for row in chosen] for number in range(len(labels))]
        notes = [row.metric.show_difference(row.differences[0].change.value) for row in chosen]
        x_label = "window, tokens" if slides else "L, tokens"
        panels.append(figures.curves(labels, lengths, columns, x_label=x_label, y_label=title, notes=notes))
    documents = next(iter(rows.values())).num_samples
    if slides:
        protocol = (
            f"{documents} documents of {settings['document_tokens']:,} tokens. For each point a window slides over "
            f"them by {settings['stride']:,} tokens at a time, and every token is scored once, with as much before it "
            "as the window holds (Press et al. 2021, as in the LOGO paper). All points score the same tokens."
        )
        caption = "A curve that falls to the right: the model makes use of what lies further back."
    else:
        protocol = (
            f"{documents} documents, each read once from its beginning (one pass, no sliding window), the same ones "
            "for every point."
        )
        caption = "Left: over all tokens read so far. Right: over the later half, which has most to look back on."
    return join(
        tag("h2", "Perplexity: whether the language model suffered"),
        tag(
            "p",
            f"How surprised the model is by real text: {protocol} Training on preferences should leave this alone; a "
            "rise means that something was forgotten. The lines often lie on one another, so the change from "
            f"{labels[0]} to {labels[1]} is written at each point.",
        ),
        tag(
            "figure",
            tag("div", *panels, class_="panels"),
            tag("figcaption", f"{caption} Dashed: {labels[0]}."),
        ),
        changes_table(comparison, "ppl"),
    )


def changes_table(comparison: Comparison, task: TaskName) -> Html:
    """All rows of a task that the first table leaves out, with intervals; without the cells of maps."""
    rows = [
        row
        for row in comparison.rows
        if row.task == task and (row.slice or not row.metric.headline) and not is_cell(row.slice)
    ]
    if not rows:
        return raw("")
    return tag("details", tag("summary", f"all {len(rows)} points with their intervals"), rows_table(comparison, rows))


def rows_table(comparison: Comparison, rows: Sequence[Row]) -> Html:
    """Rows of a comparison with the intervals of their differences."""
    first, *others = (run.label for run in comparison.runs)
    texts = ["measure", "n", first, *others, *(f"{label} - {first} [95 %]" for label in others)]
    head = tag("tr", tag("th", texts[0]), *(tag("th", text, class_="n") for text in texts[1:]))
    body = []
    for row in rows:
        numbers = [str(row.num_samples), *(row.metric.show(value.value) for value in row.values)]
        numbers += [f"{show_change(row, difference.change)}" for difference in row.differences]
        body.append(tag("tr", tag("td", row.label), *(number_cell(text) for text in numbers)))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def data_section(folder: Path) -> Html:
    """How the training data were built: yield, reasons, origin, lengths.

    Raises:
        UserError: no finished build in the folder.
    """
    manifest, stats = read_manifest(folder), read_json(folder / "stats.json")
    reasons = stats["rejected_by_reason"]
    most = max(reasons.values(), default=1)
    recipe, origins = manifest["recipe"], stats["kept_by_origin"]
    origin = f"{origins.get('live', 0)} built live, {origins.get('cache', 0)} with responses from the shipped cache"
    facts = [
        ("source", manifest["source"]["path"]),
        ("written by", f"{manifest['model']} ({manifest['model_fingerprint']}), engine {manifest['engine']}"),
        (
            "preferred responses",
            f"{recipe['generation']['preferred']}, {_spread(stats['preferred_tokens'])} tokens, "
            f"{_percent(stats['preferred_ended'])} ended",
        ),
        (
            "dis-preferred responses",
            f"{stats['dispreferred_per_sample']} per sample, {_spread(stats['dispreferred_tokens'])} tokens, "
            f"{_percent(stats['dispreferred_ended'])} ended",
        ),
        (
            "reference words in them",
            f"{_percent(stats['preferred_word_share'])} and {_percent(stats['dispreferred_word_share'])}",
        ),
        ("prompts", f"{_spread(stats['prompt_tokens'])} tokens"),
        ("all answer words in the critical chunks", _percent(stats["answer_in_critical"])),
        ("judge", "on" if recipe["judge"]["enabled"] else "off"),
    ]
    rejected = [
        tag(
            "tr",
            tag("td", reason.replace("_", " ")),
            number_cell(str(count)),
            tag("td", tag("span", "", class_="bar", style=f"width:{8 * count / most:.2f}rem")),
        )
        for reason, count in reasons.items()
    ]
    table = tag("div", tag("table", tag("tbody", *rejected)), class_="scroll")
    return join(
        tag("h2", "How the training data were built"),
        tag("p", f"{stats['kept']} of {stats['questions']} questions gave a sample: {origin}."),
        tag(
            "div",
            tag(
                "table",
                tag("tbody", *(tag("tr", tag("th", name, scope="row"), tag("td", text)) for name, text in facts)),
            ),
            class_="scroll",
        ),
        join(tag("h3", "Questions not kept"), table) if rejected else "",
        tag(
            "p",
            "Where preferred responses end by themselves and dis-preferred ones do not, the model can learn to end "
            "its answers and nothing else: compare the two shares above with “Answer: ended by itself”.",
            class_="note",
        ),
    )


def _spread(values: dict[str, int] | None) -> str:
    return f"{values['min']:,} to {values['max']:,} (median {values['median']:,})" if values else "no"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def training_section(folder: Path) -> Html:
    """Loss and margin by step.

    Raises:
        UserError: no ``metrics.jsonl`` or no recipe in the folder.
    """
    recipe = read_json(folder / "recipe.resolved.json")
    path = folder / "metrics.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        steps, loss = ([record[key] for record in records] for key in ("step", "loss"))
        margin = [record["margin"] for record in records if "margin" in record]  # SFT computes none
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            "holds no training metrics", where=str(path), mend="give the folder of a logotrain run"
        ) from error
    if not steps:
        raise UserError("holds no training step", where=str(path), mend="run logotrain again")
    objective = dict(recipe["objective"])
    name = objective.pop("name")
    settings = ", ".join(f"{field} {value}" for field, value in objective.items())
    trained = "all weights" if recipe["tuning"] == "full" else f"LoRA rank {recipe['lora']['rank']}"
    return join(
        tag("h2", "The training run"),
        tag(
            "p",
            f"{steps[-1]} steps of {recipe['samples_per_step']} samples; objective {name} ({settings}); {trained}, "
            f"peak learning rate {recipe['optimizer']['lr']:g}.",
        ),
        tag(
            "figure",
            tag(
                "div",
                figures.step_curve("loss", steps, loss),
                figures.step_curve("margin, nats per token", steps, margin) if margin else "",
                class_="panels",
            ),
            tag(
                "figcaption",
                "Each step sees other samples, so within the first pass the curve also follows which of them are "
                "hard. What changed is better read off the held-out pairs above.",
            ),
        ),
    )


def _scores(run: Run, task: TaskName, key: str) -> list[float]:
    return [sample.scores[key] for sample in run.results.tasks[task].samples]
