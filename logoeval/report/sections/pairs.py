"""The section on held-out pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from logodata.common.markup import Html, join, raw, tag
from logodata.dataset.samples import iterate_samples
from logoeval.compare.compare import Comparison
from logoeval.report import figure_style, figures
from logoeval.report.sections.worked_samples import held_out_samples, worked_samples
from logoeval.report.tables import Section, figure


def pairs_section(comparison: Comparison, data: Path | None) -> Section:
    """Return the section: the distribution of the margin, and three held-out questions as text."""
    results = [run.results.tasks["pairs"] for run in comparison.runs]
    columns = [[sample.scores["margin"] for sample in result.samples] for result in results]
    origins = Counter(row.facts["origin"] for row in results[0].samples)
    live, cached, given = origins["live"], origins["cache"], origins["import"]
    labels = comparison.labels
    several = len(labels) > 2
    margins = [figures.margin_histogram(labels, columns, number, titled=several) for number in range(1, len(labels))]
    changes = []
    for number, (label, column) in enumerate(zip(labels[1:], columns[1:], strict=True), 1):
        moved = [after - before for before, after in zip(columns[0], column, strict=True)]
        changes.append(figures.change_histogram(f"{label} - {labels[0]}", moved, number))
    first = "Each panel" if several else "First"
    caption = (
        f"{first}: the margin of {len(columns[0])} held-out pairs, {labels[0]} dashed. Right of zero the preferred "
        "response is the likelier one."
    )
    body = join(
        tag(
            "p",
            "For each held-out question the model reads the context and is asked how likely it finds the preferred "
            "response and the dis-preferred ones. The margin is the difference of their mean log-probabilities a "
            "token. Training works on this number directly, so a larger margin shows that training did what it "
            "does; whether answers got better is for the measures that begin with “Answer”.",
        ),
        *(tag("p", tag("strong", f"Measured: {text}."), class_="limit") for text in comparison.limits.get("pairs", ())),
        tag("p", f"Of the {live + cached} pairs, {live} were built live, {cached} with responses from a cache.")
        if live + cached
        else tag("p", f"The {given} pairs were imported: their responses were written elsewhere."),
        _overlap(comparison, data),
        figure(
            margins if several else [*margins, *changes],
            caption if several else f"{caption} Second: how far each pair moved.",
            key=figure_style.key(labels),
        ),
        tag("details", tag("summary", "how far each pair moved"), figure(changes)) if several else "",
        worked_samples(comparison),
    )
    return Section("Held-out pairs: what the model would rather say", body)


def _overlap(comparison: Comparison, data: Path | None) -> Html:
    """Whether held-out questions share documents with the training data, where both folders are at hand."""
    held_out = held_out_samples(comparison)
    if data is None or not held_out:
        return raw("")
    prompts = Counter(tuple(sample.prompt_ids) for sample in held_out)
    trained: set[str] = set()
    trained_prompts: set[tuple[int, ...]] = set()
    has_chunks = any(sample.chunks for sample in held_out)
    for sample in iterate_samples(data):
        has_chunks = has_chunks or bool(sample.chunks)
        trained |= {chunk.doc_id for chunk in sample.chunks if chunk.doc_id is not None}
        trained_prompts |= prompts.keys() & {tuple(sample.prompt_ids)}
    if not has_chunks:
        return _prompt_overlap(sum(prompts[prompt] for prompt in trained_prompts), len(held_out))
    if not trained or not any(chunk.doc_id for sample in held_out for chunk in sample.chunks):
        return tag("p", "Whether they share documents with the training data is not known: imported pairs name none.")
    shared = sum(any(chunk.doc_id in trained for chunk in sample.chunks) for sample in held_out)
    if not shared:
        return tag("p", "None of their contexts holds a document that the training data hold, going by document names.")
    return tag(
        "p",
        tag("strong", f"{shared} of {len(held_out)} held-out contexts hold a document that the training data hold too"),
        ": what is measured on them is partly memory.",
    )


def _prompt_overlap(shared: int, num_held_out: int) -> Html:
    """Whether held-out pairs have prompts of the training data. Imported pairs name no documents."""
    if not shared:
        return tag("p", "None of their prompts stands in the training data. Whether they share documents is not known.")
    return tag(
        "p",
        tag("strong", f"{shared} of {num_held_out} held-out prompts stand in the training data too"),
        ": what is measured on them is partly memory.",
    )
