"""Keep the measurements of a study in one file, so that its report can be made again without training.

Of a corpus that does not come with the project the questions and references are left out. They are put back from the
user's copy.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.files import replacing, write_atomic
from logodata.common.json_files import json_objects, strict_dumps
from study.jobs import Study
from study.schedule import JOURNAL

_MEASURED = ("validation", "eval", "fresh", "curves")
_FILES = ("results.json", "predictions/*.jsonl")
_ASKED = ("qa.jsonl", "pairs.jsonl")
_OF_THE_CORPUS = ("question", "answers")
"""Files of predictions that hold text of the corpus, and their fields that do."""


def pack(study: Study, path: Path) -> None:
    """Write all results, answers and times of a study into ``path``. Equal measurements give equal bytes."""
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w:xz") as archive:
        for found in _files(study):
            data = found.read_bytes()
            if study.scale.corpus and found.name in _ASKED:
                rows = [json.loads(line) for line in data.decode("utf-8").splitlines()]
                data = _lines([{key: row[key] for key in row if key not in _OF_THE_CORPUS} for row in rows])
            info = tarfile.TarInfo(found.relative_to(study.folder).as_posix())
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def unpack(path: Path, study: Study) -> None:
    """Write what :func:`pack` kept into the folder of a study that has its documents and nothing else yet.

    Raises:
        UserError: The folder holds measurements, ``path`` is no such file, or it was made with other documents.
    """
    if (study.folder / JOURNAL).exists():
        raise UserError("holds measurements", where=str(study.folder), mend="leave --measured out, or move it away")
    mend = "give the measurements-SCALE.tar.xz of a report"
    scratch = study.folder / ".measurements"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with tarfile.open(path) as archive:
            archive.extractall(scratch, filter="data")
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise UserError(f"cannot be unpacked: {error}", where=str(path), mend=mend) from error
    if study.scale.corpus:
        asked = dict(_questions(study))
        for found in (path for name in _ASKED for path in scratch.glob(f"*/*/predictions/{name}")):
            rows = [row for _, row in json_objects(found, mend=mend)]
            unknown = next((row["id"] for row in rows if row["id"] not in asked), None)
            if unknown is not None:
                raise UserError(f"the corpus has no question {unknown!r}", where=str(path), mend="clone it again")
            write_atomic(found, _lines([{**row, **asked[row["id"]]} for row in rows]))
    # The journal comes last: what is not in it is not done.
    for found in sorted(scratch.rglob("*"), key=lambda file: file.name == JOURNAL):
        if found.is_file():
            target = study.folder / found.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            found.replace(target)
    shutil.rmtree(scratch)


def _files(study: Study) -> Iterator[Path]:
    yield study.folder / JOURNAL
    for name in _MEASURED:
        for pattern in _FILES:
            yield from sorted((study.folder / name).glob(f"*/{pattern}"))


def _questions(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("validation", "heldout"):
        for _, document in json_objects(study.documents(name), mend="run the study again"):
            for question in document["questions"]:
                yield question["id"], {field: question[field] for field in _OF_THE_CORPUS}


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{strict_dumps(row)}\n" for row in rows).encode()
