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
from logodata.common.files import write_json
from logodata.sources import SourceSettings, source_fingerprint
from logoeval.cli import main
from logoeval.compare.compare import Difference, Value, Verdict
from logoeval.rounds.driver import RECORD, run_rounds, run_step
from logoeval.rounds.outcome import (
    ControlOutcome,
    RoundOutcome,
    RoundsRecord,
    measure_control,
    measure_round,
    reasons_not_to_train,
    reasons_to_stop,
)
from logoeval.rounds.plan import Rounds, Step, by_section
from logoeval.rounds.table import show_rounds
from logotrain.metrics import StepRecord
from tests.data_sets import stats_of


def rounds(folder: Path, **changes: Any) -> Rounds:
    return Rounds("embedded", folder, **{"count": 3, "held_out": "embedded:eval", **changes})


def test_each_round_begins_with_the_adapter_of_the_one_before(tmp_path: Path) -> None:
    plan = rounds(tmp_path, gpus=2, overrides={"train": ["epochs=2"]}, model="m")
    first, second = (list(map(str, plan.steps(number))) for number in (1, 2))
    out = str(tmp_path)
    assert first == [
        f"logodata build embedded --model m --shard 1/3 --deal-in-turn -o {out}/round-1/data",
        "torchrun --standalone --nproc-per-node=2 -m logotrain run embedded epochs=2 --model m "
        f"--data {out}/round-1/data -o {out}/round-1/run",
        f"logoeval run embedded --model m --data {out}/held-out --adapter {out}/round-1/run/final "
        f"-o {out}/round-1/eval",
    ]
    last = f"{out}/round-1/run/final"
    assert f"--shard 2/3 --deal-in-turn --adapter {last}" in second[0]
    assert f"--init-adapter {last}" in second[1]
    assert f"--adapter {out}/round-2/run/final" in second[2]
    measured = f"logoeval compare base={out}/base round-1={out}/round-1/eval round-2={out}/round-2/eval"
    assert str(plan.compare(2)).startswith(f"{measured} --data")
    assert str(plan.compare(2, control=True)).startswith(f"{measured} control={out}/control-2/eval --data")


def test_the_control_begins_with_the_model_as_it_was_and_has_the_documents_of_all_rounds(tmp_path: Path) -> None:
    plan, out = rounds(tmp_path, overrides={"train": ["epochs=2", "max_steps=5"]}), str(tmp_path)
    assert list(map(str, plan.control_steps(2, 7, epochs=14, settings=["validation.patience=null"]))) == [
        f"logodata build embedded --shard 1-2/3 --deal-in-turn -o {out}/control-2/data",
        "logotrain run embedded epochs=2 max_steps=5 validation.patience=null epochs=14 max_steps=7 "
        f"--data {out}/control-2/data -o {out}/control-2/run",
        f"logoeval run embedded --data {out}/held-out --adapter {out}/control-2/run/final -o {out}/control-2/eval",
    ]
    assert "adapter" not in " ".join(map(str, list(plan.control_steps(2, 7, epochs=14))[:2]))


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
    values = {"questions": 10, "kept": 8, "updates": 4, "rate": 1e-3, "chosen": -0.2, "answer_tokens": 1.1, **changes}
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


def scripted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, outcomes: dict[int, RoundOutcome], **recipe: Any
) -> list[Step]:
    """Let rounds come out so, and return the list of steps that :func:`run_rounds` is to append to."""
    monkeypatch.setattr("logoeval.rounds.driver.measure_round", lambda _, number: outcomes[number])
    monkeypatch.setattr("logoeval.rounds.driver.reasons_not_to_train", lambda *_: ())

    def control(_: Rounds, last: int) -> ControlOutcome:
        return ControlOutcome(rounds=last, questions=30, kept=20, updates=9, rate=1e-3, margin=change("rose"))

    monkeypatch.setattr("logoeval.rounds.driver.measure_control", control)
    (folder / "round-1" / "run").mkdir(parents=True)
    resolved = {"samples_per_step": 8, "validation": {"patience": None}, **recipe}
    (folder / "round-1" / "run" / "recipe.resolved.json").write_text(json.dumps(resolved))
    return []


