"""Build, train and evaluate over and over in one process, and watch what it holds: does anything grow?

``python benchmarks/soak.py --minutes 30 --json FILE``

A round: data sets from synthetic documents through transformers, and through the openai engine and a stub server; a
build and a training that end with an error; training of a tiny random Llama with a checkpoint written in the background
after each step, and a command after it; pairs, needles (also along the checkpoints, and through the openai engine),
perplexity and LongBench, with and without the adapter; the report with all figures. Every command is called as the
programs' ``main`` in this process, so that what one leaves behind is there for the next. The round's folder is deleted
at its end.

After each round, a garbage collection and glibc's ``malloc_trim`` are read: memory, Python objects, open files,
threads, children, files in ``$TMPDIR``, temporary files in the round's folder, and how many files the round wrote. Of
memory and objects the slope over rounds is Theil and Sen's, with Sen's 95 % interval, without the first fifth of the
rounds (at least three). Memory or objects leak if the whole interval lies above zero and the slope would add more than
the tolerance in 1,000 rounds; anything else if the last third of those rounds has more of it than the first. Threads
that are not Python's belong to pools of libraries (Arrow's, torch's), which fill up when two tasks happen to meet: they
leak if the middle third has more than the first, and the last more than the middle. The exit code is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests make the tiny model

import torch

from build import write_documents
from evidence import environment
from logodata.cli import main as logodata
from logodata.common.errors import UserError, run_command
from logoeval.cli import main as logoeval
from logotrain.cli import main as logotrain
from process_state import anonymous_mib, children, open_files, thread_ids, thread_names

MEMORY_MIB_IN_1000 = 20.0
OBJECTS_IN_1000 = 5000.0
PROGRAMS = {"logodata": logodata, "logotrain": logotrain, "logoeval": logoeval}


_STUB = (
    "import sys; from serving import stub_server\nwith stub_server(sys.argv[1]) as url: print(url, flush=True); input()"
)


@contextlib.contextmanager
def stub_process(model: Path) -> Iterator[str]:
    """Base URL of the stub server in a process of its own: its threads and memory are not ours."""
    command = [sys.executable, "-c", _STUB, str(model)]
    place = Path(__file__).parent
    with subprocess.Popen(command, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.write("\n")  # the end
            server.stdin.flush()


@dataclass(frozen=True, slots=True)
class State:
    """What the process holds after a round, and what the round left on disk."""

    seconds: float
    """Of the round."""
    anonymous_mib: float
    objects: int
    """That the garbage collector knows."""
    open_files: int
    threads: int
    python_threads: int
    children: int
    temporary_files: int
    """In ``$TMPDIR``, folders included."""
    leftovers: int
    """Temporary names in the round's folder."""
    written: int
    """Files in the round's folder."""
    threads_from: dict[str, int]
    """How many of the threads were first seen after which command, in whichever round; what was there before any is
    ``""``, what came after the round's last one ``"?"``."""


