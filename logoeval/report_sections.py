"""Sections of the report: one for each task, one on the data, one on the training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from logodata.common.errors import UserError
from logodata.common.json_lines import json_objects
from logodata.common.markup import Html, join, raw, tag
from logodata.common.run_dir import read_json
from logodata.contract import read_manifest, read_samples
from logodata.dataset_files import read_stats
from logoeval import figure_style, figures
from logoeval.compare import Comparison, Run
from logoeval.measures import measures_table
from logoeval.records import TaskName, is_cell
from logoeval.report_samples import held_out_samples, worked_samples
from logoeval.scope import limits
from logoeval.tables import Section, Table, details, titled


def pairs_section(comparison: Comparison, data: Path | None) -> Section:
    """Distribution of the margin, and three held-out questions as text."""
    columns = [_scores(run, "pairs", "margin") for run in comparison.runs]
    labels = [run.label for run in comparison.runs]
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
        *(
            tag("p", tag("strong", f"Measured: {text}."), class_="limit")
            for text in limits("pairs", comparison.runs[0].results.tasks["pairs"])
        ),
        tag("p", _origin(comparison)),
        _overlap(comparison, data),
        tag(
            "figure",
            figure_style.key(labels),
            panels(margins if several else [*margins, *changes]),
            tag("figcaption", caption if several else f"{caption} Second: how far each pair moved."),
        ),
        tag("details", tag("summary", "how far each pair moved"), tag("figure", panels(changes))) if several else "",
        worked_samples(comparison),
    )
    return Section("Held-out pairs: what the model would rather say", body)


def panels(drawings: Sequence[Html]) -> Html:
    """Panels side by side, as many as the window holds; more than two may leave the text's width."""
    return tag("div", *drawings, class_="panels wide" if len(drawings) > 2 else "panels")


def _origin(comparison: Comparison) -> str:
    origins = Counter(row.facts["origin"] for row in comparison.runs[0].results.tasks["pairs"].samples)
    live, cached = origins["live"], origins["cache"]
    return f"Of the {live + cached} pairs, {live} were built live, {cached} with responses from a cache."


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


def perplexity_section(comparison: Comparison) -> Section:
    """The curve, with the change of two runs written in, its protocol, and its table."""
    settings = comparison.runs[0].results.tasks["ppl"].settings
    lengths, slides = settings["lengths"], settings.get("protocol") == "sliding"
    rows = {row.metric.key: row for row in comparison.rows if row.task == "ppl" and not row.slice}
    labels = [run.label for run in comparison.runs]
    two = len(labels) == 2
    drawn = []
    titles = {"ppl": "perplexity of the first L tokens", "tail": "perplexity of tokens L/2 to L"}
    for kind, title in {"sliding": "perplexity of the document"}.items() if slides else titles.items():
        chosen = [rows[f"{kind}@{length}"] for length in lengths]
        columns = [[row.values[number].value for row in chosen] for number in range(len(labels))]
        notes = [row.metric.show_difference(row.differences[0].change.value) for row in chosen] if two else []
        x_label = "window, tokens" if slides else "L, tokens"
        drawn.append(figures.curves(labels, lengths, columns, x_label=x_label, y_label=title, notes=notes))
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
        caption = "First: over all tokens read so far. Second: over the later half, which has most to look back on."
    written = (
        f" The lines often lie on one another, so the change from {labels[0]} to {labels[1]} is written at each point."
        if two
        else ""
    )
    table = changes_table(comparison, "ppl")
    body = join(
        tag(
            "p",
            f"How surprised the model is by real text: {protocol} Training on preferences should leave this alone; a "
            f"rise means that something was forgotten.{written}",
        ),
        tag(
            "figure",
            figure_style.key(labels),
            panels(drawn),
            tag("figcaption", f"{caption} Dashed: {labels[0]}."),
        ),
        all_points(table),
    )
    return Section("Perplexity: whether the language model suffered", body, [table] if table else [])


def changes_table(comparison: Comparison, task: TaskName) -> Table | None:
    """All rows of a task that the first table leaves out, with intervals; without the cells of maps. None: no such
    row."""
    rows = [
        row
        for row in comparison.rows
        if row.task == task and (row.slice or not row.metric.headline) and not is_cell(row.slice)
    ]
    return measures_table(comparison, rows, f"All points of {task}") if rows else None


