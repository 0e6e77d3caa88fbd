"""Score prediction files of LongBench v2, ours or those of the official ``pred.py``."""

from __future__ import annotations

from pathlib import Path

from logodata.common.errors import UserError
from logoeval.records import PREDICTIONS_DIR, Outcome, SampleRow
from logoeval.tasks.longbench.data import JsonObject, read_lines
from logoeval.tasks.longbench2.data import CHOICES, add_id, answer_of, groups, notes_of_count, text_of
from logoeval.tasks.longbench2.scores import METRICS, extract_answer, scores

_FIELDS = {"answer", "difficulty", "length"}


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
    return path if first is not None and first[1].keys() >= _FIELDS else None


def score_predictions(path: Path) -> Outcome:
    """Score a file. The letter is taken from ``pred`` where there is one, and else from ``response``.

    Raises:
        UserError: a line cannot be scored, or an id is there twice.
    """
    rows: list[SampleRow] = []
    seen: dict[str, str] = {}
    for number, (where, line) in enumerate(read_lines(path), 1):
        name = str(line.get("_id", line.get("id", number)))
        add_id(seen, name, where)
        answer = answer_of(line, where)
        difficulty, length = (text_of(line, field, where) for field in ("difficulty", "length"))
        facts = groups(difficulty, length, str(line.get("domain")), str(line.get("sub_domain")))
        found = scores(_choice(line, where), answer)
        rows.append(SampleRow(id=name, cluster=name, prompt_hash="", scores=found, facts=facts))
    measured = [metric for metric in METRICS if metric.key != "truncated"]
    return Outcome(measured, rows, list(notes_of_count(len(rows))), {"predictions": str(path.resolve())})


def _choice(line: JsonObject, where: str) -> str | None:
    said, pred = line.get("response"), line.get("pred")
    if "pred" not in line and isinstance(said, str):
        return extract_answer(said.strip())
    if "pred" in line and (pred is None or pred in CHOICES):
        return pred if isinstance(pred, str) else None
    raise UserError(
        f"'pred' is {pred!r}, no letter", where=where, mend="a line has response, or pred from A to D or null"
    )
