"""``logodata stats``: yield and purity by source file and kind of question, of several data sets side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from logodata.common.console import console
from logodata.common.errors import UserError
from logodata.common.files import differences
from logodata.common.json_files import strict_dumps
from logodata.contract import BuildIdentity, GroupStats, ImportManifest, Manifest, RuleVerdict, Stats
from logodata.dataset.card import PURITY, describe, largest_groups, named_values, show_percent, show_share, show_value
from logodata.dataset.files import read_stats
from logodata.dataset.samples import read_manifest

_NOT_COMPARED = ("engine", "judge.model.engine", "judge.grades.engine", "source.path", "source.questions")
"""Fields of a recipe that :func:`_compared` leaves out. Answers do not depend on engines, and documents have a line of
their own."""

_MEANING = f"\nPreferred, dis-preferred: responses judged right / half right / wrong. {PURITY}\n"


def print_stats(folders: Sequence[Path], *, as_json: bool) -> None:
    """Print the statistics of one data set, or of several side by side. Each folder is named once."""
    found = {str(folder): read_stats(folder) for folder in folders}
    if len(found) < len(folders):
        raise UserError("a folder is named twice", where=", ".join(map(str, folders)), mend="name each once")
    if as_json:
        shown = {name: stats.to_json() for name, stats in found.items()}
        print(strict_dumps(next(iter(shown.values())) if len(shown) == 1 else shown, indent=2, ascii_only=True))
    elif len(found) == 1:
        _print_one(next(iter(found.values())))
    else:
        _print_side_by_side(found)


def _print_lines(*lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _print_one(stats: Stats) -> None:
    _print_lines(describe(stats), f"evaluator: {_evaluator(stats)}\n" if stats.evaluator else "")
    if stats.evaluator:
        _print_yield(stats)
    shown = ("questions", "kept", "yield", "rejected by reason", "purity", "preferred judged", "dispreferred judged")
    rest = Table(show_header=False, box=None, pad_edge=False)
    for name, value in named_values(stats):
        if name not in (*shown, "evaluator"):
            rest.add_row(name, show_value(value))
    console.print(rest)


def _print_yield(stats: Stats) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("asked", "kept", "purity", "preferred", "dis-preferred"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("all", *_cells(stats))
    reasons = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("not kept", ""):
        reasons.add_column(heading, overflow="fold")
    for name, all_groups in stats.groups.items():
        groups, num_more = largest_groups(all_groups)
        for key, group in groups:
            title = f"{name} {key}"
            table.add_row(title, *_cells(group))
            if group.rejected_by_reason:
                reasons.add_row(title, show_value(group.rejected_by_reason).replace("_", " "))
        if num_more:
            table.add_row(f"{num_more} more: --json")
    console.print(table)
    if reasons.row_count:
        console.print()
        console.print(reasons)
    _print_lines(_MEANING)


def _cells(group: GroupStats) -> Iterator[str]:
    yield str(group.questions)
    yield show_share(group.kept, group.yield_)
    yield show_percent(group.purity)
    yield _judged(group.preferred_judged)
    yield _judged(group.dispreferred_judged)


def _judged(counts: dict[RuleVerdict, int]) -> str:
    return " / ".join(map(str, counts.values()))


def _print_side_by_side(found: dict[str, Stats]) -> None:
    all_stats = list(found.values())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right", overflow="fold")

    def row(title: str, cells: Iterable[str]) -> None:
        table.add_row(title, *cells)

    row("evaluator", map(_evaluator, all_stats))
    row("questions", (str(stats.questions) for stats in all_stats))
    row("kept", (show_share(stats.kept, stats.yield_) for stats in all_stats))
    row("purity", (show_percent(stats.purity) for stats in all_stats))
    row("preferred", (_judged(stats.preferred_judged) for stats in all_stats))
    row("dis-preferred", (_judged(stats.dispreferred_judged) for stats in all_stats))
    row("answer in critical chunks", (show_percent(stats.answer_in_critical) for stats in all_stats))
    for reason in dict.fromkeys(reason for stats in all_stats for reason in stats.rejected_by_reason):
        counts = (str(stats.rejected_by_reason.get(reason, 0)) for stats in all_stats)
        row(f"not kept: {reason.replace('_', ' ')}", counts)
    for name in all_stats[0].groups:
        table.add_section()
        for key in dict.fromkeys(key for stats in all_stats for key, _ in largest_groups(stats.groups[name])[0]):
            groups = [stats.groups[name].get(key) for stats in all_stats]
            kept = (f"{g.kept} of {g.questions} ({show_percent(g.yield_)})" if g else "-" for g in groups)
            row(f"{name} {key}: kept", kept)
            row("  purity", (show_percent(group.purity) if group else "-" for group in groups))
    console.print(table)
    _print_lines(_MEANING, *_compared([Path(name) for name in found]))


def _evaluator(stats: Stats) -> str:
    if stats.evaluator is None:
        return "none, imported"
    return f"{stats.evaluator.name}, {stats.evaluator.query.replace('_', ' ')}"


def _compared(folders: Sequence[Path]) -> Iterator[str]:
    """Yield lines that say how the documents and settings of the data sets differ."""
    manifests = [read_manifest(folder) if (folder / "manifest.json").is_file() else None for folder in folders]
    first = manifests[0]
    for folder, other in zip(folders[1:], manifests[1:], strict=True):
        if first is None or other is None:
            yield f"{folders[0]} and {folder}: one of them holds no pair, and no manifest.json to compare settings by"
            continue
        if isinstance(first, ImportManifest) or isinstance(other, ImportManifest):
            yield f"{folders[0]} and {folder}: imported pairs have no settings of a build to compare"
            continue
        if first.source.sha256 != other.source.sha256:
            paths = f"{first.source.path} and {other.source.path}"
            yield f"{folders[0]} and {folder} were made from different documents ({paths}): do not compare their yields"
        found = [it for it in differences(first.recipe, other.recipe) if not it[0].startswith(_NOT_COMPARED)]
        found += _unexplained(first, other, [key for key, *_ in found])
        settings = [f"{key} {show_value(old)} | {show_value(new)}" for key, old, new in found]
        yield f"{folders[0]} and {folder} differ in: " + ("; ".join(settings) or "no setting")


def _unexplained(first: Manifest, other: Manifest, settings: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what builds follow from and differ in though no setting tells: another model, adapter or template at the
    same place, or behind a server."""
    of_model = any(key in ("model", "adapter", "chat_template") for key in settings)
    of_judge = any(key.startswith(("judge.model", "judge.grades")) for key in settings)
    before, after = ({name: one.to_json().get(name) for name in BuildIdentity.model_fields} for one in (first, other))
    for key, old, new in differences(before, after):
        if not (of_judge or of_model if key.startswith("judge_") else of_model):
            yield key, old, new