def prepare(folder: Path) -> Path:
    """Write the tiny model, documents, held-out documents, and rows of LongBench; the model's folder."""
    from tests.conftest import make_model, make_tokenizer

    model, tokenizer = folder / "model", make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    write_documents(folder / "documents.jsonl", 3, 120)
    rows = [
        {
            "_id": f"{task}-{number}",
            "dataset": task,
            "input": f"Where was it in story {number}?",
            "context": "Once it stood in the mill by the bridge. " * 5,
            "answers": ["in the old mill"],
            "length": 3000 * (number + 1),
            "all_classes": None,
            "language": "en",
        }
        for task in ("qasper", "hotpotqa")
        for number in range(2)
    ]
    (folder / "longbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "empty.yaml").write_text("build: {}\neval: {}\ntrain: {}\n")
    return model


@contextlib.contextmanager
def tokens_not_cached() -> Iterator[None]:
    """Tokenizers without the library's cache of words. Up to 0.23.3 it belongs to the thread and outlives its
    tokenizer: 1.2 MiB for each that read 180 KB of text. A command loads few, but this process thousands."""
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained

    def load_without(*arguments: Any, **options: Any) -> Any:
        tokenizer = load(*arguments, **options)
        tokenizer.backend_tokenizer.model._resize_cache(0)
        return tokenizer

    AutoTokenizer.from_pretrained = load_without
    try:
        yield
    finally:
        AutoTokenizer.from_pretrained = load


def commands(folder: Path, out: Path, model: Path, url: str) -> Iterator[tuple[str, list[str], int]]:
    """Program, arguments and exit code of each step of a round."""
    recipe = str(folder / "empty.yaml")
    served = ["engine.kind=openai", f"engine.base_urls=[{url}]"]
    build = ["build", recipe, "--model", str(model), f"source.path={folder}/documents.jsonl"]
    build += ["chunking.chunk_tokens=32", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
    build += ["contexts.critical_top=2", "generation.max_new_tokens=16", "judge.enabled=false"]
    yield "logodata", [*build, *served, "generation.max_new_tokens=32", "-o", f"{out}/data"], 0
    yield "logodata", [*build, "generation.preferred=reference", "-o", f"{out}/reference"], 0
    yield "logodata", [*build, *served, "engine.served_model=other", "-o", f"{out}/refused"], 2
    yield "logodata", ["inspect", f"{out}/data", "--html", f"{out}/data.html"], 0
    yield "logodata", ["stats", f"{out}/data", f"{out}/reference"], 0

    train = ["run", recipe, f"model={model}", f"data.path={out}/data", "dtype=float32", "recompute=none", "epochs=2"]
    train += ["samples_per_step=3", "lora.rank=4", "checkpoint.every_steps=1", "collapse.num_prompts=1"]
    train += ["collapse.every_steps=2", "collapse.max_new_tokens=8", "collapse.max_repetition=1"]
    train += ["collapse.min_chosen_logp=null", "lora.train_embeddings=false"]
    yield "logotrain", [*train, "checkpoint.command=echo {step}", "-o", f"{out}/run"], 0
    yield "logotrain", [*train, "optimizer.lr=1e30", "-o", f"{out}/broken"], 2

    adapter = ["--adapter", f"{out}/run/final"]
    niah = [
        "niah.lengths=[512]",
        "niah.num_values=1",
        "niah.num_samples=2",
        "niah.max_new_tokens=8",
        "niah.haystacks=noise",
    ]
    evaluate = ["run", recipe, "--model", str(model), "--data", f"{out}/reference", "pairs.max_new_tokens=8", *niah]
    evaluate += ["ppl.lengths=[32,64]", "ppl.num_documents=2", f"longbench.data={folder}/longbench.jsonl"]
    yield "logoeval", [*evaluate, *adapter, "--with-base", "-o", f"{out}/eval"], 0
    needles = ["niah", "--recipe", recipe, "--model", str(model), *niah]
    yield "logoeval", [*needles, *served, "niah.max_new_tokens=17", "-o", f"{out}/served"], 0
    yield "logoeval", [*needles, "--checkpoints", f"{out}/run/checkpoints", "-o", f"{out}/curve"], 0
    compare = ["compare", f"{out}/eval/base", f"{out}/eval/adapter", "--data", f"{out}/data", "--run", f"{out}/run"]
    yield "logoeval", [*compare, "--curve", f"{out}/curve", "-o", f"{out}/report.html"], 0
    yield "logoeval", ["errors", f"{out}/eval/base", f"{out}/eval/adapter"], 0


def settle() -> None:
    """Collect garbage, and have glibc hand back what is free: what stays is held."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def run_round(folder: Path, model: Path, url: str, born: dict[str, str]) -> State:
    """All commands, then what the process holds.

    Args:
        folder: of the soak.
        model: the tiny one's folder.
        url: of the stub server.
        born: the command after which each thread, by its id, was first seen; what is new is added.

    Raises:
        UserError: a command ended with another exit code than it should; what it said is in ``said.txt``.
    """
    out, said = folder / "round", folder / "said.txt"
    started = time.monotonic()
    with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        for program, arguments, wanted in commands(folder, out, model, url):
            file.write(f"$ {program} {' '.join(arguments)}\n")
            code = PROGRAMS[program](arguments)
            if code != wanted:
                raise UserError(
                    f"{program} {arguments[0]} ended with {code}, not {wanted}", where=str(said), mend="see there"
                )
            born |= {thread: f"{program} {arguments[0]}" for thread in thread_ids() if thread not in born}
    took = time.monotonic() - started
    names = [path.name for path in out.rglob("*")]
    shutil.rmtree(out)
    settle()
    alive = thread_ids()
    return State(
        seconds=round(took, 2),
        anonymous_mib=round(anonymous_mib(), 2),
        objects=len(gc.get_objects()),
        open_files=len(open_files()),
        threads=len(alive),
        python_threads=len(thread_names()),
        children=len(children()),
        temporary_files=sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        leftovers=sum(name.startswith(".") and name.endswith(".tmp") for name in names),
        written=len(names),
        threads_from=dict(Counter(born.get(thread, "?") for thread in alive)),
    )


@dataclass(frozen=True, slots=True)
class Slope:
    """Of a line through values one round apart, with its 95 % interval."""

    value: float
    low: float
    high: float


def slope(values: Sequence[float]) -> Slope:
    """Theil and Sen's: the median of the slopes between all pairs, with Sen's interval (JASA 63, 1968)."""
    count = len(values)
    found = sorted((b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2))
    half = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low, high = round((len(found) - half) / 2) - 1, round((len(found) + half) / 2)
    return Slope(statistics.median(found), found[max(low, 0)], found[min(high, len(found) - 1)])


def judge(states: Sequence[State]) -> dict[str, Any]:
    """Slopes, levels, and what leaks."""
    settled = states[max(3, len(states) // 5) :]
    report: dict[str, Any] = {"rounds": len(states), "judged": len(settled), "slopes": {}, "levels": {}, "leaks": []}
    for name, tolerance in (("anonymous_mib", MEMORY_MIB_IN_1000), ("objects", OBJECTS_IN_1000)):
        found = slope([getattr(state, name) for state in settled])
        report["slopes"][name] = {**asdict(found), "tolerance": tolerance / 1000}
        if found.low > 0 and found.value * 1000 > tolerance:
            report["leaks"].append(f"{name} grows by {found.value:.3g} a round [{found.low:.3g}, {found.high:.3g}]")
    third = max(1, len(settled) // 3)
    counted = ("open_files", "threads", "python_threads", "children", "temporary_files", "leftovers", "written")
    for name in counted:
        values = [getattr(state, name) for state in settled]
        parts = (values[:third], values[third:-third] or values[-third:], values[-third:])
        first, middle, last = (statistics.median(part) for part in parts)
        report["levels"][name] = {"thirds": [first, middle, last], "most": max(values)}
        # A pool of a library's threads may fill up.
        grows = first < middle < last if name == "threads" else first < last
        if grows or (name == "leftovers" and max(values)):
            report["leaks"].append(f"{name}: {first:g}, {middle:g}, {last:g} in the thirds, {max(values)} at most")
    return report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="(30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round and the verdict here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if something leaks."""
    arguments = parse(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"in {folder}", flush=True)
    torch.set_num_threads(1)
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    report = environment()
    model = prepare(folder)
    deadline = time.monotonic() + 60 * arguments.minutes
    states: list[State] = []
    with stub_process(model) as url, tokens_not_cached():
        born = dict.fromkeys(thread_ids(), "")
        while len(states) < 8 or time.monotonic() < deadline:
            states.append(run_round(folder, model, url, born))
            print(f"round {len(states)}: {json.dumps(asdict(states[-1]))}", flush=True)
    verdict = judge(states)
    report |= {"minutes": arguments.minutes, **verdict, "states": [asdict(state) for state in states]}
    for name, found in verdict["slopes"].items():
        print(f"{name}: {found['value']:+.4g} a round [{found['low']:+.4g}, {found['high']:+.4g}]")
    print("\n".join(f"LEAK: {line}" for line in verdict["leaks"]) or "flat")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if not verdict["leaks"]:
        shutil.rmtree(folder)
    return 1 if verdict["leaks"] else 0


if __name__ == "__main__":
    sys.exit(run_command("soak.py", main, resume_hint="nothing was written"))
