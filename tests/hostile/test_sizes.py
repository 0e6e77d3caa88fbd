"""Small files that stand for large ones, and large ones, end in one line before they take the memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import logodata.engines.server_answers
import logoeval.tasks.longbench.data
from logodata.cli import main
from logodata.common import json_files
from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.common.json_files import json_objects, parse_json
from logodata.contract import DecisionRow
from logodata.dataset.files import iterate_rows
from logodata.engines.openai_engine import OpenAIEngine
from logodata.engines.response_log import _read_cache
from logodata.engines.settings import EngineSettings
from logodata.sources import SourceSettings, read_source
from logoeval.tasks.longbench.data import read_lines, read_rows
from tests.data_sets import recipe_json
from tests.logodata.dataset.test_inspect import write_data
from tests.logodata.engines.stub_server import StubServer

ROW = {"input": "Q", "context": "T", "answers": ["A"], "_id": "1"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """The bound of a line, so that the test needs no gigabyte."""
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 4096)
    return 4096


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in entries.items():
            made.writestr(name, data)
    return path


def test_a_zip_that_would_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is tried with the real number: the entry's head says five gigabytes, and nobody unpacks them."""
    bomb = archive(tmp_path / "data.zip", {"qasper.jsonl": json.dumps(ROW).encode()})
    whole = bytearray(bomb.read_bytes())
    place = whole.rindex(b"PK\x01\x02")
    whole[place + 24 : place + 28] = (0xFFFFFFFE).to_bytes(4, "little")
    bomb.write_bytes(whole)
    monkeypatch.setattr(logoeval.tasks.longbench.data, "MAX_ARCHIVE_BYTES", 2**31)
    with pytest.raises(UserError, match=r"would unpack to 4 GiB.*download LongBench's data\.zip again"):
        read_rows(bomb, None, False)


def test_a_zip_entry_is_not_longer_than_it_says(tmp_path: Path) -> None:
    line = json.dumps({**ROW, "context": "x" * 2**20}).encode() + b"\n"
    bomb = archive(tmp_path / "data.zip", {"qasper.jsonl": line * 50})
    whole = bytearray(bomb.read_bytes())
    place = whole.rindex(b"PK\x01\x02")
    whole[place + 24 : place + 28] = len(line).to_bytes(4, "little")
    bomb.write_bytes(whole)
    with pytest.raises(UserError, match="Bad CRC-32"):
        read_rows(bomb, None, False)


def test_a_line_of_a_zip(tmp_path: Path, small: int) -> None:
    bomb = archive(tmp_path / "data.zip", {"qasper.jsonl": b"\n" + b" " * 2**26}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"data\.zip:qasper\.jsonl:2: a line of more than"):
        read_rows(bomb, None, False)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


LONG = b'{"id": "' + b"x" * 5000 + b'"}\n'


def _folder_with(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.rename(path.with_name(name))
        return path.parent

    return make


READERS: dict[str, Callable[[Path], Any]] = {
    "documents": lambda path: read_source(SourceSettings(path=str(path), format="jsonl")),
    "predictions": lambda path: list(read_lines(path)),
    "log": lambda path: AppendLog(path),
    "cache": _read_cache,
    "decisions": lambda path: list(iterate_rows(_folder_with("decisions.jsonl")(path), DecisionRow)),
    "json": read_json,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_line_without_end(tmp_path: Path, small: int, reader: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LONG)
    with pytest.raises(UserError, match="of more than 0 MiB"):
        READERS[reader](path)


def test_a_recipe_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "d.jsonl", "--model", "m", "--recipe", "/dev/zero", "--dry-run"]) == 2
    assert capsys.readouterr().err == "logodata: error: /dev/zero: more than 1 MiB (give a UTF-8 YAML file)\n"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"[" * 200_000, "nested too deeply|recursion depth"),
        (b'{"a":' * 200_000, "nested too deeply|recursion depth"),
        (b'{"context": "\\ud83d", "questions": [{"question": "Q", "answer": "A"}]}', "unpaired surrogate"),
        (b"\xff{}", "not UTF-8: byte 0"),
        (b"1" * 5000, "Exceeds the limit"),
    ],
)
def test_json_that_breaks_parsers(tmp_path: Path, reader: str, value: bytes, fault: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(value + b"\n")
    with pytest.raises(UserError, match=rf"\.jsonl(:1)?: .*({'damaged record' if reader == 'log' else fault})"):
        READERS[reader](path)


def test_parse_json() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00 \\\\ud83d"}') == {"a": "\N{GRINNING FACE} \\ud83d"}
    for text, said in [(b"[" * 10**5, "nested"), (b'["\\uD800"]', r"unpaired surrogate, \\ud800"), (b"{", "Expecting")]:
        with pytest.raises(ValueError, match=said):
            parse_json(text)


def test_objects_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xe2\x80\xa8"}\n{}\n')
    assert list(json_objects(path, mend="")) == [(f"{path}:1", {"a": "\u2028"}), (f"{path}:2", {})]
    path.write_bytes(b"{}\n[]\n")
    with pytest.raises(UserError, match=r"a\.jsonl:2: damaged: not a JSON object \(do so\)"):
        list(json_objects(path, mend="do so"))
    with pytest.raises(UserError, match="cannot read: Is a directory"):
        list(json_objects(tmp_path, mend="do so"))


def _one_value(text: str, rows: int) -> pa.Table:
    """A value that stands once in the file, and in every row."""
    return pa.table({"context": pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])})


