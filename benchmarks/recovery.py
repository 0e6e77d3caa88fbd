"""A build killed at random again and again, against one that ran through: the same data set, nothing lost or doubled.

``python benchmarks/recovery.py --documents FILE... --questions FILE... --num-questions 60 --kills 10 --vllm PYTHON``

Questions are drawn from the files, several a document; their documents, and some others, become one source. It is
built once without interruption. Then it is built in a second folder, killed (SIGKILL to the whole process group) and
started again with the same command, ``--kills`` times, and once more to its end. The first kill falls before the first
response; the last after the last response, while the data set is put together and written. The moment of each other one
is drawn over the time that is left, by the measure of the uninterrupted build: the earliest of as many uniform draws as
such kills remain.

Compared: every file of the data set by its bytes, the ids of all questions against those kept and rejected, the
responses on disk, and with ``--vllm`` how many requests the server finished against how many were needed. Only the
name of the engine in ``manifest.json`` and ``README.md`` is let off, if the last start had nothing to generate. The
exit code is 1 if anything differs.

``--vllm PYTHON`` starts a real server (CPU or GPU, float32, prefix cache) with an interpreter that has vLLM; without
it, overrides name the engine: ``-- engine.kind=transformers``. Both builds run under the same recipe, :data:`RECIPE`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from evidence import environment
from logodata.common.errors import UserError, run_command
from logodata.common.files import differences, read_json
from logodata.models.loading import resolve_model
from serving import vllm_server

RECIPE = {
    "model": "embedded",
    "source.join_tokens": 8192,
    "chunking.chunk_tokens": 64,
    "contexts.num_chunks": 16,
    "contexts.critical_threshold": None,
    "contexts.critical_top": 8,
    "evaluator.name": "lexical",
    "generation.preferred": "guided",
    "generation.num_candidates": 4,
    "generation.max_new_tokens": 48,
    "generation.group_size": 12,  # several groups, so that kills fall between submissions, too
}
_POLL_S = 0.01


def write_source(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Write ``documents.jsonl`` and ``questions.jsonl`` with the questions drawn; their ids.

    Files take turns; a document drawn gives up to ``--questions-per-document`` of its questions. Documents are in the
    order of their files.
    """
    rng = random.Random(arguments.seed)
    files: list[list[dict[str, Any]]] = [
        [row for row in _rows(file) if len(row["context"].split()) <= arguments.max_words]
        for file in arguments.documents
    ]
    asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in arguments.questions:
        for row in _rows(file):
            asked[row["doc_id"]].append(row)
    waiting = [rng.sample(rows, len(rows)) for rows in files]
    drawn: dict[str, list[dict[str, Any]]] = {}
    missing = arguments.num_questions
    while missing > 0 and any(waiting):
        for rows in filter(None, waiting):
            doc_id = rows.pop()["doc_id"]
            several = asked[doc_id]
            most = min(arguments.questions_per_document, missing, len(several))
            if most:
                drawn[doc_id] = rng.sample(several, most)
                missing -= most
    if missing > 0:
        raise UserError(f"the files hold {missing} questions too few", mend="give more files, or raise --max-words")
    spare = [row["doc_id"] for rows in waiting for row in rows]
    used = {*drawn, *rng.sample(spare, min(arguments.other_documents, len(spare)))}
    with open(folder / "documents.jsonl", "w", encoding="utf-8") as out:
        for row in (row for rows in files for row in rows if row["doc_id"] in used):
            out.write(json.dumps({"doc_id": row["doc_id"], "context": row["context"]}) + "\n")
    fields = ("id", "doc_id", "question", "answers")
    questions = [{field: row[field] for field in fields} for rows in drawn.values() for row in rows]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    print(f"{len(questions)} questions on {len(drawn)} documents, {len(used) - len(drawn)} documents without")
    return [row["id"] for row in questions]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), mend="give a JSONL file") from error


def responses_on_disk(output: Path) -> dict[str, list[int]]:
    """Token ids of every response whose line is whole, by key."""
    lines = (line for path in _logs(output) for line in path.read_bytes().split(b"\n")[:-1])
    return {record["key"]: record["token_ids"] for record in map(json.loads, lines)}


def _logs(output: Path) -> Iterator[Path]:
    return (output / "work").glob("**/*responses*.jsonl")