def test_rounds_that_ended_early_get_a_control_of_those_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {1: outcome(1, FLAT, updates=5), 2: outcome(2, FLAT, updates=4)}
    steps = scripted(monkeypatch, tmp_path, outcomes, validation={"patience": 2})
    plan = rounds(tmp_path, control=True)
    for _ in range(2):
        steps.clear()
        record = run_rounds(plan, steps.append)
        names = [
            "report",
            "control: data",
            "control: training",
            "control: measuring",
            "report",
            "report on the control",
        ]
        assert [step.what for step in steps[-6:]] == names
        data, training, _, report, against = map(str, steps[-5:])
        assert against.startswith(f"logoeval compare control={tmp_path}/control-2/eval round-2={tmp_path}/round-2/eval")
        assert "--shard 1-2/3" in data
        assert "validation.patience=null epochs=72 max_steps=9 " in training
        assert "control=" in report
        assert json.loads((tmp_path / RECORD).read_text()) == record.to_json()
        assert record.ended is not None
        assert record.control is not None
        assert record.control.rounds == 2
    show_rounds(record, plan.report, plan.control_report)
    said = " ".join(capsys.readouterr().out.split())
    assert "ended after round 2: neither the held-out margin" in said
    assert "control of 2 rounds, one round with as many updates: 20 of 30 questions kept, 9 updates" in said
    assert "margin +0.100 [-0.100, +0.300] rose, of round 2 over it" in said


def test_a_control_stays_when_rounds_are_run_again_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {number: outcome(number) for number in (1, 2, 3)}
    steps = scripted(monkeypatch, tmp_path, outcomes)
    record = run_rounds(rounds(tmp_path, control=True), steps.append)
    assert record.control is not None

    def interrupted(step: Step) -> None:
        if "round 2" in step.what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(rounds(tmp_path), interrupted)
    assert json.loads((tmp_path / RECORD).read_text()) == record.to_json()
    steps.clear()
    assert run_rounds(rounds(tmp_path), steps.append) == record
    assert not any(step.what.startswith("control") for step in steps)
    assert str(steps[-1]) == str(rounds(tmp_path).compare(3, control=True))


def test_one_round_is_its_own_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = scripted(monkeypatch, tmp_path, {1: outcome(1, chosen=-2.0)})
    record = run_rounds(rounds(tmp_path, control=True), steps.append)
    assert (record.control, len(record.rounds)) == (None, 1)
    assert not any("control" in step.what for step in steps)


