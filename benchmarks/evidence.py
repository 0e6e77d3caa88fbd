"""Which evaluator finds the evidence: evidence recall at K chunks, on questions whose evidence is marked.

``python benchmarks/evidence.py --documents FILE --questions FILE --json FILE``

``FILE``s are JSONL: documents ``{doc_id, context}`` and questions ``{id, doc_id, question, answers, evidence}``, the
evidence being ``[[start, end], ...]`` in characters of the document. Questions without evidence or answer are left out
and counted.

Evidence recall at K of a question: the share of its evidence's characters that lie inside the K chunks with the highest
scores (ties in the order of the document, as a build breaks them). The figure is the mean over questions; its 95 %
interval is a bootstrap over documents. ``ceiling`` is the recall of the K chunks that hold most evidence: what the best
ranking of chunks of that size would reach; ``chance`` that of K random chunks.

Documents are cut and joined to contexts by the same code as in a build, and a context is scored once for all questions
and both forms of query. ``fused`` is computed from its members' scores by the evaluator's own function.

``--cost`` measures instead what a document costs to score with 1, 5, 10 and 20 questions, all together and one by one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logodata.build.preparing import Pool, QuestionPreparer
from logodata.common.errors import UserError, run_command
from logodata.contexts.scores import MEMBERS, Evaluator, fuse, open_evaluator
from logodata.contexts.settings import ChunkingSettings, EvaluatorSettings
from logodata.contract import Document, Question
from logodata.models.facts import model_window
from logodata.models.loading import load_tokenizer
from logodata.recipe.settings import BuildRecipe
from logodata.sources import SourceSettings
from logoeval.intervals import Estimate, estimate_difference, estimate_mean

CUTS = (1, 4, 16)
QUERIES = ("question", "question_and_answer")
PAPER_THRESHOLD = 6
Array = NDArray[np.float64]


def read_documents(documents: Path, questions: Path, most: int | None) -> tuple[list[Document], int]:
    """Documents with their questions that have evidence and an answer, and how many questions do not."""
    asked: dict[str, list[Question]] = defaultdict(list)
    left_out = 0
    for row in _rows(questions):
        if not row["evidence"] or not row["answers"]:
            left_out += 1
            continue
        asked[row["doc_id"]].append(
            Question(id=row["id"], question=row["question"], answers=row["answers"], evidence=row["evidence"])
        )
    found = [
        Document(doc_id=row["doc_id"], text=row["context"], questions=asked[row["doc_id"]]) for row in _rows(documents)
    ]
    return [document for document in found if document.questions][:most], left_out


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), mend="give a JSONL file") from error
    return (json.loads(line) for line in lines if line.strip())


def pools_of(documents: Sequence[Document], model: str, chunk_tokens: int, join_tokens: int | None) -> list[Pool]:
    """Contexts as a build makes them."""
    recipe = BuildRecipe(
        model=model,
        source=SourceSettings(path="-", join_tokens=join_tokens),
        chunking=ChunkingSettings(chunk_tokens=chunk_tokens),
    )
    return list(QuestionPreparer(recipe, load_tokenizer(model, None), model_window(model)).pools(documents))


def evidence_in_chunks(pool: Pool, document: Document, question: Question) -> Array:
    """Share of the evidence's characters in each chunk, [C]; sums to 1."""
    marked = np.zeros(len(document.text), dtype=bool)
    for start, end in question.evidence:
        marked[start:end] = True
    inside = [marked[chunk.start : chunk.end].sum() if owner is document else 0 for owner, chunk in pool.chunks]
    return np.asarray(inside, dtype=np.float64) / marked.sum()


def recall_at(scores: Array, shares: Array, cut: int) -> float:
    """Share of the evidence in the ``cut`` chunks with the highest scores [C]."""
    return float(shares[np.argsort(-scores, kind="stable")[:cut]].sum())


