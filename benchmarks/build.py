"""What ``logodata build`` costs: scoring, generation, memory.

``python benchmarks/build.py [scoring] [generation] [memory] [length] --json FILE``; without a part, all of them.
``--help`` lists every size.

- ``scoring``: seconds to score a document for 1, 5, 10 and 20 questions, all together as a build does it, against each
  question anew, which is what the published code does (it extracts the entities of every chunk again for every
  question). The scores are compared. The work saved cannot exceed the number of questions.
- ``generation``: one vLLM engine on the prompts that the preparer makes for five questions on a document: sorted in one
  submission with the prefix cache, against one and two at a time in random order without it (the published code keeps
  two in flight). Token ids are compared. Needs vLLM: ``--vllm PYTHON`` names an interpreter that has it.
- ``memory``: peak resident memory of ``logodata build`` in a process of its own for few and for many documents, against
  a stub server on the loopback that answers at once and a judge that keeps every pair, so that only the build's own
  memory counts.
- ``length``: seconds and peak memory of such a build by the length of its documents, with contexts of a quarter of a
  document (128K tokens of one with 512K) in chunks of 128 tokens; and the exponent of time in the length, 1 where it is
  linear. Seconds are those that the build's process has a CPU, after a short build in it has read what any build reads.
  And the peak of many of the longest documents beside that of few. The model gets a window that holds the contexts.

Documents are the embedded ones unless ``--documents FILE --questions FILE`` names others. In scoring and generation the
ways take turns within a round, rounds are paired, and figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from evidence import pools_of
from logodata.build.preparing import Pool, PreparedQuestion, QuestionPreparer
from logodata.common.errors import UserError, run_command
from logodata.contexts.scores import open_evaluator
from logodata.contexts.settings import ChunkingSettings, ContextSettings, EvaluatorSettings
from logodata.contract import Document
from logodata.engines import GenerationRequest
from logodata.models.facts import model_window
from logodata.models.loading import load_tokenizer, resolve_model
from logodata.recipe.settings import BuildRecipe, GenerationSettings
from logodata.sources import SourceSettings, read_source
from parts import parse_parts, parser_of_parts, run_parts
from serving import WAYS, requests_to_json, stub_server

EVALUATORS = ("entity", "lexical", "embedding", "fused")
COUNTS = {1: 1.0, 5: 4.9, 10: 9.7, 20: 18.9}
"""Questions on a document, and how many times less work spaCy's NER has if it sees them together."""
WITHIN = 0.8
"""Share of those that counts as reached."""
SHORTEST_S = 2.0
"""Quick evaluators are measured for at least this long."""


def source_of(arguments: argparse.Namespace) -> SourceSettings:
    """The documents to measure on."""
    if arguments.documents is None:
        return SourceSettings(path="embedded:train")
    questions = arguments.questions and str(arguments.questions)
    return SourceSettings(path=str(arguments.documents), questions=questions)


def documents_of(arguments: argparse.Namespace) -> list[Document]:
    """All documents with a question."""
    return [document for document in read_source(source_of(arguments)).documents if document.questions]


# Scoring


