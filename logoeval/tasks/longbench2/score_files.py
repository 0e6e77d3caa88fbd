"""Score prediction files of LongBench v2, ours or those of the official ``pred.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from logodata.common.errors import UserError
from logoeval.records import PREDICTIONS_DIR, Outcome, SampleRow
from logoeval.tasks.longbench.data import JsonObject, read_lines
from logoeval.tasks.longbench2.data import CHOICES, NUM_QUESTIONS, groups
from logoeval.tasks.longbench2.scores import METRICS, extract_answer, scores

_FIELDS = ("answer", "difficulty", "length")


def find_predictions(source: Path) -> Path | None:
    """Return the file of LongBench v2's predictions that ``source`` is, or holds as the folder of a run; None if it is
    something else."""
    kept = source / PREDICTIONS_DIR if (source / PREDICTIONS_DIR).is_dir() else source
    path = kept / "longbench2.jsonl" if (kept / "longbench2.jsonl").is_file() else source
    if path != source and (kept / "longbench").is_dir():
        raise UserError(
            "holds predictions of LongBench and of LongBench v2",
            where=str(source),
            mend=f"give {kept / 'longbench'} or {path}",
        )
    if not path.is_file() or path.suffix.lower() != ".jsonl":
        return None
    first = next(read_lines(path), None)
    return path if first is not None and set(_FIELDS) <= first[1].keys() else None


def score_predictions(path: Path) -> Outcome:
    """Score a file. The letter is taken from ``pred`` where there is one, and else from ``response``.

    Raises:
        UserError: a line cannot be scored, or an id is there twice.
    """
    rows: list[SampleRow] = []
    seen: dict[str, str] = {}
    for number, (where, line) in enumerate(read_lines(path), 1):
        name = str(line.get("_id", line.get("id", number)))
        if name in seen:
            raise UserError(f"_id {name!r} is at {seen[name]} too", where=where, mend="drop one of the two rows")
        seen[name] = where
        answer, difficulty, length = (_text(line, field, where) for field in _FIELDS)
        if answer not in CHOICES:
            what = f"the answer {answer!r} is none of A, B, C and D"
            raise UserError(what, where=where, mend="give LongBench v2's rows as they are")
        facts = groups(difficulty, length, str(line.get("domain")), str(line.get("sub_domain")))
        found = scores(_choice(line, where), answer)
        rows.append(SampleRow(id=name, cluster=name, prompt_hash="", scores=found, facts=facts))
    measured = [metric for metric in METRICS if metric.key != "truncated"]
    return Outcome(measured, rows, list(_notes(rows)), {"predictions": str(path.resolve())})


def _choice(line: JsonObject, where: str) -> str | None:
    said, pred = line.get("response"), line.get("pred")
    if "pred" not in line and isinstance(said, str):
        return extract_answer(said.strip())
    if "pred" in line and (pred is None or pred in CHOICES):
        return pred if isinstance(pred, str) else None
    raise UserError(
        f"'pred' is {pred!r}, no letter", where=where, mend="a line has response, or pred from A to D or null"
    )


def _text(line: JsonObject, field: str, where: str) -> str:
    value = line.get(field)
    if not isinstance(value, str):
        raise UserError(f"no text under {field!r}", where=where, mend="give the lines of pred.py as they are")
    return value


def _notes(rows: list[SampleRow]) -> Iterator[str]:
    if len(rows) != NUM_QUESTIONS:
        yield f"{len(rows):,} questions, where LongBench v2 has {NUM_QUESTIONS}: no official score"
