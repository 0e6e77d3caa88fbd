"""Score existing prediction files: logoeval's, those in LongBench's official format, and other tools'."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from logodata.common.errors import UserError
from logodata.common.foreign_files import note_left_out
from logodata.common.records import ABSENT
from logodata.common.user_files import visible_files
from logoeval.intervals import summarise
from logoeval.records import PREDICTIONS_DIR, Metric, Outcome, SummaryRow, VersionedRecord
from logoeval.tasks.longbench.data import JsonObject, check_answers, length_of, read_lines, task_of, texts
from logoeval.tasks.longbench.metrics import CodeSimBackend
from logoeval.tasks.longbench.summary import Scored, best_score, metrics, notes, sample_rows
from logoeval.tasks.longbench.task import FOLDER
from logoeval.tasks.longbench.task_table import TASKS, Task, split_name

_HOW = 'a line is {"pred", "answers", "all_classes", "length"}, a file is named after its task'


@dataclass(frozen=True, slots=True)
class Prediction:
    """A response with its gold answers. ``id`` is None in the official format."""

    id: str | None
    response: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None
    length: int | None
    truncated: bool | None
    document: str | None
    where: str


_WITHOUT_DOCUMENTS = (
    "the files do not say which rows share a document, so rows were resampled one by one: where rows share one, the "
    "intervals are too short"
)


def score_predictions(source: Path, *, e: bool, code_sim: CodeSimBackend) -> tuple[Outcome, bool]:
    """Score a file, a folder of files, or the folder of a logoeval run. With ``e`` files without ``_e`` in their names
    are LongBench-E's, as the official script writes them. Return the scores, and whether they are LongBench-E's.

    Raises:
        UserError: there is nothing to score, or a line cannot be scored.
    """
    predictions, is_e = read_predictions(source, e=e)
    samples = []
    for task, members in ((TASKS[name], members) for name, members in predictions.items()):
        for number, found in enumerate(members):
            name = found.id or str(number)
            score, overflow = best_score(task, found.response, found.answers, found.all_classes, code_sim)
            cluster = f"{task.name}/{found.document or name}"
            samples.append(Scored(name, task, cluster, "", score, overflow, found.length, found.truncated))
    without = sum(found.document is None for members in predictions.values() for found in members)
    cuts_known = any(sample.truncated is not None for sample in samples)
    reported = metrics([TASKS[name] for name in predictions], e=is_e, truncation=cuts_known)
    rows, said = sample_rows(samples, reported, e=is_e), list(notes(samples, e=is_e, code_sim=code_sim))
    if without:
        said.append(_WITHOUT_DOCUMENTS)
    return Outcome(reported, rows, said, {"predictions": str(source.resolve())}), is_e


class ScoreRecord(VersionedRecord):
    """What ``logoeval score -o FILE`` writes."""

    benchmark: Literal["LongBench", "LongBench-E", "LongBench v2"]
    code_sim: CodeSimBackend | None = ABSENT
    sources: dict[str, str]
    notes: list[str]
    metrics: list[Metric]
    summary: list[SummaryRow]


def record(
    outcome: Outcome,
    benchmark: Literal["LongBench", "LongBench-E", "LongBench v2"],
    code_sim: CodeSimBackend | None = None,
) -> ScoreRecord:
    """Return the scores as they are written."""
    return ScoreRecord(
        benchmark=benchmark,
        code_sim=code_sim,
        sources=outcome.sources,
        notes=outcome.notes,
        metrics=outcome.metrics,
        summary=summarise(outcome.metrics, outcome.samples),
    )


def read_predictions(source: Path, *, e: bool) -> tuple[dict[str, list[Prediction]], bool]:
    """Read the predictions of each task, and return them and whether they are LongBench-E's.

    Raises:
        UserError: see :func:`score_predictions`.
    """
    found: dict[str, list[Prediction]] = {}
    kinds: dict[bool, str] = {}
    for path in _files(source):
        hinted = split_name(path.stem)
        for where, line in read_lines(path):
            content = _official(line)
            task, is_e = task_of(content.get("task", content.get("dataset")), hinted, where)
            kinds.setdefault(is_e or e, where)
            found.setdefault(task.name, []).append(_prediction(content, task, where))
    if not found:
        raise UserError("holds no predictions", where=str(source), mend=_HOW)
    if len(kinds) > 1:
        raise UserError(
            f"predictions of LongBench ({kinds[False]}) and of LongBench-E ({kinds[True]}) together",
            where=str(source),
            mend="score each by itself",
        )
    (is_e,) = kinds
    ordered = {name: found[name] for name in TASKS if name in found}
    for name, members in ordered.items():
        _check(TASKS[name], members, e=is_e)
    return ordered, is_e


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError("no such file or folder", where=str(source), mend=_HOW)
    ours = source / PREDICTIONS_DIR / FOLDER
    files = sorted(visible_files(ours if ours.is_dir() else source, (".jsonl",), below=False))
    if not files:
        raise UserError("holds no .jsonl file", where=str(source), mend=_HOW)
    if not ours.is_dir():
        note_left_out(source, files, ".jsonl files, without subfolders,")
    return files


def _official(line: JsonObject) -> JsonObject:
    """Return a line in the official format. LOGO's own code says ``pred_str`` and ``dataset_name``; samples of
    lm-evaluation-harness hold the row under ``doc`` and the response, perhaps in a list, under ``filtered_resps``."""
    if "pred_str" in line:
        return {"dataset": line.get("dataset_name"), **line, "pred": line["pred_str"]}
    row, said = line.get("doc"), line.get("filtered_resps", line.get("resps"))
    if isinstance(row, dict) and said:
        while isinstance(said, list) and said:
            said = said[0]
        return {**row, "pred": said}
    return line


def _prediction(content: JsonObject, task: Task, where: str) -> Prediction:
    response = content.get("pred", content.get("response"))
    if not isinstance(response, str):
        raise UserError("no text under 'pred'", where=where, mend=_rename(content, where))
    answers, classes = texts(content, "answers", where) or (), texts(content, "all_classes", where)
    check_answers(task, answers, classes, where)
    sample_id, truncated = content.get("_id", content.get("id")), content.get("truncated")
    return Prediction(
        id=None if sample_id is None else str(sample_id),
        response=response,
        answers=answers,
        all_classes=classes,
        length=length_of(content),
        truncated=truncated if isinstance(truncated, bool) else None,
        document=document if isinstance(document := content.get("document"), str) else None,
        where=where,
    )


def _rename(content: JsonObject, where: str) -> str:
    """Say how another tool's file becomes one that is read. Of its fields the one that looks most like a response is
    named."""
    texts = [name for name, value in content.items() if isinstance(value, str) and name.isidentifier()]
    likely = (name for name in texts if re.search("pred|resp|output|gener|completion|text", name, re.IGNORECASE))
    field = next(likely, "RESPONSE")
    gold = "answers" if "answers" in content else next((name for name in content if "answer" in name), "GOLD")
    file = Path(where.rpartition(":")[0])
    fields = f"pred: .{field}, answers: .{gold}, all_classes, length"
    return f"rename it: jq -c '{{{fields}}}' {file.name} > renamed/TASK.jsonl"


def _check(task: Task, members: list[Prediction], *, e: bool) -> None:
    """Refuse repeated or too many rows. A script that appends to its file repeats all rows when it runs again."""
    if e and not task.in_e:
        raise UserError(f"{task.name} is not a task of LongBench-E", where=members[0].where, mend="score without -e")
    seen: dict[str, str] = {}
    for prediction in members:
        if prediction.id is None:
            continue
        if prediction.id in seen:
            raise UserError(
                f"{task.name}: id {prediction.id!r} is at {seen[prediction.id]} too",
                where=prediction.where,
                mend="keep one of the two lines",
            )
        seen[prediction.id] = prediction.where
    if 0 < len(seen) < len(members):
        where = next(prediction.where for prediction in members if prediction.id is None)
        raise UserError(f"{task.name}: a line has no id, others have one", where=where, mend="drop it")
    half, keys = len(members) // 2, [(member.answers, member.length) for member in members]
    if not seen and half >= 10 and keys[:half] == keys[half:]:  # a few rows can be equal by chance
        raise UserError(
            f"{task.name}: the second half of {len(members)} lines answers the same samples as the first",
            where=members[half].where,
            mend="keep one run's lines",
        )
    if not e and len(members) > task.num_rows:
        raise UserError(
            f"{task.name}: {len(members)} lines, LongBench has {task.num_rows} rows",
            where=members[task.num_rows].where,
            mend="keep one line a sample; for predictions of LongBench-E give -e",
        )