def measure_scoring(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to score one context, and ratios, by evaluator and number of questions."""
    pool = next(_pools_with(max(COUNTS), arguments), None)
    if pool is None:
        raise UserError(f"no context has {max(COUNTS)} questions", mend="raise --join-tokens")
    asked = [question.question for document in pool.documents for question in document.questions][: max(COUNTS)]
    texts = [pool.text(index) for index in range(len(pool.chunks))]
    tokens = sum(len(chunk.token_ids) for _, chunk in pool.chunks)
    print(f"scoring a context of {tokens} tokens, {len(texts)} chunks")
    report: dict[str, Any] = {"context_tokens": tokens, "chunks": len(texts), "evaluators": {}}
    for name in arguments.evaluators:
        report["evaluators"][name] = _time_scoring(name, texts, asked, arguments.rounds)
        for count, row in report["evaluators"][name].items():
            low, high = row["ratio_rounds"]
            print(
                f"{name:10} {count:3} questions: {row['together_s']:9.4f} s together, {row['one_by_one_s']:9.4f} s one "
                f"by one, {row['ratio']:5.2f}x ({low:.2f}-{high:.2f}), target {row['target']:.2f}"
            )
    return report


def _pools_with(questions: int, arguments: argparse.Namespace) -> Iterator[Pool]:
    pools = pools_of(documents_of(arguments), arguments.model, arguments.chunk_tokens, arguments.join_tokens)
    return (pool for pool in pools if sum(len(document.questions) for document in pool.documents) >= questions)


def _time_scoring(name: str, texts: list[str], asked: list[str], rounds: int) -> dict[int, dict[str, Any]]:
    evaluator = open_evaluator(EvaluatorSettings(name=name))
    evaluator.score(texts[:2], asked[:1])  # what is loaded on first use
    together: dict[int, list[float]] = {count: [] for count in COUNTS}
    apart: list[list[float]] = [[] for _ in asked]
    began = time.perf_counter()
    done = 0
    while done < rounds or time.perf_counter() - began < SHORTEST_S:
        order = list(COUNTS)
        order = order[done % len(order) :] + order[: done % len(order)]
        at_once = {}
        for count in order[: len(order) // 2]:
            at_once[count] = _clock(lambda n=count: evaluator.score(texts, asked[:n]))
        # Twenty questions one by one hold ten, and five, and one.
        single = [_clock(lambda q=question: evaluator.score(texts, [q])) for question in asked]
        for count in order[len(order) // 2 :]:
            at_once[count] = _clock(lambda n=count: evaluator.score(texts, asked[:n]))
        for times, (seconds, _) in zip(apart, single, strict=True):
            times.append(seconds)
        for count, (seconds, scores) in at_once.items():
            together[count].append(seconds)
            # Batches of other shapes sum embeddings in another order, and chunks that all but tie may swap ranks.
            np.testing.assert_allclose(np.concatenate([row for _, row in single[:count]]), scores, atol=1e-3)
        done += 1
    return {count: _ratio_row(together[count], apart[:count], target) for count, target in COUNTS.items()}


def _ratio_row(together: list[float], apart: list[list[float]], target: float) -> dict[str, Any]:
    """Figures of one number of questions, from the rounds' seconds for all together and for each question."""
    by_round = [sum(slow) / fast for *slow, fast in zip(*apart, together, strict=True)]
    one_by_one_s = sum(statistics.median(times) for times in apart)  # of each: one that met other work spoils no sum
    ratio = one_by_one_s / statistics.median(together)
    return {
        "together_s": statistics.median(together),
        "one_by_one_s": one_by_one_s,
        "ratio": ratio,
        "ratio_rounds": [min(by_round), max(by_round)],
        "rounds": len(by_round),
        "target": WITHIN * target,
        "reached": ratio >= WITHIN * target,
    }


def _clock(call: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    value = call()
    return time.perf_counter() - started, value


# Generation


def plan_requests(arguments: argparse.Namespace, preferred: str) -> list[list[GenerationRequest]]:
    """All requests of five questions, for each document."""
    recipe = BuildRecipe(
        model=arguments.model,
        source=source_of(arguments),
        chunking=ChunkingSettings(chunk_tokens=arguments.context_chunk_tokens),
        evaluator=EvaluatorSettings(name="lexical"),
        contexts=ContextSettings(
            num_chunks=arguments.num_chunks, critical_threshold=None, critical_top=arguments.num_chunks // 2
        ),
        generation=GenerationSettings.model_validate(
            {
                "preferred": preferred,
                "num_candidates": 4 if preferred == "guided" else 1,
                "max_new_tokens": arguments.max_new_tokens,
            }
        ),
    )
    preparer = QuestionPreparer(recipe, load_tokenizer(recipe.model, None), model_window(recipe.model))
    evaluator = open_evaluator(recipe.evaluator)
    found: list[list[GenerationRequest]] = []
    for document in documents_of(arguments):
        few = document.model_copy(update={"questions": document.questions[: arguments.questions_per_document]})
        every = [one for pool in preparer.pools([few]) for one in preparer.prepare_pool(pool, evaluator)]
        whole = [one for one in every if isinstance(one, PreparedQuestion)]
        if len(whole) == arguments.questions_per_document:
            found.append(
                [
                    replace(r, id=f"{preferred}/{r.id}")
                    for one in whole
                    for r in (*one.preferred, *one.rejected.values())
                ]
            )
        if len(found) == arguments.generation_documents:
            return found
    raise UserError(f"only {len(found)} documents have enough questions and chunks", mend="see --generation-documents")


def measure_generation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, tokens from the cache and equal responses of each way, for each kind of preferred answer."""
    planned = {preferred: plan_requests(arguments, preferred) for preferred in arguments.preferred}
    documents = [requests for lists in zip(*planned.values(), strict=True) for requests in lists]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "requests.json", Path(folder) / "result.json"
        source.write_text(json.dumps([requests_to_json(requests) for requests in documents]))
        command = [arguments.vllm, str(Path(__file__).with_name("serving.py")), "ways"]
        ended = subprocess.run([*command, resolve_model(arguments.model), str(source), str(target)], check=False)
        if ended.returncode:
            raise UserError(f"vLLM's process ended with {ended.returncode}", mend="see above; --vllm names its Python")
        result = json.loads(target.read_text())
    report: dict[str, Any] = {
        "engine": result["engine"],
        "vllm_threads": result["threads"],
        "ways": WAYS,
        "preferred": {},
    }
    for place, (preferred, lists) in enumerate(planned.items()):
        rows = range(place, len(documents), len(planned))
        report["preferred"][preferred] = _generation_row(result["ways"], lists, rows)
        _print_generation(preferred, report["preferred"][preferred])
    return report


def _generation_row(ways: dict[str, Any], lists: list[list[GenerationRequest]], rows: range) -> dict[str, Any]:
    requests = [request for requests in lists for request in requests]
    ours = ways["ours"]
    report: dict[str, Any] = {
        "requests": len(requests),
        "prompt_tokens": sum(len(request.prompt_ids) for request in requests),
        "ways": {},
    }
    for way, found in ways.items():
        seconds = [found["seconds"][row] for row in rows]
        by_round = [slow / ours["seconds"][row] for slow, row in zip(seconds, rows, strict=True)]
        report["ways"][way] = {
            "seconds": seconds,
            "cached_prompt_tokens": sum(found["cached_tokens"][row] for row in rows),
            "ours_is_faster": statistics.median(by_round),
            "ours_is_faster_rounds": [min(by_round), max(by_round)],
            "responses_equal_to_ours": sum(found["token_ids"][r.id] == ours["token_ids"][r.id] for r in requests),
        }
    return report


def _print_generation(preferred: str, row: dict[str, Any]) -> None:
    print(f"preferred={preferred}: {row['requests']} requests, {row['prompt_tokens']} prompt tokens")
    for way, found in row["ways"].items():
        low, high = found["ours_is_faster_rounds"]
        print(
            f"  {way:26} {sum(found['seconds']):7.1f} s, ours {found['ours_is_faster']:5.2f}x ({low:.2f}-{high:.2f}), "
            f"cached {found['cached_prompt_tokens']:6}, equal {found['responses_equal_to_ours']}/{row['requests']}"
        )


# Memory

_BUILD = """
import sys
from pathlib import Path
from logodata.cli import main
code = main(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(code)
"""
# Its own VmHWM as the build ends: what wait4 reports may hold the parent's memory from before the exec.


def write_documents(path: Path, count: int, words: int) -> None:
    """Synthetic documents of so many words with two questions each; the same for the same count."""
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(3000)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            text = rng.choices(lexicon, k=words)
            asked = [
                {"id": f"{number}-{n}", "question": f"What of {' '.join(text[at : at + 4])}?", "answers": [text[at]]}
                for n, at in enumerate((words // 4, words // 2))
            ]
            row = {"doc_id": f"d{number}", "context": " ".join(text), "questions": asked}
            file.write(json.dumps(row) + "\n")


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and time of a build, by number of documents."""
    report: dict[str, Any] = {"words_per_document": arguments.words, "builds": {}}
    for count in arguments.memory_documents:
        report["builds"][count] = found = _build_once(arguments, count)
        print(
            f"{count:6} documents: peak {found['peak_bytes'] / 2**20:7.0f} MiB, "
            f"{found['seconds']:7.1f} s, {found['seconds_per_document'] * 1e3:6.1f} ms a document"
        )
    peaks = {count: found["peak_bytes"] for count, found in report["builds"].items()}
    few, many = min(peaks), max(peaks)
    if few < many:
        report["peak_ratio"] = peaks[many] / peaks[few]
        report["bytes_per_document"] = (peaks[many] - peaks[few]) / (many - few)
        print(f"ratio {report['peak_ratio']:.3f}, {report['bytes_per_document'] / 1024:.1f} KiB more for each document")
    return report


def build_command(
    folder: Path, url: str, *, model: str, chunk_tokens: int = 32, num_chunks: int = 4, overrides: Iterable[str] = ()
) -> list[str]:
    """What follows ``logodata``: every pair kept, half of a context's chunks critical, into ``folder/data``."""
    recipe = folder / "recipe.yaml"  # empty: no other recipe's settings
    recipe.write_text("build: {}\n")
    command = ["build", str(recipe), "-o", str(folder / "data"), "--model", model]
    command += [f"source.path={folder}/documents.jsonl", f"chunking.chunk_tokens={chunk_tokens}"]
    command += [f"contexts.num_chunks={num_chunks}", "contexts.critical_threshold=null"]
    command += [f"contexts.critical_top={num_chunks // 2}", "generation.max_new_tokens=32"]
    command += ["judge.enabled=false", "engine.kind=openai", f"engine.base_urls=[{url}]"]
    return [*command, *overrides]


def _build_once(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    model = resolve_model(arguments.model)
    with tempfile.TemporaryDirectory() as name, stub_server(model) as url:
        folder = Path(name)
        write_documents(folder / "documents.jsonl", count, arguments.words)
        overrides = [f"generation.group_size={GROUP}", *arguments.overrides]
        build = build_command(folder, url, model=model, overrides=overrides)
        command = [sys.executable, "-c", _BUILD, str(folder / "status"), *build]
        started = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if ended.returncode:
            raise UserError(f"the build ended with {ended.returncode}: {ended.stderr[-2000:]}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        kept = json.loads((folder / "data" / "manifest.json").read_text())["samples"]
    peak = int(status["VmHWM"].split()[0]) * 1024
    return {
        "peak_bytes": peak,
        "seconds": seconds,
        "seconds_per_document": seconds / count,
        "pairs": kept,
    }


GROUP = 64
"""Questions a submission: small, so that the fewest documents fill several."""


# Length

LENGTH_CHUNK = 128
LENGTHS = (65536, 131072, 262144, 524288)
CONTEXT_SHARE = 4
"""A context is the document's length over this, so that all that a build does grows with the document."""


def with_window(model: str, window: int, folder: Path) -> Path:
    """A copy of a model folder, of links, whose config has another window. Nothing computes with it."""
    source = Path(resolve_model(model))
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": window}))
    return folder


def measure_length(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of a build by length of its documents, in rounds over the lengths."""
    lengths, count = sorted(arguments.lengths), arguments.length_documents
    with tempfile.TemporaryDirectory() as name:
        model = str(with_window(arguments.model, lengths[-1], Path(name) / "model"))
        words_per_token = _words_per_token(model, Path(name) / "documents.jsonl")
        rounds: list[dict[int, dict[str, Any]]] = []
        for number in range(arguments.length_rounds):
            order = lengths if number % 2 == 0 else lengths[::-1]
            rounds.append({n: _build_long(model, count, n, words_per_token, arguments.overrides) for n in order})
        most = arguments.length_many
        many = _build_long(model, most, lengths[-1], words_per_token, arguments.overrides)
    report: dict[str, Any] = {"documents": count, "lengths": {}}
    for length in lengths:
        builds = [found[length] for found in rounds]
        row: dict[str, Any] = {key: [found[key] for found in builds] for key in builds[0]}
        row |= {"cpu_seconds_median": statistics.median(row["cpu_seconds"])}
        report["lengths"][length] = row
        print(
            f"{length:7} tokens, contexts of {length // CONTEXT_SHARE:6}: {row['cpu_seconds_median']:6.2f} s of a CPU "
            f"for {count} documents, peak {statistics.median(row['peak_bytes']) / 2**20:6.0f} MiB"
        )
    if len(lengths) > 1:
        medians = [report["lengths"][length]["cpu_seconds_median"] for length in lengths]
        report["exponent"] = float(np.polyfit(np.log(lengths), np.log(medians), 1)[0])
        print(f"time grows as the length to the power of {report['exponent']:.2f}")
    few = statistics.median(report["lengths"][lengths[-1]]["peak_bytes"])
    report["many"] = {"documents": most, **many, "peak_ratio": many["peak_bytes"] / few}
    print(
        f"{most} documents of {lengths[-1]} tokens: peak {many['peak_bytes'] / 2**20:.0f} MiB, "
        f"{report['many']['peak_ratio']:.2f} times that of {count}; {many['cpu_seconds']:.1f} s of a CPU"
    )
    return report


def _build_long(
    model: str, count: int, length: int, words_per_token: float, overrides: Sequence[str]
) -> dict[str, Any]:
    """Build ``count`` documents of ``length`` tokens, in a process of its own that has built a short one before."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["__main__", "pyarrow.parquet", "httpx", "transformers"])
    with tempfile.TemporaryDirectory() as name, stub_server(model) as url:
        commands = []
        for part, (documents, tokens) in {"short": (1, 2048), "long": (count, length)}.items():
            folder = Path(name) / part
            folder.mkdir()
            write_documents(folder / "documents.jsonl", documents, round(tokens * words_per_token))
            num_chunks = tokens // LENGTH_CHUNK // CONTEXT_SHARE
            how: dict[str, Any] = {"chunk_tokens": LENGTH_CHUNK, "num_chunks": num_chunks, "overrides": overrides}
            commands.append(build_command(folder, url, model=model, **how))
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=_build_measured, args=(there, Path(name) / "log", *commands))
        process.start()
        there.close()
        try:
            found: dict[str, Any] = here.recv()
        except EOFError as error:
            said = (Path(name) / "log").read_text()[-2000:]
            raise UserError(f"the build of {count} documents of {length} tokens failed: {said}") from error
        process.join()
        found["pairs"] = json.loads((Path(name) / "long" / "data" / "manifest.json").read_text())["samples"]
    return found


def _build_measured(result: Connection, log: Path, short: list[str], long: list[str]) -> None:
    """Send the seconds and the peak memory of the second build. What both say goes to ``log``."""
    from logodata.cli import main as logodata

    with open(log, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if logodata(short) == 0:  # reads what a first build reads: libraries, model, tokenizer
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        cpu, wall = time.process_time(), time.perf_counter()
        if logodata(long) == 0:
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            result.send({"peak_bytes": int(status["VmHWM"].split()[0]) * 1024, "cpu_seconds": cpu, "seconds": wall})


def _words_per_token(model: str, path: Path) -> float:
    """Words of a synthetic document for each of its tokens."""
    write_documents(path, 1, 4000)
    text = json.loads(path.read_text())["context"]
    return len(text.split()) / len(load_tokenizer(model, None)(text)["input_ids"])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of_parts(__doc__, MEASURES, threads=1)
    parser.add_argument("--documents", type=Path, metavar="FILE", help="scoring, generation: other documents")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="their questions, if in a second file")
    group = parser.add_argument_group("scoring")
    group.add_argument("--evaluators", nargs="+", choices=EVALUATORS, default=EVALUATORS)
    group.add_argument("--rounds", type=int, default=5, metavar="N", help="at least (default 5)")
    group.add_argument("--chunk-tokens", type=int, default=512, metavar="N", help="(512)")
    group.add_argument("--join-tokens", type=int, default=4096, metavar="N", help="documents are joined to N (4096)")
    group = parser.add_argument_group("generation")
    group.add_argument("--vllm", default=sys.executable, metavar="PYTHON", help="that has vLLM (default: this one)")
    group.add_argument("--preferred", nargs="+", choices=("model", "guided"), default=("model", "guided"))
    group.add_argument("--generation-documents", type=int, default=2, metavar="N", help="each is a round (2)")
    group.add_argument("--questions-per-document", type=int, default=5, metavar="N", help="(5)")
    group.add_argument("--context-chunk-tokens", type=int, default=64, metavar="N", help="(64)")
    group.add_argument("--num-chunks", type=int, default=8, metavar="N", help="of a context (8)")
    group.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="(32)")
    group = parser.add_argument_group("memory")
    group.add_argument("--memory-documents", type=int, nargs="+", default=(100, 5000), metavar="N", help="(100 5000)")
    group.add_argument("--words", type=int, default=300, metavar="N", help="of a document (300)")
    group = parser.add_argument_group("length")
    group.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N", help=f"tokens {LENGTHS}")
    group.add_argument("--length-documents", type=int, default=2, metavar="N", help="in a build (2)")
    group.add_argument("--length-many", type=int, default=8, metavar="N", help="the longest ones, for their peak (8)")
    group.add_argument("--length-rounds", type=int, default=2, metavar="N", help="over the lengths (2)")
    group = parser.add_argument_group("memory and length")
    group.add_argument(
        "--override", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of the recipe"
    )
    return parse_parts(parser, argv, MEASURES)


MEASURES = {
    "scoring": measure_scoring,
    "generation": measure_generation,
    "memory": measure_memory,
    "length": measure_length,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run_parts(parse(argv), MEASURES)


if __name__ == "__main__":
    sys.exit(run_command("build.py", main, resume_hint="nothing was written"))
