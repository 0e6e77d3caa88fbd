"""Rounds: the commands, what ends them, and how they go on after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.sources import SourceSettings, source_fingerprint
from logoeval.cli import main
from logoeval.compare.compare import Difference, Value, Verdict
from logoeval.rounds.driver import RECORD, run_rounds, run_step
from logoeval.rounds.outcome import RoundOutcome, reasons_to_stop
from logoeval.rounds.plan import Rounds, Step, by_section


def rounds(folder: Path, **changes: Any) -> Rounds:
    return Rounds("embedded", folder, **{"count": 3, "held_out": "embedded:eval", **changes})


def test_each_round_begins_with_the_adapter_of_the_one_before(tmp_path: Path) -> None:
    plan = rounds(tmp_path, gpus=2, overrides={"train": ["epochs=2"]}, model="m")
    first, second = (list(map(str, plan.steps(number))) for number in (1, 2))
    out = str(tmp_path)
    assert first == [
        f"logodata build embedded --model m --shard 1/3 -o {out}/round-1/data",
        "torchrun --standalone --nproc-per-node=2 -m logotrain run embedded epochs=2 --model m "
        f"--data {out}/round-1/data -o {out}/round-1/run",
        f"logoeval run embedded --model m --data {out}/held-out --adapter {out}/round-1/run/final "
        f"-o {out}/round-1/eval",
    ]
    last = f"{out}/round-1/run/final"
    assert f"--shard 2/3 --adapter {last}" in second[0]
    assert f"--init-adapter {last}" in second[1]
    assert f"--adapter {out}/round-2/run/final" in second[2]
    assert str(plan.compare(2)).startswith(
        f"logoeval compare base={out}/base round-1={out}/round-1/eval round-2={out}/round-2/eval"
    )


def test_a_data_set_is_taken_as_it_is(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    assert next(rounds(tmp_path, held_out=str(built)).first_steps()).what == "held-out data"
    (built / "manifest.json").write_text("{}")
    (only,) = rounds(tmp_path, held_out=str(built)).first_steps()
    assert f"--data {built}" in str(only)


def test_overrides_name_their_section() -> None:
    assert by_section(["train.epochs=2", "build.judge.enabled=false"]) == {
        "build": ["judge.enabled=false"],
        "train": ["epochs=2"],
        "eval": [],
    }
    with pytest.raises(UserError, match="names no section"):
        by_section(["epochs=2"])


def change(verdict: Verdict) -> Difference:
    return Difference(change=Value(value=0.1, low=-0.1, high=0.3), verdict=verdict)


def outcome(
    number: int, margin: Verdict | None = "rose", answers: Verdict = "no clear change", **changes: Any
) -> RoundOutcome:
    values = {"questions": 10, "kept": 8, "chosen": -0.2, "answer_tokens": 1.1, **changes}
    found = {"margin": change(margin), "answers": change(answers)} if margin else {}
    return RoundOutcome(number=number, **found, **values)


FLAT = "no clear change"
ENDS: dict[str, tuple[Sequence[RoundOutcome], str | None]] = {
    "it rises": ([outcome(1), outcome(2)], None),
    "one look is not enough": ([outcome(1, FLAT)], None),
    "two looks without a rise": ([outcome(1), outcome(2, FLAT), outcome(3, "fell", "too few to tell")], "neither"),
    "too few to tell": ([outcome(1, "too few to tell", "too few to tell")] * 2, None),
    "the answers rise": ([outcome(1, FLAT), outcome(2, FLAT, "rose")], None),
    "half the yield": ([outcome(1), outcome(2, kept=4)], None),
    "less than half the yield": ([outcome(1), outcome(2, kept=3)], "yield fell below half .*3 of 10.*8 of 10"),
    "less, perhaps by chance": ([outcome(1, questions=63, kept=19), outcome(2, questions=21, kept=3)], None),
    "fewer questions, the same yield": ([outcome(1), outcome(2, questions=5, kept=4)], None),
    "a nat": ([outcome(1, chosen=-1.01)], "lost 1.01 nats"),
    "long answers": ([outcome(1, answer_tokens=1.26)], "1.26 times as long"),
    "nothing was measured": ([outcome(1, None), outcome(2, None)], None),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_rounds(case: str) -> None:
    found, expected = ENDS[case]
    reasons = list(reasons_to_stop(found))
    if expected is None:
        assert reasons == []
    else:
        (reason,) = reasons
        assert re.search(expected, reason)


def test_they_end_early_and_a_second_call_asks_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {1: outcome(1), 2: outcome(2, FLAT), 3: outcome(3, FLAT)}
    monkeypatch.setattr("logoeval.rounds.driver.measure_round", lambda _, number: outcomes[number])
    monkeypatch.setattr("logoeval.rounds.driver.reasons_not_to_train", lambda *_: ())
    plan, asked = rounds(tmp_path, count=9), list[str]()
    for _ in range(2):
        asked.clear()
        record = run_rounds(plan, lambda step: asked.append(step.what))
        assert len(record.rounds) == 3
        assert record.ended is not None
        assert "neither" in record.ended[0]
        assert asked[:2] == ["held-out data", "the model as it is"]
        assert asked[-1] == "report"
        assert len(asked) == 2 + 3 * 4
    assert json.loads((tmp_path / RECORD).read_text()) == record.to_json()
    with pytest.raises(UserError, match="rounds=9, now it is 3"):
        run_rounds(rounds(tmp_path), lambda _: None)


def test_a_round_without_a_pair_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {1: (), 2: ("round 2 kept none of its 7 questions",)}
    monkeypatch.setattr("logoeval.rounds.driver.reasons_not_to_train", lambda _, number: reasons[number])
    monkeypatch.setattr("logoeval.rounds.driver.measure_round", lambda _, number: outcome(number))
    asked: list[str] = []
    record = run_rounds(rounds(tmp_path), lambda step: asked.append(step.what))
    assert (len(record.rounds), record.ended) == (1, list(reasons[2]))
    assert asked[-1] == "round 2 of 3: data"


def test_a_command_that_fails_ends_all_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step = Step("round 1 of 3: data", "logodata", ("build", str(tmp_path / "none.yaml"), "-o", str(tmp_path / "out")))
    with pytest.raises(UserError, match="round 1 of 3: data ended with exit code 2"):
        run_step(step)
    assert "no such recipe" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_too(tmp_path: Path, number: signal.Signals) -> None:
    """The command is a stand-in that says when it began and which signal it got."""
    (tmp_path / "logowait.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def end(number, _):\n"
        f"    pathlib.Path({str(tmp_path / 'got')!r}).write_text(str(number))\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, end)\n"
        f"pathlib.Path({str(tmp_path / 'began')!r}).write_text('')\n"
        "time.sleep(60)\n"
    )
    script = (
        "import signal, sys; from logodata.common.errors import run_command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored, where the tests run in the background
        "from logoeval.rounds.driver import run_step; from logoeval.rounds.plan import Step\n"
        "sys.exit(run_command('logoeval', lambda: run_step(Step('waiting', 'logowait', ()))))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "got").read_text() == str(int(signal.SIGTERM))
    assert "run the same command again to continue" in said


class Told:
    """A manifest, as far as it is read."""

    def __init__(self, sha256: str) -> None:
        self.source = SimpleNamespace(sha256=sha256)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["rounds", "embedded", "-o", str(tmp_path / "out"), "--held-out", "embedded:eval"]
    assert main([*command, "--dry-run", "--rounds", "2", "train.epochs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert sum("epochs=2" in line for line in lines) == 2
    for more, expected in (
        (["train.epohcs=2"], "unknown key 'epohcs'"),
        (["epochs=2"], "names no section"),
        (["eval.niah.lenghts=[512]"], "lenghts"),
        (["build.chunking.chunk_tokens=0"], "chunk_tokens"),
        (["train.tuning=full"], "leaves no adapter"),
        (["eval.engine.kind=vllm"], "train.lora.train_embeddings=false"),
        (["build.engine={kind: openai, base_urls: 'http://127.0.0.1:9'}"], "build.engine.kind=openai"),
        (["build.source.path=embedded:eval"], "are trained on these documents"),
        (["train.lora.init_adapter=x"], "train.lora.init_adapter: rounds begin with the model as it is"),
    ):
        assert main([*command, *more]) == 2
        assert expected in capsys.readouterr().err
    built = tmp_path / "built"
    assert main(["rounds", "embedded", "-o", str(tmp_path / "out"), "--held-out", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    built.mkdir()
    source = SourceSettings(path="embedded:train")
    monkeypatch.setattr("logoeval.rounds.plan.read_manifest", lambda _: Told(source_fingerprint(source)))
    (built / "manifest.json").write_text("{}")
    assert main(["rounds", "embedded", "-o", str(tmp_path / "out"), "--held-out", str(built)]) == 2
    assert "are trained on these documents" in capsys.readouterr().err
    assert main(["rounds", "embedded", "-o", str(tmp_path / "out")]) == 2
    assert "no held-out data given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
