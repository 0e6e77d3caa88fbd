"""benchmarks/evidence.py: what it calls evidence recall."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from logodata.build.preparing import Pool
from logodata.contract import Chunk, Document, Question


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import evidence

    return evidence


def test_recall_is_the_share_of_evidence_characters_in_the_best_chunks(evidence: ModuleType) -> None:
    # Characters 8-11 and 10-21: 13 of them, two in chunk 0, ten in chunk 1, one in chunk 2.
    question = Question(id="q", question="Q", answers=["A"], evidence=[(8, 11), (10, 21)])
    document = Document(doc_id="d", text="x" * 25, questions=[question])
    other = Document(doc_id="e", text="y" * 25, questions=[])
    spans = [(0, 10), (10, 20), (20, 25)]
    chunks = [(owner, Chunk(n, *span, (0,))) for owner in (other, document) for n, span in enumerate(spans)]
    shares = evidence.evidence_in_chunks(Pool((other, document), tuple(chunks)), document, question)
    np.testing.assert_allclose(shares, np.array([0, 0, 0, 2, 10, 1]) / 13)
    scores = np.array([0.0, 5.0, 0.0, 5.0, 7.0, 1.0])
    recalls = [evidence.recall_at(scores, shares, cut) for cut in (1, 2, 3, 4)]
    # Of the chunks that tie for the second place, the one that stands first is taken.
    np.testing.assert_allclose(recalls, np.array([10, 10, 12, 13]) / 13)
    assert evidence.recall_at(shares, shares, 1) == pytest.approx(10 / 13)


def test_questions_without_evidence_or_answer_are_counted(evidence: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text('{"doc_id": "a", "context": "aa"}\n\n{"doc_id": "b", "context": "bb"}\n')
    (tmp_path / "qa.jsonl").write_text(
        '{"id": "1", "doc_id": "b", "question": "Q", "answers": ["A"], "evidence": [[0, 1]], "source": "s"}\n'
        '{"id": "2", "doc_id": "a", "question": "Q", "answers": ["A"], "evidence": []}\n'
        '{"id": "3", "doc_id": "b", "question": "Q", "answers": [], "evidence": [[0, 1]]}\n'
    )
    documents, left_out = evidence.read_documents(tmp_path / "docs.jsonl", tmp_path / "qa.jsonl", None)
    assert [(d.doc_id, [q.id for q in d.questions]) for d in documents] == [("b", ["1"])]
    assert left_out == 2
