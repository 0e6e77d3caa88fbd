"""The README's commands, run as a newcomer types them, at a smaller size; the embedded model is real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.demo

SMALL = [
    "BUILD_ARGS=source.max_documents=6 source.max_questions_per_document=3",
    "TRAIN_ARGS=max_steps=2",
    "EVAL_ARGS=niah.lengths=[256] niah.num_samples=1 ppl.lengths=[64,128] ppl.num_documents=2 pairs.max_samples=3",
]
NIAH = ["niah.lengths=[256]", "niah.num_samples=1"]


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PATH": path})


def test_make_demo_interrupted_and_run_again_finishes(tmp_path: Path) -> None:
    command = ["make", "demo", f"DEMO={tmp_path / 'demo'}", *SMALL]
    stopped = 0
    # Interrupted as Ctrl-C does it, at several moments, then left alone.
    for seconds in (8, 25, 45):
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            stopped += 1
    assert stopped, "the demo was over before it could be interrupted"
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    demo = tmp_path / "demo"
    stats = json.loads((demo / "data" / "stats.json").read_text())
    assert stats["kept"] >= 4
    assert stats["kept_by_origin"].get("live", 0) >= 1
    assert len((demo / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    for name in ("before", "after"):
        assert set(json.loads((demo / name / "results.json").read_text())["tasks"]) == {"niah", "pairs", "ppl"}
    assert "<svg" in (demo / "report.html").read_text()

    start = time.monotonic()
    again = run(*command)
    assert again.returncode == 0
    assert "==" not in again.stdout, "nothing is done twice"
    assert time.monotonic() - start < 60


def test_the_three_commands_on_a_file_never_seen(tmp_path: Path) -> None:
    filler = "".join(
        f"On day {n} the ferry crossed {n % 7} times and carried {n * 3} sacks of flour. " for n in range(120)
    )
    rows = [
        {
            "context": f"{filler} The captain of the ferry at {place} is called {captain}. {filler}",
            "question": f"What is the captain of the ferry at {place} called?",
            "answers": [captain],
        }
        for place, captain in [("Orrow", "Hulda Brandt"), ("Kestrel Point", "Amos Vane"), ("Old Merrin", "Sister Pell")]
    ]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (
        ["logodata", "build", "my.jsonl", "--model", "embedded", "-o", "out"],
        ["logotrain", "run", str(ROOT / "recipes" / "embedded.yaml"), "data.path=out", "-o", "run"],
        ["logoeval", "niah", "--model", "embedded", "--adapter", "run/final", "-o", "after", *NIAH],
    ):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
    assert "niah" in json.loads((tmp_path / "after" / "results.json").read_text())["tasks"]
