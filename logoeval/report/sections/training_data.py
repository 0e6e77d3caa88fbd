"""The section on how the training data were built."""

from __future__ import annotations

from pathlib import Path

from logodata.common.markup import join, tag
from logodata.contract import ImportManifest, Spread, Stats
from logodata.dataset.card import FORMAT_NAMES
from logodata.dataset.files import read_recipe, read_stats
from logodata.dataset.samples import read_manifest
from logodata.engines.settings import asked_model
from logoeval.report.tables import Section, Table, titled


def data_section(folder: Path) -> Section:
    """Return the section: yield, reasons, origin and lengths.

    Raises:
        UserError: the folder holds no finished build.
    """
    manifest, stats = read_manifest(folder), read_stats(folder)
    if isinstance(manifest, ImportManifest):
        return _imported_section(manifest, stats)
    recipe = read_recipe(folder)
    writer = asked_model(recipe.engine, manifest.model)
    writer += "" if recipe.adapter is None else f" with the adapter {recipe.adapter}"
    reasons, origins = stats.rejected_by_reason, stats.kept_by_origin
    origin = f"{origins.get('live', 0)} built live, {origins.get('cache', 0)} with responses from a cache"
    facts = [
        ("source", manifest.source.path),
        ("written by", f"{writer} ({manifest.model_fingerprint}), engine {manifest.engine}"),
        (
            "preferred responses",
            f"{recipe.generation.preferred}, {_spread(stats.preferred_tokens)} tokens, "
            f"{_percent(stats.preferred_ended)} ended",
        ),
        (
            "dis-preferred responses",
            f"{stats.dispreferred_per_sample} per sample, {_spread(stats.dispreferred_tokens)} tokens, "
            f"{_percent(stats.dispreferred_ended)} ended",
        ),
        (
            "reference words in them",
            f"{_percent(stats.preferred_word_share)} and {_percent(stats.dispreferred_word_share)}",
        ),
        ("prompts", f"{_spread(stats.prompt_tokens)} tokens"),
        ("all answer words in the critical chunks", _percent(stats.answer_in_critical)),
        ("judge", "on" if recipe.judge.enabled else "off"),
    ]
    built = Table("How the training data were built", ["", ""], facts, text_columns={1}, style="facts")
    rejected = Table(
        "Questions not kept",
        ["reason", "questions"],
        [(reason.replace("_", " "), str(count)) for reason, count in reasons.items()],
    )
    body = join(
        tag("p", f"{stats.kept} of {stats.questions} questions gave a sample: {origin}."),
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


def _imported_section(manifest: ImportManifest, stats: Stats) -> Section:
    """Return the section of pairs that were made elsewhere: what was read, and lengths."""
    title = "Where the training data come from"
    each = "one or more" if stats.dispreferred_per_sample is None else str(stats.dispreferred_per_sample)
    facts = [
        ("source", manifest.source.path),
        ("read as", FORMAT_NAMES[manifest.pairs.format]),
        ("tokenizer and template of", manifest.model),
        ("preferred responses", f"{_spread(stats.preferred_tokens)} tokens"),
        ("dis-preferred responses", f"{each} per sample, {_spread(stats.dispreferred_tokens)} tokens"),
        ("prompts", f"{_spread(stats.prompt_tokens)} tokens"),
    ]
    read = Table(title, ["", ""], facts, text_columns={1}, style="facts")
    rows = [(reason.replace("_", " "), str(count)) for reason, count in stats.rejected_by_reason.items()]
    rejected = Table("Pairs not kept", ["reason", "pairs"], rows)
    body = join(
        tag("p", f"{stats.kept} of {stats.questions} pairs were imported. Nothing was generated or judged here."),
        read.html(),
        titled(rejected) if rows else "",
    )
    return Section(title, body, [read, rejected] if rows else [read])


def _spread(values: Spread | None) -> str:
    return f"{values.min:,} to {values.max:,} (median {values.median:,})" if values else "no"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
