"""``logodata stats``: yield and purity by source, kind and reason, counted apart; several data sets side by side."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import logodata.build.responses
from logodata.cli import main
from logodata.contract import file_of
from logodata.dataset.samples import read_samples
from logodata.dataset.statistics import source_group
from logodata.engines import GenerationRequest, GenerationResult
from logodata.models.loading import load_tokenizer

SMALL = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
SMALL += ["contexts.critical_top=2", "generation.max_new_tokens=8"]


class Engine:
    """Right from critical chunks but for documents whose name ends in ``b``; wrong from others."""

    name = "scripted 1"

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = load_tokenizer(str(model_dir))

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in requests:
            question_id, _, strategy = request.id.rpartition("/")
            right = strategy == "model-0" and not question_id[:-3].endswith("b")
            text = f"It holds {question_id[:-3]}lanterns." if right else f"It holds {strategy} sand."
            yield GenerationResult(request.id, tuple(self._tokenizer.encode(text, add_special_tokens=False)), "stop")


@pytest.fixture(autouse=True)
def scripted(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: Engine(tiny_model_dir))


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """A folder of texts in two subfolders, with questions of two kinds; one text is empty, one is short."""
    folder, questions = tmp_path / "texts", []
    for place in ("books/milla", "books/millb", "books/short", "wiki/towera", "wiki/empty"):
        weather = [f"On day {day} nothing was written in {place} but wind of kind {day * 7}. " for day in range(20)]
        weather.insert(9, f"The loft of Vell holds {place}lanterns. ")
        text = {"books/short": "Short.", "wiki/empty": " "}.get(place, "".join(weather))
        file = folder / f"{place}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for kind in ("summary", "single_detail")[: 1 if place == "wiki/empty" else 2]:
            question = {"question": f"What does the loft hold, in {kind}?", "answers": [f"{place}lanterns"]}
            questions.append({"doc_id": place, "kind": kind, **question})
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return ["build", str(folder), f"source.questions={tmp_path / 'qa.jsonl'}", *SMALL]


def run_build(texts: list[str], model: Path, output: Path, *more: str) -> dict[str, Any]:
    assert main([*texts, *more, "--model", str(model), "-o", str(output)]) == 0
    stats: dict[str, Any] = json.loads((output / "stats.json").read_text())
    return stats


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_by_source_and_kind_is_what_the_files_hold(tmp_path: Path, texts: list[str], tiny_model_dir: Path) -> None:
    out = tmp_path / "out"
    stats = run_build(texts, tiny_model_dir, out)
    samples, rejected, decisions = read_samples(out), rows(out, "rejected.jsonl"), rows(out, "decisions.jsonl")
    assert (stats["questions"], stats["kept"]) == (9, 4) == (len(samples) + len(rejected), len(samples))
    for kind in ("summary", "single_detail"):
        found = stats["by_kind"][kind]
        assert found["kept"] == sum(sample.kind == kind for sample in samples)
        assert found["rejected_by_reason"] == Counter(row["reason"] for row in rejected if row["kind"] == kind)
    for name in ("books", "wiki"):
        found, folder = stats["by_source"][f"{tmp_path}/texts/{name}/"], f"{tmp_path}/texts/{name}/"
        lost = [row["reason"] for row in rejected if row["source"].startswith(folder)]
        kept = {row["id"] for row in decisions if row["kept"] and row["source"].startswith(folder)}
        assert kept <= {sample.id for sample in samples}
        assert (found["questions"], found["kept"]) == (len(kept) + len(lost), len(kept))
        assert found["rejected_by_reason"] == Counter(lost)
        for key, role in (("preferred_judged", "preferred"), ("dispreferred_judged", "rejected")):
            judged = Counter(r["verdict"] for r in decisions if r["role"] == role and r["source"].startswith(folder))
            assert {verdict: count for verdict, count in found[key].items() if count} == judged
    assert stats["preferred_judged"] == {"right": 4, "half_right": 0, "wrong": 2}
    assert (stats["purity"], stats["by_source"][f"{tmp_path}/texts/wiki/"]["yield"]) == (1.0, 2 / 3)
    assert stats["evaluator"] == {"name": "entity", "query": "question"}
    card = (out / "README.md").read_text()
    assert f"| source: {tmp_path}/texts/wiki/ | 3 | 2 (66.7%) | 100% | empty_document 1 |" in card


def test_a_switched_off_judge_lowers_purity(tmp_path: Path, texts: list[str], tiny_model_dir: Path) -> None:
    """It keeps the two pairs on ``millb`` with wrong preferred responses."""
    stats = run_build(texts, tiny_model_dir, tmp_path / "out", "judge.enabled=false")
    assert (stats["kept"], stats["purity"]) == (6, 4 / 6)
    books = stats["by_source"][f"{tmp_path}/texts/books/"]
    assert (books["kept"], books["purity"]) == (4, 0.5)


def test_the_table_and_two_evaluators_side_by_side(
    tmp_path: Path,
    texts: list[str],
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    texts[1] = "texts"
    one, two = Path("entity"), Path("lexical")
    run_build(texts, tiny_model_dir, one)
    run_build(texts, tiny_model_dir, two, "evaluator.name=lexical")

    def said(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["stats", *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    alone = said("entity")
    assert "evaluator: entity, question" in alone
    assert "all 9 4 (44.4%) 100% 4 / 0 / 2 0 / 0 / 8" in alone
    assert "source texts/wiki/ 3 2 (66.7%) 100% 2 / 0 / 0 0 / 0 / 4" in alone
    assert "kind summary 5 2 (40%) 100%" in alone
    assert "not kept source texts/books/ preferred wrong 2, no critical chunk 2 source texts/wiki/ empty doc" in alone
    assert "that no verdict contradicts" in alone
    both = said("entity", "lexical")
    assert "evaluator entity, question lexical, question" in both
    assert "questions 9 9" in both
    assert "not kept: empty document 1 1" in both
    assert "source texts/wiki/: kept 2 of 3 (66.7%) 2 of 3 (66.7%)" in both
    assert both.endswith("entity and lexical differ in: evaluator.name entity | lexical")
    manifest = json.loads((one / "manifest.json").read_text())
    shutil.copytree(one, "other")  # as of a server whose model was changed
    changed = {**manifest, "model_fingerprint": "claude@anthropic chat"}
    (Path("other") / "manifest.json").write_text(json.dumps(changed))
    expected = f"model_fingerprint {manifest['model_fingerprint']} | claude@anthropic chat"
    assert said("entity", "other").endswith(f"entity and other differ in: {expected}")
    found = json.loads(said("entity", "lexical", "--json"))
    assert found == {name: json.loads((Path(name) / "stats.json").read_text()) for name in ("entity", "lexical")}

    (tmp_path / "texts" / "wiki" / "towera.txt").write_text("Another text.")
    run_build(texts, tiny_model_dir, Path("third"))
    assert "entity and third were made from different documents" in said("entity", "third")


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "stats.json").write_text('{"kept": 3}')
    for arguments, fault in (
        (["stats", str(old)], "stats.json: damaged: lacks 'questions' (build the data set again)"),
        (["stats", str(tmp_path / "none")], "no such file"),
        (["stats", str(old), str(old), "--log-probs"], "--log-probs scores one data set"),
    ):
        assert main(arguments) == 2
        assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "file", "group"),
    [
        ("my.jsonl:12", "my.jsonl", "my.jsonl"),
        ("C:/a b/my:1.parquet:row 3", "C:/a b/my:1.parquet", "C:/a b/my:1.parquet"),
        ("org/name[train]:row 7", "org/name[train]", "org/name[train]"),
        ("texts/books/a.txt", "texts/books/a.txt", "texts/books/"),
        ("A.MD", "A.MD", "./"),
    ],
)
def test_the_file_of_a_place(where: str, file: str, group: str) -> None:
    assert file_of(where) == file
    assert source_group(file) == group