def measure(pools: Sequence[Pool], evaluators: dict[str, Evaluator]) -> dict[str, Any]:
    """Recall of every question under every evaluator and query, ``{key: {cut: [n]}}``, and what it took."""
    recalls: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    over: dict[str, list[bool]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    clusters: list[str] = []
    for number, pool in enumerate(pools):
        asked = [(document, question) for document in pool.documents for question in document.questions]
        texts = [pool.text(index) for index in range(len(pool.chunks))]
        plain = [question.question for _, question in asked]
        queries = [*plain, *(f"{question.question} {question.answers[0]}" for _, question in asked)]
        scores: dict[str, Array] = {}
        for name, evaluator in evaluators.items():
            started = time.perf_counter()
            scores[name] = evaluator.score(texts, queries)
            seconds[name] += time.perf_counter() - started
        scores["fused"] = fuse([scores[name] for name in MEMBERS])
        for row, (document, question) in enumerate(asked):
            shares = evidence_in_chunks(pool, document, question)
            clusters.append(document.doc_id)
            for cut in CUTS:
                recalls["ceiling"][cut].append(recall_at(shares, shares, cut))
                recalls["chance"][cut].append(min(cut / len(texts), 1))
                for name, values in scores.items():
                    for place, query in enumerate(QUERIES):
                        found = values[row + place * len(asked)]
                        recalls[f"{name}/{query}"][cut].append(recall_at(found, shares, cut))
            for place, query in enumerate(QUERIES):
                for name in scores:
                    if name.startswith("entity"):
                        most = scores[name][row + place * len(asked)].max()
                        over[f"{name}/{query}"].append(bool(most > PAPER_THRESHOLD))
        print(f"\r{number + 1}/{len(pools)} contexts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"recalls": recalls, "over": over, "seconds": dict(seconds), "clusters": clusters}


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Means with intervals, and how far each evaluator is from ``entity`` and ``lexical`` with the same query."""
    recalls, clusters = found["recalls"], found["clusters"]
    report: dict[str, Any] = {}
    for key, by_cut in recalls.items():
        report[key] = {f"recall@{cut}": _shown(estimate_mean(values, clusters)) for cut, values in by_cut.items()}
        name, _, query = key.partition("/")
        for base in ("entity", "lexical"):
            if query and name != base:
                before = recalls[f"{base}/{query}"]
                report[key][f"above_{base}"] = {
                    f"recall@{cut}": _shown(estimate_difference(before[cut], values, clusters))
                    for cut, values in by_cut.items()
                }
        if key in found["over"]:
            report[key][f"questions_with_a_chunk_over_{PAPER_THRESHOLD}"] = statistics.mean(found["over"][key])
    return report


def _shown(estimate: Estimate) -> dict[str, Any]:
    interval = estimate.interval and [round(bound, 4) for bound in estimate.interval]
    return {"value": round(estimate.value, 4), "interval": interval}


def measure_cost(pools: Sequence[Pool], evaluators: dict[str, Evaluator], repeats: int) -> dict[str, Any]:
    """Median seconds to score the context with most questions, questions together and one at a time, interleaved."""
    pool = max(pools, key=lambda pool: sum(len(document.questions) for document in pool.documents))
    asked = [question.question for document in pool.documents for question in document.questions]
    texts = [pool.text(index) for index in range(len(pool.chunks))]
    report: dict[str, Any] = {"chunks": len(texts), "questions": len(asked)}
    for name, evaluator in evaluators.items():
        evaluator.score(texts[:2], asked[:1])  # what is loaded on first use
        report[name] = {}
        for count in (1, 5, 10, 20):
            queries, rounds = asked[:count], []
            if len(queries) < count:
                raise UserError(f"no context has {count} questions", mend="raise --join-tokens")
            for _ in range(repeats):
                started = time.perf_counter()
                together = evaluator.score(texts, queries)
                middle = time.perf_counter()
                single = np.concatenate([evaluator.score(texts, [query]) for query in queries])
                rounds.append((middle - started, time.perf_counter() - middle))
                np.testing.assert_allclose(single, together, atol=1e-3)  # of chunks that tie, ranks may differ
            once, apart = (statistics.median(times) for times in zip(*rounds, strict=True))
            report[name][count] = {"together_s": once, "one_by_one_s": apart, "ratio": apart / once}
            times = f"{once:8.3f} s together, {apart:8.3f} s one by one, {apart / once:5.2f}x"
            print(f"{name:10} {count:3} questions: {times}")
    return report


def print_report(report: dict[str, Any]) -> None:
    """A table for a person."""
    bases = ("entity", "lexical")
    titles = [*(f"recall@{cut}" for cut in CUTS), *(f"@4 above {base}" for base in bases)]
    print(f"{'':34}" + "".join(f"{title:>26}" for title in titles))
    for key, figures in report.items():
        cells = [_cell(figures[f"recall@{cut}"]) for cut in CUTS]
        cells += [_cell(figures[f"above_{base}"]["recall@4"]) if f"above_{base}" in figures else "" for base in bases]
        print(f"{key:34}" + "".join(f"{cell:>26}" for cell in cells))


def _cell(figure: dict[str, Any]) -> str:
    value, interval = figure["value"], figure["interval"]
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=Path, required=True, metavar="FILE")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--model", default="embedded", help="whose tokenizer cuts chunks (default embedded)")
    parser.add_argument("--chunk-tokens", type=int, default=512, metavar="N", help="tokens a chunk (default 512)")
    parser.add_argument(
        "--join-tokens", type=int, default=16384, metavar="N", help="documents are joined to contexts of N (16384)"
    )
    parser.add_argument("--max-documents", type=int, metavar="N", help="only the first N")
    parser.add_argument("--spacy", metavar="MODEL", help="measure entities of this spaCy pipeline, too")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of --cost; figures are medians (default 3)")
    parser.add_argument("--cost", action="store_true", help="measure the cost of scoring instead")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    documents, left_out = read_documents(arguments.documents, arguments.questions, arguments.max_documents)
    if not documents:
        raise UserError("no question has evidence and an answer", where=str(arguments.questions))
    pools = pools_of(documents, arguments.model, arguments.chunk_tokens, arguments.join_tokens)
    evaluators = {name: open_evaluator(EvaluatorSettings(name=name)) for name in MEMBERS}
    if arguments.spacy:
        evaluators["entity-spacy"] = open_evaluator(EvaluatorSettings(name="entity", entity_model=arguments.spacy))
    tokens = [sum(len(chunk.token_ids) for _, chunk in pool.chunks) for pool in pools]
    questions = sum(len(document.questions) for document in documents)
    print(
        f"{len(documents)} documents, {questions} questions ({left_out} without evidence or answer left out), "
        f"{len(pools)} contexts of {min(tokens)} to {max(tokens)} tokens, chunks of {arguments.chunk_tokens}"
    )
    report: dict[str, Any] = {
        "documents": "/".join(arguments.documents.parts[-2:]),
        "num_documents": len(documents),
        "num_questions": questions,
        "num_left_out": left_out,
        "context_tokens": tokens,
        "chunk_tokens": arguments.chunk_tokens,
        "spacy": arguments.spacy,
        **environment(),
    }
    if arguments.cost:
        evaluators["fused"] = open_evaluator(EvaluatorSettings(name="fused"))
        report["cost"] = measure_cost(pools, evaluators, arguments.repeats)
    else:
        found = measure(pools, evaluators)
        report["evaluators"], report["seconds"] = summarise(found), found["seconds"]
        print_report(report["evaluators"])
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("torch", "sentence-transformers", "faiss-cpu", "bm25s", "numpy")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


if __name__ == "__main__":
    sys.exit(run_command("evidence.py", main, resume_hint="nothing was written"))
