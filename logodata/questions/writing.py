"""Have a model write questions on raw documents (paper section 4: Qwen2-70B-Instruct on RedPajama).

For each question chunks are drawn as its evidence, and the model writes question and answer from them. A question is
kept if it has the form that was asked for, its answer rests on the evidence, and the model does not answer it without
context. Every other one is a row of the rejected file, with its reason.

As in a build, planning and checking are pure and run again on every start. What models write is on disk at once, and so
are the clusters of a document.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logodata.build.inputs import check_inputs
from logodata.common.console import note, progress
from logodata.common.errors import UserError
from logodata.common.files import append_lines, bind_settings, locked, read_json, write_atomic
from logodata.common.groups import in_groups
from logodata.common.json_files import strict_dumps
from logodata.contract import Document
from logodata.engines.settings import asked_fingerprint, asked_model, engine_window
from logodata.judge.settings import judge_engine
from logodata.questions.drafts import Draft, Written
from logodata.questions.grader import describe_grades
from logodata.questions.settings import QuestionsRecipe
from logodata.questions.writer import LOGS, Writer
from logodata.sources import Source, check_outside, read_source, source_fingerprint

_GROUP_CHARACTERS = 2**25
"""The most characters of documents that are kept until their questions are written, and those of one document more."""

_LEAST = "least_grade"  # in settings.json


def write_questions(recipe: QuestionsRecipe, output: Path) -> dict[str, Any]:
    """Write documents with questions, as ``logodata build`` reads them, to the JSON Lines file ``output``.

    Beside it are ``NAME.rejected.jsonl``, and ``NAME.work`` to continue from. A finished file is left alone, unless
    another least grade is asked for.

    Returns:
        Counts of documents, kept questions, and rejected ones by reason, and all grades; empty if the file was finished
        already.

    Raises:
        UserError: The source has a fault, the file is not this command's, or no question was kept.
    """
    if output.suffix != ".jsonl":
        raise UserError("not a .jsonl file", where=str(output), mend="give -o NAME.jsonl")
    if recipe.source.join_tokens is not None:
        raise UserError("source.join_tokens has no meaning here", mend="give it to logodata build")
    check_outside(recipe.source, output)
    check_inputs(recipe, recipe.source, output, judge=recipe.grade)
    work = output.with_suffix(".work")
    if output.exists() and not (work / "settings.json").exists():
        raise UserError("exists already, and is not this command's", where=str(output), mend="give another -o")
    fingerprint = asked_fingerprint(recipe.engine, recipe.model)
    settings = {
        "recipe": recipe.settings(),
        "source_fingerprint": source_fingerprint(recipe.source),
        "model_fingerprint": fingerprint,
        "window": engine_window(recipe.engine, recipe.model),
        _LEAST: recipe.grade.least if recipe.grade else None,
    }
    if recipe.grade is not None:
        engine, name = judge_engine(recipe, recipe.grade), recipe.grade.name or recipe.model
        settings |= {"grade_fingerprint": asked_fingerprint(engine, name), "grade_window": engine_window(engine, name)}
    with locked(work):
        is_finished = output.exists()
        if is_finished and read_json(work / "settings.json").get(_LEAST) == settings[_LEAST]:
            bind_settings(work, "settings.json", settings)
            note(f"{output} is finished already")
            return {}
        # A source with a fault does not bind the folder, so that it may be used there once it is mended. A model that
        # cannot be loaded does not bind it either: what is made first does.
        source = read_source(recipe.source, needs_questions=False, needs_references=False)
        started = is_finished or any((work / name).exists() for name in LOGS)
        bind_settings(work, "settings.json", settings, free=(_LEAST,), started=started)
        if is_finished:  # under another least grade, by which the file is made again from what is in the logs
            output.unlink()
        if held := source.documents.num_questions:
            note(f"{recipe.source.path}: {held} questions that the documents have already are kept beside the new ones")
        return _write_all(recipe, source, fingerprint, work, output)


def _characters(drafts: Sequence[Draft]) -> int:
    return len(drafts[0].document.text)


def _write_all(recipe: QuestionsRecipe, source: Source, fingerprint: str, work: Path, output: Path) -> dict[str, Any]:
    writer = Writer(recipe, work, fingerprint)
    reasons = Counter(row.reason for row in source.rejected)
    num_kept, name = 0, asked_model(recipe.engine, recipe.model)
    parts = {name: work / f"{name}.part" for name in ("documents", "rejected")}
    write_atomic(parts["documents"], "")
    write_atomic(parts["rejected"], "".join(_line(row.to_json()) for row in source.rejected))
    with progress("questions", len(source.documents)) as tracker:
        limits = (len, recipe.group_size), (_characters, _GROUP_CHARACTERS)
        for group in in_groups(map(writer.drafts, source.documents), *limits):
            kept, rows = writer.write([draft for drafts in group for draft in drafts], tracker)
            documents = (_document_row(drafts[0].document, kept, name, fingerprint) for drafts in group)
            append_lines(parts["documents"], "".join(map(_line, documents)))
            append_lines(parts["rejected"], "".join(_line({**row, "stage": "questions"}) for row in rows))
            reasons.update(row["reason"] for row in rows)
            num_kept += len(kept)
            tracker.advance(len(group), kept=num_kept)
    writer.note_usage()
    try:
        os.replace(parts["rejected"], output.with_suffix(".rejected.jsonl"))
        if num_kept:
            os.replace(parts["documents"], output)
    except OSError as error:
        raise UserError(
            f"cannot write: {error.strerror}", where=str(output), mend="give another -o, or mend its folder"
        ) from error
    stats = {
        "documents": len(source.documents),
        "kept": num_kept,
        "rejected_by_reason": dict(reasons.most_common()),
        "grades": writer.grades,
    }
    if not num_kept:
        mend = "look at the replies there; a stronger model writes better questions"
        if reasons.most_common(1)[0][0] == "too_few_clusters":
            mend = "take longer documents, or lower clusters.min_clusters or chunking.chunk_tokens"
        if reasons.most_common(1)[0][0] == "graded_too_low":
            mend = "lower grade.least: what was written and graded is kept, and nothing is asked again"
        found = describe_questions(stats).replace("\n", "; ")
        raise UserError(f"no question was kept: {found}", where=str(output.with_suffix(".rejected.jsonl")), mend=mend)
    return stats


def describe_questions(stats: dict[str, Any]) -> str:
    """Return a line with the number of questions that were kept, and why the others were not, and a line with the
    grades of those that were graded."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats["rejected_by_reason"].items())
    line = f"{stats['kept']} questions on {stats['documents']} documents"
    line = f"{line}; not kept: {reasons}" if reasons else line
    return f"{line}\n{describe_grades(stats['grades'])}" if stats["grades"] else line


def _document_row(document: Document, kept: Sequence[Written], model: str, fingerprint: str) -> dict[str, Any]:
    new = [written.as_question() for written in kept if written.draft.document.doc_id == document.doc_id]
    return {
        "doc_id": document.doc_id,
        "title": document.title,
        "written_by": f"{model} ({fingerprint})",
        "context": document.text,
        "questions": [question.model_dump() for question in (*document.questions, *new)],
    }


def _line(row: dict[str, Any]) -> str:
    return strict_dumps(row) + "\n"
