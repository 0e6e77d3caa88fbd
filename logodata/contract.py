"""The data contract: what a source yields, what a build writes, what the trainer and the evaluator read.

A build's folder holds ``data/*.parquet`` with one :class:`PreferenceSample` a row. Prompts are stored as token ids,
chunk by chunk, so that the trainer sees exactly what the model saw and knows where each chunk begins (position
synthesis needs it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.common.json_files import Told
from logodata.common.parquet import parquet_rows
from logodata.common.records import Int32, Record, arrow_schema
from logodata.common.user_files import visible_files

SCHEMA_VERSION = 2

QuestionKind = Literal["single_detail", "multi_detail", "summary", "biography", "other"]
ResponseOrigin = Literal["live", "cache"]

RuleVerdict = Literal["right", "half_right", "wrong"]
"""What the judge's rules say of a response beside the references."""

_ROWS_PER_GROUP = 256
_ROWS_PER_BATCH = 32
_PLACE = re.compile(r"(.+):(\d+|row \d+)", re.DOTALL)


class Question(Record):
    """A question about a document. ``answers`` are acceptable references; ``evidence`` spans are in characters of the
    document."""

    id: str
    question: str = Field(min_length=1)
    answers: list[str] = Field(default_factory=list)
    kind: QuestionKind = "other"
    evidence: list[tuple[int, int]] = Field(default_factory=list)


class Document(Record):
    """A long text with its questions. ``where`` is ``file:line``, for messages."""

    doc_id: str
    text: str = Field(min_length=1)
    questions: list[Question]
    title: str = ""
    where: str = ""

    @property
    def source(self) -> str:
        """The file it stands in."""
        return file_of(self.where)


def file_of(where: str) -> str:
    """The file of a place: ``my.jsonl`` of ``my.jsonl:12``, ``org/name[train]`` of ``org/name[train]:row 3``; a text
    file is its own place."""
    match = _PLACE.fullmatch(where)
    return match[1] if match else where


@dataclass(frozen=True, slots=True)
class Chunk:
    """``token_ids`` of ``document.text[start:end]``; the chunks of a document follow each other without gap or
    overlap."""

    index: int
    start: int
    end: int
    token_ids: tuple[int, ...]


class ContextChunk(Record):
    """A chunk of the training context: its place in the document, its score, and where its tokens stand in the prompt.

    ``start`` and ``end`` are characters of the document; ``token_start`` and ``token_end`` index ``prompt_ids``.
    """

    doc_id: str
    index: Int32
    start: int
    end: int
    token_start: Int32
    token_end: Int32
    score: float
    critical: bool
    text: str


class Measures(Record):
    """How near a response comes to the reference answers (:mod:`logodata.judge.measures`), and what the judge's rules
    make of it. What was not measured is None: ``number_share`` where a reference holds no number, ``similarity`` where
    the judge does not ask for it."""

    word_share: float
    token_f1: float
    contains_reference: bool | None = None
    number_share: float | None = None
    similarity: float | None = None
    verdict: RuleVerdict | None = None


class _Generated(Record):
    strategy: str
    text: str
    token_ids: list[Int32]
    ended: bool


class Response(Measures, _Generated):
    """A response as it is trained on: ``token_ids`` hold the end-of-turn token if and only if ``ended``.

    ``strategy`` says which prompt produced it (``guided``, ``irrelevant``, ``mixed-0.5``, ...). ``origin`` tells
    responses of a cache from those generated in this build.
    """

    origin: ResponseOrigin = "live"


class PreferenceSample(Record):
    """One LOGO sample: a shared prompt, one preferred response, M dis-preferred ones (paper section 2)."""

    schema_version: Int32 = SCHEMA_VERSION
    id: str
    doc_id: str
    question_id: str
    kind: QuestionKind
    question: str
    answers: list[str]
    prompt_ids: list[Int32]
    chunks: list[ContextChunk]
    chosen: Response
    rejected: list[Response] = Field(min_length=1)
    answer_in_critical: bool
    """Whether the critical chunks of the context hold every content word of a reference answer."""

    @property
    def origin(self) -> ResponseOrigin:
        """``cache`` if any response came from a cache."""
        return "cache" if any(response.origin == "cache" for response in (self.chosen, *self.rejected)) else "live"


def write_samples(path: Path, samples: Iterable[PreferenceSample]) -> int:
    """Write samples to one parquet file, atomically; equal samples give equal bytes. Holds one row group in memory.

    Returns:
        how many there were.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from logodata.common.files import replacing

    rows, count, schema = iter(samples), 0, arrow_schema(PreferenceSample)
    with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := [sample.model_dump() for sample in islice(rows, _ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def read_samples(folder: Path) -> list[PreferenceSample]:
    """All samples of a build's folder, in file order; see :func:`iterate_samples`."""
    return list(iterate_samples(folder))


def iterate_samples(folder: Path) -> Iterator[PreferenceSample]:
    """The samples of a build's folder, in file order, a few at a time.

    Each has an id of its own in all files of the folder: positions, reference log-probabilities and answers are kept by
    it.

    Raises:
        UserError: no such folder, no finished build in it, another schema version, or an id that stands there twice.
    """
    places: dict[str, str] = {}
    for file in sample_files(folder):
        # Batches of few rows: a row group of a stranger's may hold any number.
        for number, row in parquet_rows(file, str(file), mend="build the data set again", batch_rows=_ROWS_PER_BATCH):
            if row.get("schema_version") != SCHEMA_VERSION:
                found = row.get("schema_version")
                raise UserError(
                    f"schema version {found}, this program reads {SCHEMA_VERSION}",
                    where=str(file),
                    mend="build the data set again",
                )
            try:
                sample = PreferenceSample.model_validate(row)
            except ValueError as error:
                raise UserError(
                    f"not a preference sample: {error}",
                    where=f"{file}:row {number}",
                    mend="build the data set again",
                ) from error
            if sample.id in places:
                raise UserError(
                    f"sample id {sample.id!r} stands at {places[sample.id]} too",
                    where=f"{file}:row {number}",
                    mend="give each sample its own id; parts of one build are put together by logodata merge",
                )
            places[sample.id] = f"{file}:row {number}"
            yield sample


def sample_files(folder: Path) -> list[Path]:
    """The parquet files of a build's folder, in order; none is opened.

    Raises:
        UserError: no such folder, or no finished build in it.
    """
    files = sorted(visible_files(folder / "data", (".parquet",), below=False))
    if not files:
        if folder.is_file():
            raise UserError(
                "a file, not a data set (pairs that are made already cannot be trained on)",
                where=str(folder),
                mend="give the folder that logodata build DOCUMENTS -o DIR writes",
            )
        state = "holds no finished build" if folder.is_dir() else "no such folder"
        raise UserError(state, where=str(folder), mend=f"run: logodata build FILE -o {folder}")
    return files


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a build: recipe, model and tokenizer fingerprints, engine, counts."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict):
        raise UserError("not a manifest", where=str(folder / "manifest.json"), mend="build the data set again")
    return Told(manifest, where=str(folder / "manifest.json"), mend="build the data set again")