def test_rounds_that_keep_going_tell_the_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A control of the rounds that had run is no control of more of them."""
    outcomes = {1: outcome(1, FLAT), 2: outcome(2, FLAT), 3: outcome(3)}
    steps = scripted(monkeypatch, tmp_path, outcomes)
    assert len(run_rounds(rounds(tmp_path, control=True), steps.append).rounds) == 2
    plan = rounds(tmp_path, control=True, keep_going=True)
    record = run_rounds(plan, steps.append)
    assert [found.reasons is not None for found in record.rounds] == [False, True, False]
    assert (record.ended, record.control and record.control.rounds) == (None, 3)
    outputs = {step.arguments[-1] for step in steps if step.what == "control: data"}
    assert outputs == {f"{tmp_path}/control-2/data", f"{tmp_path}/control-3/data"}
    show_rounds(record, plan.report, plan.control_report)
    said = capsys.readouterr().out
    assert "against another    neither the held-out margin" in said
    assert "ended" not in said


def test_the_updates_are_those_that_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of rounds and of their control, from their folders; the differences are of the last round from the control."""
    compared: list[tuple[Path, Path]] = []

    def compare(folders: dict[str, Path]) -> Any:
        compared.append((folders["before"], folders["after"]))
        return SimpleNamespace(tasks=[])

    monkeypatch.setattr("logoeval.rounds.outcome.compare", compare)
    monkeypatch.setattr("logoeval.rounds.outcome._means", lambda _: {})
    for name, rates in (("round-2", [1e-3, 5e-4, 0.0]), ("control-2", [1e-3] * 7)):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "data").mkdir()
        solve = {"tries": 2, "histogram": [1, 5, 3]} if name == "round-2" else None
        write_json(tmp_path / name / "data" / "stats.json", stats_of(questions=9, kept=5, solve=solve).to_json())
        steps = [step_of(number, rate) for number, rate in enumerate(rates, 1)]
        lines = "".join(json.dumps(step.model_dump(exclude_none=True)) + "\n" for step in steps)
        (tmp_path / name / "run" / "metrics.jsonl").write_text(lines)
    plan = rounds(tmp_path)
    found, control = measure_round(plan, 2), measure_control(plan, 2)
    assert (found.questions, found.kept, found.updates, found.rate) == (9, 5, 3, pytest.approx(5e-4))
    assert (control.rounds, control.updates, control.rate) == (2, 7, pytest.approx(1e-3))
    assert (found.solve and found.solve.histogram, control.solve) == ([1, 5, 3], None)
    assert "solve" not in control.to_json()
    show_rounds(RoundsRecord(rounds=[found]), plan.report, plan.control_report)
    said = " ".join(capsys.readouterr().out.split())
    assert "solved questions by right answers, 0 to 2 tries: 1 5 3 " in said
    last = tmp_path / "round-2" / "eval"
    assert compared == [(tmp_path / "round-1" / "eval", last), (tmp_path / "control-2" / "eval", last)]


def step_of(number: int, rate: float) -> StepRecord:
    values = dict.fromkeys(("loss", "preference_loss", "sft_loss", "chosen_logp", "grad_norm", "seconds"), 1.0)
    speed = {"tokens_per_second": 1.0, "samples_per_second": 1.0, "memory_gib": 1.0}
    return StepRecord(**values, **speed, chosen_ended=1, rejected_ended=1, tokens=9, step=number, lr=rate)


def test_a_round_without_a_document_says_so(tmp_path: Path) -> None:
    (tmp_path / "round-2" / "data").mkdir(parents=True)
    for questions, expected in (
        (0, "no documents were left for round 2 of 3"),
        (7, "round 2 kept none of its 7 quest"),
    ):
        write_json(tmp_path / "round-2" / "data" / "stats.json", stats_of(questions=questions).to_json())
        (reason,) = reasons_not_to_train(rounds(tmp_path), 2)
        assert reason.startswith(expected)


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
    assert main([*command, "--dry-run", "--rounds", "2", "--control", "train.epochs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert "max_steps=THE_ROUNDS_UPDATES" in lines[-2]
    assert main([*command, "--dry-run", "--rounds", "2", "train.epochs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert sum("epochs=2" in line for line in lines) == 2
    for more, expected in (
        (["train.epohcs=2"], "unknown key 'epohcs'"),
        (["epochs=2"], "names no section"),
        (["eval.niah.lenghts=[512]"], "lenghts"),
        (["eval.ppl.text=nowhere"], "nowhere: "),
        (["build.chunking.chunk_tokens=0"], "chunk_tokens"),
        (["train.tuning=full"], "leaves no adapter"),
        (["eval.engine.kind=vllm"], "train.lora.train_embeddings=false"),
        (["build.engine={kind: openai, base_urls: 'http://127.0.0.1:9'}"], "build.engine.kind=openai"),
        (["build.source.path=embedded:eval"], "are trained on these documents"),
        (["build.source.questions=q.csv"], "it holds the questions of the training documents"),
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
