"""Put the documents of a study's splits together: those of the project, or a public corpus that the user gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from study.corpora import Document
from study.scale import DOCUMENTS

_EMBEDDED = {"train": "train", "heldout": "eval"}
"""The embedded documents that are added to a split. Those held out in ``make demo`` are held out here too."""

_STORIES = {"train": (0, 104), "validation": (110, 134), "heldout": (134, 238)}
"""The stories of each split of a corpus, from and to. A few are left over."""

_ASKED = {"train": 12, "validation": 5, "heldout": 4}
"""The most questions of a story in a split. They are spread evenly over it."""

_SINGLE, _SEVERAL = 8, 4
"""The questions of a story for training on questions of several kinds: with one answer, and with several."""


def own_documents(heldout_questions: int) -> dict[str, str]:
    """Return the documents of each split as JSON lines, the embedded ones before the study's.

    The documents of the fresh questions are the held-out ones with the questions that the held-out split does not ask:
    it asks the first ``heldout_questions`` of each.
    """
    found = {}
    for name in ("train", "validation", "heldout"):
        texts = [(DOCUMENTS / f"{name}.jsonl").read_text(encoding="utf-8")]
        if name in _EMBEDDED:
            embedded = resources.files("logodata.sources") / "embedded" / f"{_EMBEDDED[name]}.jsonl"
            texts.insert(0, embedded.read_text(encoding="utf-8"))
        found[name] = "".join(texts)
    documents = [json.loads(line) for line in found["heldout"].strip().split("\n")]
    for document in documents:
        asked = _details(document)[:heldout_questions]  # the builds choose the same ones
        document["questions"] = [question for question in document["questions"] if question not in asked]
    documents.sort(key=lambda document: not _details(document))  # a trial reads only the first documents
    return {**found, "fresh": _lines(documents)}


def split_corpus(documents: Sequence[Document]) -> dict[str, str]:
    """Return the documents of each split as JSON lines, with the questions that are asked.

    Stories are dealt by the hash of their names, so that the splits are the same on every machine. A story that has too
    few questions for a split is in none. ``train-kinds`` holds the stories of ``train``. In place of some questions
    with one answer it has ones with several: pairs of them as one question, and those that the corpus has on several
    sections.
    """
    least = max(_ASKED.values())
    usable = [document for document in documents if len(_details(document)) >= least]
    order = sorted(usable, key=lambda document: hashlib.sha256(document["doc_id"].encode()).hexdigest())
    found = {}
    for name, (start, end) in _STORIES.items():
        chosen = order[start:end]
        found[name] = _lines([{**one, "questions": _spread(_details(one), _ASKED[name])} for one in chosen])
        if name == "train":
            found["train-kinds"] = _lines([{**one, "questions": _several_kinds(one)} for one in chosen])
    return found


def _details(document: Document) -> list[Any]:
    return [question for question in document["questions"] if question["kind"] == "single_detail"]


def _spread(questions: Sequence[Any], number: int) -> list[Any]:
    """Return so many questions, evenly spaced."""
    number = min(number, len(questions))
    return [questions[place * len(questions) // number] for place in range(number)]


def _several_kinds(document: Document) -> list[Any]:
    """Return questions with one answer, then with several, of which the first are the corpus's own."""
    single = _spread(_details(document), _ASKED["train"])
    own = [question for question in document["questions"] if question["kind"] == "multi_detail"][: _SEVERAL // 2]
    left = single[_SINGLE:] + single[:_SINGLE]
    pairs = [_together(one, other) for one, other in zip(left[::2], left[1::2], strict=False)]
    several = [*own, *pairs][:_SEVERAL]
    # In turn, so that a build which keeps the first pairs keeps some of both.
    ordered = []
    for place in range(_SINGLE):
        ordered.append(single[place])
        if place % 2 and several:
            ordered.append(several.pop(0))
    return ordered


def _together(one: Any, other: Any) -> dict[str, Any]:
    """Return a question that asks for two answers."""
    return {
        "id": f"{one['id']}+{other['id'].rpartition('-')[2]}",
        "question": f"{one['question']} And {other['question'][:1].lower()}{other['question'][1:]}",
        "answers": [f"{one['answers'][0].rstrip('.')}; {other['answers'][0]}"],
        "kind": "multi_detail",
        "evidence": [*one["evidence"], *(span for span in other["evidence"] if span not in one["evidence"])],
    }


def _lines(documents: Sequence[Document]) -> str:
    return "".join(f"{json.dumps(document, ensure_ascii=False)}\n" for document in documents)