def _count_responses(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in _logs(output))


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds from a start until each of its responses was on disk, ascending, and until the manifest was."""

    moments: list[float]
    whole_s: float

    @property
    def start_s(self) -> float:
        """Seconds before the first response: imports, reading, chunking, scoring, prompts."""
        return self.moments[0]

    @property
    def end_s(self) -> float:
        """Seconds after the last response: judging, writing."""
        return self.whole_s - self.moments[-1]

    def left(self, done: int) -> float:
        """Seconds that a build takes which finds ``done`` responses on disk."""
        since = self.moments[min(done, len(self.moments)) - 1] if done else self.moments[0]
        return self.start_s + (self.moments[-1] - since) + self.end_s


class Build:
    """One start of the build, in a process group of its own."""

    def __init__(self, command: list[str], output: Path, log: Path) -> None:
        self.output, self._log = output, log
        self._out = open(log, "ab")  # noqa: SIM115 - closed when the process has ended
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "-o", str(output)], stdout=self._out, stderr=self._out, start_new_session=True
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        with contextlib.suppress(ProcessLookupError):  # it has ended, and its children, too
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._out.close()

    def ended(self) -> bool:
        """Whether it has ended, and without an error."""
        code = self.process.poll()
        if code:
            raise UserError(f"the build ended with {code}", where=str(self._log), mend="see there")
        return code == 0


def run_through(command: list[str], output: Path, log: Path) -> Pace:
    """Start the build and let it end."""
    build = Build(command, output, log)
    before = _count_responses(output)
    moments: list[float] = []
    whole_s = None
    try:
        while not build.ended():
            moments += [build.seconds] * (_count_responses(output) - before - len(moments))
            if whole_s is None and (output / "manifest.json").exists():
                whole_s = build.seconds
            time.sleep(_POLL_S)
        return Pace(moments, whole_s or build.seconds)
    finally:
        build.kill()


def kill_once(
    command: list[str], output: Path, log: Path, pace: Pace, rng: random.Random, kills_left: int, *, first: bool
) -> dict[str, Any] | None:
    """Start the build and kill it at a random moment; None if it ended before."""
    before, needed = _count_responses(output), len(pace.moments)
    last = kills_left == 1 and not first
    drawn = rng.random()
    # The last one waits for the end instead.
    moment = pace.start_s * drawn if first else pace.left(before) * (1 - drawn ** (1 / max(kills_left - 1, 1)))
    build = Build(command, output, log)
    try:
        while True:
            if build.ended():
                return None
            count = _count_responses(output)
            if last and count >= needed:
                if before < needed:
                    time.sleep(pace.end_s * drawn)
                    break
                # Nothing to generate: by the first file that is written, under its temporary name.
                if (output / f".rejected.jsonl.{build.process.pid}.tmp").exists():
                    break
            # Those before leave a response to each kill after them.
            elif not last and (build.seconds >= moment or (not first and count > needed - kills_left)):
                break
            time.sleep(_POLL_S)
    finally:
        at = build.seconds
        build.kill()
    count = _count_responses(output)
    phase = "before a first response" if count == before else "generation"
    if count >= needed:
        phase = "finished" if (output / "manifest.json").exists() else "after the last response"
    files = sorted(path.name for path in output.rglob("*") if path.is_file() and path.parent.name != "work")
    return {"after_s": at, "responses_before": before, "responses": count, "phase": phase, "files": files}


def compare(plain: Path, killed: Path, asked: Sequence[str]) -> dict[str, Any]:
    """What differs between two finished data sets, and whether every question is in exactly one place of each."""
    import pyarrow.parquet as pq

    sums = [{str(path.relative_to(folder)): _sha256(path) for path in _files(folder)} for folder in (plain, killed)]
    report: dict[str, Any] = {
        "files": sums[0],
        "differing_files": sorted(
            name for name in sums[0].keys() | sums[1].keys() if sums[0].get(name) != sums[1].get(name)
        ),
    }
    manifests = [read_json(folder / "manifest.json") for folder in (plain, killed)]
    report["manifest_differences"] = [list(found) for found in differences(*manifests)]
    report["engines"] = [manifest["engine"] for manifest in manifests]
    cards = [
        (folder / "README.md").read_text().replace(engine, "ENGINE")
        for folder, engine in zip((plain, killed), report["engines"], strict=True)
    ]
    report["card_differs_beyond_engine"] = cards[0] != cards[1]
    for name, folder in (("uninterrupted", plain), ("killed", killed)):
        kept = [
            i for file in sorted((folder / "data").glob("*.parquet")) for i in pq.read_table(file)["id"].to_pylist()
        ]
        rejected = [row["id"] for row in _rows(folder / "rejected.jsonl")]
        places = Counter([*kept, *rejected])
        report[name] = {
            "kept": len(kept),
            "rejected": len(rejected),
            "reasons": Counter(row["reason"] for row in _rows(folder / "rejected.jsonl")),
            "lost": sorted(set(asked) - places.keys()),
            "doubled": sorted(i for i, count in places.items() if count > 1),
            "responses": len(responses_on_disk(folder)),
            "response_lines": _count_responses(folder),
        }
    first, second = responses_on_disk(plain), responses_on_disk(killed)
    report["responses_in_one_only"] = len(first.keys() ^ second.keys())
    report["responses_differing"] = sum(first[key] != second[key] for key in first.keys() & second.keys())
    return report


def _files(folder: Path) -> Iterator[Path]:
    """What a user takes from a build: all but the log of responses and the lock."""
    inside = (path for path in folder.rglob("*") if path.is_file())
    return (path for path in inside if path.relative_to(folder).parts[0] not in ("work", ".lock"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verdict(report: dict[str, Any]) -> list[str]:
    """What is wrong; empty if the killed build is as good as the other."""
    found = report["comparison"]
    wrong = [f"{name} differs" for name in found["differing_files"] if name not in ("manifest.json", "README.md")]
    if found["card_differs_beyond_engine"]:
        wrong.append("README.md differs")
    wrong += [f"manifest.json differs in {key}" for key, *_ in found["manifest_differences"] if key != "engine"]
    if found["engines"][0] != found["engines"][1] and report["generated_by_last_start"]:
        wrong.append("the engine's name differs, though the last start generated")
    for name in ("uninterrupted", "killed"):
        wrong += [
            f"{name}: {len(found[name][fault])} ids {fault}" for fault in ("lost", "doubled") if found[name][fault]
        ]
    if found["killed"]["response_lines"] != found["killed"]["responses"]:
        wrong.append("a response stands in the log twice")
    if len(report["kills"]) < report["kills_wanted"]:
        wrong.append(f"only {len(report['kills'])} kills: the build ended before the next one")
    return wrong


def finished_requests(url: str | None) -> dict[str, int]:
    """How many requests the vLLM server finished so far, by reason; it counts none that a kill left unfinished."""
    if url is None:
        return {}
    found: Counter[str] = Counter()
    for line in httpx.get(url.removesuffix("/v1") + "/metrics").text.splitlines():
        if match := re.match(r'vllm:request_success_total\{.*finished_reason="(\w+)".*\} (\S+)', line):
            found[match[1]] += int(float(match[2]))
    return dict(found)


def run(arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Both builds, and their comparison."""
    asked = write_source(arguments, folder)
    url = None
    settings = [f"{key}={json.dumps(value)}" for key, value in RECIPE.items()]
    settings += [f"source.path={folder}/documents.jsonl", f"source.questions={folder}/questions.jsonl"]
    if arguments.vllm:
        print("starting the vLLM server", flush=True)
        model = resolve_model(str(RECIPE["model"]))
        url = stack.enter_context(vllm_server(arguments.vllm, model, folder / "server.log"))
        settings += ["engine.kind=openai", f"engine.base_urls=[{url}]"]
    recipe = folder / "recipe.yaml"  # empty: no other recipe's settings
    recipe.write_text("build: {}\n")
    command = [sys.executable, "-m", "logodata", "build", str(recipe), *settings, *arguments.overrides]
    plain, killed = folder / "uninterrupted", folder / "killed"

    pace = run_through(command, plain, folder / "uninterrupted.log")
    needed = len(pace.moments)
    if not needed:
        raise UserError("the build generated nothing", where=str(plain), mend="choose other questions")
    print(
        f"uninterrupted: {pace.whole_s:.1f} s, of them {pace.start_s:.1f} before the first of {needed} responses and "
        f"{pace.end_s:.1f} after the last",
        flush=True,
    )
    served = [finished_requests(url)]
    if url is not None:
        # The second build must not find the first one's prompts in the cache.
        httpx.post(url.removesuffix("/v1") + "/reset_prefix_cache").raise_for_status()

    rng = random.Random(arguments.seed + 1)
    kills: list[dict[str, Any]] = []
    began = time.monotonic()
    log = folder / "killed.log"
    while len(kills) < arguments.kills:
        kill = kill_once(command, killed, log, pace, rng, arguments.kills - len(kills), first=not kills)
        if kill is None:
            break
        served.append(finished_requests(url))
        kills.append({**kill, "server": served[-1]})
        gained = kill["responses"] - kill["responses_before"]
        print(
            f"kill {len(kills)}/{arguments.kills} after {kill['after_s']:.1f} s: {kill['responses']} of {needed} "
            f"responses on disk (+{gained}), {kill['phase']}",
            flush=True,
        )
    last = run_through(command, killed, log)
    served.append(finished_requests(url))
    print(f"last start: {last.whole_s:.1f} s, {len(last.moments)} responses", flush=True)
    report: dict[str, Any] = {
        "questions": len(asked),
        "recipe": RECIPE,
        "overrides": arguments.overrides,
        "uninterrupted_s": pace.whole_s,
        "start_s": pace.start_s,
        "end_s": pace.end_s,
        "killed_s": time.monotonic() - began,
        "kills_wanted": arguments.kills,
        "kills": kills,
        "generated_by_last_start": len(last.moments),
        "comparison": compare(plain, killed, asked),
    }
    if url is not None:
        first, both = served[0], served[-1]
        killed_only = {reason: count - first.get(reason, 0) for reason, count in both.items()}
        report["server_finished"] = {"uninterrupted": first, "killed": killed_only}
    return report