def test_a_parquet_row_of_too_much(tmp_path: Path, small: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(_one_value("x" * 5000, 1000), path)
    with pytest.raises(UserError, match=r"a\.parquet:row 1: a row of more than"):
        read_source(SourceSettings(path=str(path)), needs_questions=False)


READ = """
import resource, sys
from pathlib import Path
import pyarrow.parquet
from logodata.common.errors import run_command
from logodata.common.parquet import parquet_rows

num_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**26
resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
sys.exit(run_command("read", lambda: sum(1 for _ in parquet_rows(Path(sys.argv[1]), "a.parquet", mend="do so"))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's memory so")
def test_a_parquet_row_that_exceeds_the_memory_of_its_process(tmp_path: Path) -> None:
    """Equal numbers take a few bytes of a file. Only a limit on the process bounds what they take when read."""
    numbers = pa.array(np.zeros(2**24, np.int64))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"context": pa.ListArray.from_arrays([0, len(numbers)], numbers)}), path)
    assert path.stat().st_size < 2**12
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"read: error: a\.parquet: cannot read as parquet: .*alloc.* \(do so\)\n", done.stderr)


def _claims_more_than_it_holds(path: Path) -> None:
    pq.write_table(pa.table({"context": ["T"] * 10}), path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x01\x00\x00\x00T", b"\xff\xff\xff\x7fT"))


def test_a_parquet_file_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _claims_more_than_it_holds(path)
    with pytest.raises(UserError, match="cannot read as parquet"):
        read_source(SourceSettings(path=str(path)), needs_questions=False)


@pytest.fixture
def server() -> Iterator[StubServer]:
    server = StubServer()
    yield server
    server.close()


def test_an_answer_without_end(server: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cards[0]["owned_by"] = "x" * 3000
    OpenAIEngine(EngineSettings(base_urls=(server.url,)), "m")
    monkeypatch.setattr(logodata.engines.server_answers, "MAX_ANSWER_BYTES", 2000)
    with pytest.raises(UserError, match=r"/v1/models: an answer of more than 0 MiB"):
        OpenAIEngine(EngineSettings(base_urls=(server.url,)), "m")


def test_a_compressed_answer_is_not_unpacked(server: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of them can be a gigabyte of text; nobody asked for compression."""
    packed = zlib.compress(b" " * 2**26)
    assert len(packed) < 2**19
    monkeypatch.setattr("tests.logodata.engines.stub_server.BODIES", {"bomb": packed})
    monkeypatch.setattr(
        "tests.logodata.engines.stub_server.HTTP_FAULTS", {"bomb": (200, {"Content-Encoding": "deflate"})}
    )
    server.models = "bomb"
    tracemalloc.start()
    with pytest.raises(UserError, match="the answer is not JSON"):
        OpenAIEngine(EngineSettings(base_urls=(server.url,)), "m")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("manifest.json", "{}", "manifest.json: damaged: lacks 'schema_version'"),
        ("manifest.json", "[]", "manifest.json: damaged: not a JSON object"),
        ("manifest.json", json.dumps({"recipe": recipe_json()}), "manifest.json: damaged: lacks 'schema_version'"),
        ("stats.json", '{"questions": "x"}', "stats.json: damaged: 'questions': input should be a valid integer"),
        ("stats.json", "[]", "stats.json: damaged: not a JSON object"),
        ("rejected.jsonl", '{"id": "a"}\n', "rejected.jsonl:1: damaged: lacks 'doc_id'"),
        ("decisions.jsonl", '{"word_share": 0, "x": 1}\n', "decisions.jsonl:1: damaged: lacks 'id'"),
        ("decisions.jsonl", "", "decisions.jsonl keeps 0 responses, the data 3"),
        ("decisions.jsonl", "[]\n", "decisions.jsonl:1: damaged: not a JSON object"),
    ],
)
def test_a_data_set_whose_files_lack_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, said: str
) -> None:
    folder = write_data(tmp_path / "set", count=1)
    (folder / name).write_text(content)
    assert main(["inspect", str(folder), "--html", str(tmp_path / "page.html")]) == 2
    assert said in capsys.readouterr().err
