"""benchmarks/build.py and recovery.py still run, at the smallest size, and report what readers take from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from logodata.dataset.samples import read_samples


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def build(benchmarks: None) -> ModuleType:
    import build

    return build


@pytest.fixture
def recovery(benchmarks: None) -> ModuleType:
    import recovery

    return recovery


def test_scoring_compares_all_together_with_one_by_one(
    build: ModuleType, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SHORTEST_S", 0.0)
    file = tmp_path / "build.json"
    sizes = "scoring --evaluators entity lexical --rounds 2 --chunk-tokens 1024 --join-tokens 20000"
    assert build.main([*sizes.split(), "--model", str(tiny_model_dir), "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert "memory" not in report
    for rows in report["scoring"]["evaluators"].values():
        assert list(rows) == ["1", "5", "10", "20"]
        assert all(row["rounds"] == 2 and row["ratio"] > 0 for row in rows.values())
    assert report["scoring"]["evaluators"]["entity"]["10"]["target"] == pytest.approx(0.8 * 9.7)


def test_the_stub_answers_a_build_of_synthetic_documents(
    build: ModuleType, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from logodata import cli

    build.write_documents(tmp_path / "documents.jsonl", 3, 60)
    with build.stub_server(str(tiny_model_dir)) as url:
        assert cli.main(build.build_command(tmp_path, url, model=str(tiny_model_dir), chunk_tokens=16)) == 0
    samples = read_samples(tmp_path / "data")
    assert {sample.doc_id for sample in samples} == {"d0", "d1", "d2"}
    assert len(samples) == 6  # two questions a document, every pair kept
    assert all(response.ended for sample in samples for response in (sample.chosen, *sample.rejected))


def test_requests_of_the_five_questions_on_a_document(build: ModuleType, tiny_model_dir: Path) -> None:
    sizes = "--context-chunk-tokens 32 --num-chunks 4 --generation-documents 1 --preferred guided"
    arguments = build.parse(["generation", *sizes.split(), "--model", str(tiny_model_dir)])
    (requests,) = build.plan_requests(arguments, "guided")
    assert len({request.id for request in requests}) == 5 * (4 + 2)


def test_a_pace_says_how_long_a_build_still_takes(recovery: ModuleType) -> None:
    pace = recovery.Pace([10.0, 12.0, 15.0], 16.0)
    assert [pace.left(done) for done in (0, 1, 2, 3)] == [16.0, 16.0, 14.0, 11.0]


def test_lost_doubled_and_differing_are_told(recovery: ModuleType, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def folder(name: str, kept: list[str], rejected: list[str], engine: str, line: str) -> Path:
        path = tmp_path / name
        (path / "data").mkdir(parents=True)
        (path / "work").mkdir()
        pq.write_table(pa.table({"id": kept}), path / "data" / "train.parquet")
        (path / "rejected.jsonl").write_text("".join(json.dumps({"id": i, "reason": "r"}) + "\n" for i in rejected))
        (path / "README.md").write_text(f"made by {engine}, {name == 'other'}")
        (path / "manifest.json").write_text(json.dumps({"engine": engine, "samples": len(kept)}))
        (path / "work" / "responses.jsonl").write_text(line + '{"key": "torn')
        return path

    whole = '{"key": "k", "token_ids": [1]}\n'
    plain = folder("plain", ["a", "b"], ["c"], "vllm", whole)
    same = folder("same", ["a", "b"], ["c"], "none", whole)
    other = folder("other", ["a", "a"], ["b"], "vllm", whole + '{"key": "l", "token_ids": [2]}\n')
    asked = ["a", "b", "c"]

    def wrong(killed: Path, generated: int) -> list[str]:
        comparison = recovery.compare(plain, killed, asked)
        report = {"comparison": comparison, "generated_by_last_start": generated, "kills": [{}], "kills_wanted": 1}
        found: list[str] = recovery.verdict(report)
        return found

    assert wrong(same, 0) == []
    assert wrong(same, 1) == ["the engine's name differs, though the last start generated"]
    assert wrong(other, 1) == [
        "data/train.parquet differs",
        "rejected.jsonl differs",
        "README.md differs",
        "killed: 1 ids lost",
        "killed: 1 ids doubled",
    ]


def test_questions_are_drawn_several_a_document_from_every_file(recovery: ModuleType, tmp_path: Path) -> None:
    for name in "ab":
        documents = [{"doc_id": f"{name}{n}", "context": "word " * (5 if n < 5 else 500)} for n in range(6)]
        questions = [
            {"id": f"{name}{n}-{q}", "doc_id": f"{name}{n}", "question": "Q", "answers": ["A"], "kind": "other"}
            for n in range(6)
            for q in range(4)
        ]
        for kind, rows in (("docs", documents), ("qa", questions)):
            (tmp_path / f"{name}-{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / f"{name}-docs.jsonl") for name in "ab"], [str(tmp_path / f"{n}-qa.jsonl") for n in "ab"]
    sizes = ["--num-questions", "8", "--questions-per-document", "3", "--other-documents", "2", "--max-words", "100"]
    arguments = recovery.parse(["--documents", *files[0], "--questions", *files[1], *sizes])
    drawn = recovery.write_source(arguments, tmp_path)
    assert len(set(drawn)) == 8
    assert {i[0] for i in drawn} == {"a", "b"}
    documents = [json.loads(line)["doc_id"] for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert documents == sorted(documents)
    assert len(documents) == 3 + 2
    assert not {"a5", "b5"} & set(documents)
    assert recovery.write_source(arguments, tmp_path) == drawn