def print_report(report: dict[str, Any], wrong: Sequence[str]) -> None:
    """What a person wants to know."""
    found = report["comparison"]
    for name in ("uninterrupted", "killed"):
        row = found[name]
        print(
            f"{name:14} {row['kept']} kept, {row['rejected']} rejected, {len(row['lost'])} lost, {len(row['doubled'])} "
            f"doubled, {row['responses']} responses in {row['response_lines']} lines"
        )
    print(
        f"{len(found['files'])} files, {len(found['differing_files'])} differ; "
        f"responses: {found['responses_differing']} differ, {found['responses_in_one_only']} in one build only"
    )
    for name, counts in report.get("server_finished", {}).items():
        print(f"the server finished for {name}: " + ", ".join(f"{reason} {n}" for reason, n in counts.items()))
    for key, *values in found["manifest_differences"]:
        print(f"manifest.json, {key}: {values[0]!r}, {values[1]!r}")
    print("\n".join(f"WRONG: {line}" for line in wrong) or "equal")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=Path, nargs="+", required=True, metavar="FILE", help="{doc_id, context}")
    parser.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE", help="{id, doc_id, ...}")
    parser.add_argument("--num-questions", type=int, default=60, metavar="N", help="(60)")
    parser.add_argument("--questions-per-document", type=int, default=5, metavar="N", help="at most (5)")
    parser.add_argument("--other-documents", type=int, default=3, metavar="N", help="without questions (3)")
    parser.add_argument("--max-words", type=int, default=10000, metavar="N", help="leave longer documents out (10000)")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="(10)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws questions and moments (0)")
    parser.add_argument("--vllm", metavar="PYTHON", help="start a vLLM server with this interpreter")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="empty; kept. Default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found here")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, after --")
    arguments = parser.parse_args(argv)
    if arguments.kills < 1 or arguments.num_questions < 1:
        raise UserError("--kills and --num-questions are at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if the builds differ."""
    arguments = parse(argv)
    facts = environment()
    with ExitStack() as stack:
        if arguments.folder is None:
            folder = Path(tempfile.mkdtemp(prefix="recovery-"))
        else:
            folder = arguments.folder.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UserError("is not empty", where=str(folder), mend="choose another --folder")
        print(f"in {folder}", flush=True)
        report = {**facts, **run(arguments, folder, stack)}
    wrong = report["wrong"] = verdict(report)
    print_report(report, wrong)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.folder is None and not wrong:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    # An exception, so that server and build are ended with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run_command("recovery.py", main, resume_hint="nothing was written"))