def all_points(table: Table | None) -> Html:
    """What :func:`changes_table` found, on demand."""
    return details(table, f"all {len(table.rows)} points with their intervals") if table else raw("")


def data_section(folder: Path) -> Section:
    """How the training data were built: yield, reasons, origin, lengths.

    Raises:
        UserError: no finished build in the folder.
    """
    manifest, stats = read_manifest(folder), read_stats(folder)
    reasons = stats["rejected_by_reason"]
    recipe, origins = manifest["recipe"], stats["kept_by_origin"]
    origin = f"{origins.get('live', 0)} built live, {origins.get('cache', 0)} with responses from a cache"
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
    built = Table("How the training data were built", ["", ""], facts, text_columns={1}, style="facts")
    rejected = Table(
        "Questions not kept",
        ["reason", "questions"],
        [(reason.replace("_", " "), str(count)) for reason, count in reasons.items()],
    )
    body = join(
        tag("p", f"{stats['kept']} of {stats['questions']} questions gave a sample: {origin}."),
        built.html(),
        titled(rejected) if reasons else "",
        tag(
            "p",
            "Where preferred responses end by themselves and dis-preferred ones do not, the model can learn to end "
            "its answers and nothing else: compare the two shares above with “Answer: ended by itself”.",
            class_="note",
        ),
    )
    return Section("How the training data were built", body, [built, rejected] if reasons else [built])


def _spread(values: dict[str, int] | None) -> str:
    return f"{values['min']:,} to {values['max']:,} (median {values['median']:,})" if values else "no"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


class _Objective(BaseModel):
    model_config = ConfigDict(extra="allow")  # its settings, by name

    name: str


class _Lora(BaseModel):
    rank: int


class _Optimizer(BaseModel):
    lr: float


class _Recipe(BaseModel):
    """What the section tells of a training run's recipe, perhaps of another version: not all that is in it."""

    objective: _Objective
    tuning: str
    lora: _Lora
    samples_per_step: int
    optimizer: _Optimizer


class _Step(BaseModel):
    step: int
    loss: float
    margin: float | None = None  # SFT computes none


_NO_RUN = "give the folder of a logotrain run"


def training_section(folder: Path) -> Section:
    """Loss and margin by step.

    Raises:
        UserError: no ``metrics.jsonl`` or no recipe in the folder, or not what logotrain writes there.
    """
    recipe = _read_recipe(folder / "recipe.resolved.json")
    path = folder / "metrics.jsonl"
    try:
        records = [_Step.model_validate(record) for _, record in json_objects(path, mend=_NO_RUN)]
    except ValidationError as error:
        raise UserError("holds no training metrics", where=str(path), mend=_NO_RUN) from error
    steps, loss = [record.step for record in records], [record.loss for record in records]
    margin = [record.margin for record in records if record.margin is not None]
    if not steps:
        raise UserError("holds no training step", where=str(path), mend="run logotrain again")
    settings = ", ".join(f"{field} {value}" for field, value in (recipe.objective.model_extra or {}).items())
    trained = "all weights" if recipe.tuning == "full" else f"LoRA rank {recipe.lora.rank}"
    body = join(
        tag(
            "p",
            f"{steps[-1]} steps of {recipe.samples_per_step} samples; objective {recipe.objective.name} ({settings}); "
            f"{trained}, peak learning rate {recipe.optimizer.lr:g}.",
        ),
        tag(
            "figure",
            panels(
                [
                    figures.step_curve("loss", steps, loss),
                    *([figures.step_curve("margin, nats per token", steps, margin)] if margin else []),
                ]
            ),
            tag(
                "figcaption",
                "Each step sees other samples, so within the first pass the curve also follows which of them are "
                "hard. What changed is better read off the held-out pairs above.",
            ),
        ),
    )
    return Section("The training run", body)


def _read_recipe(path: Path) -> _Recipe:
    try:
        return _Recipe.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the recipe"
        raise UserError(f"damaged: {place}: {fault['msg']}", where=str(path), mend=_NO_RUN) from error


def _scores(run: Run, task: TaskName, key: str) -> list[float]:
    return [sample.scores[key] for sample in run.results.tasks[task].samples]
