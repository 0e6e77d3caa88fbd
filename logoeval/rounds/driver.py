"""Run rounds, one command after the other, each in a process of its own: so no two hold the model at once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from logodata.common.console import note
from logodata.common.errors import EXIT_INTERRUPTED, UserError, raised_by
from logodata.common.files import bind_settings, locked, read_json, write_json
from logoeval.rounds.outcome import (
    ControlOutcome,
    RoundOutcome,
    RoundsRecord,
    measure_control,
    measure_round,
    reasons_not_to_train,
    reasons_to_stop,
)
from logoeval.rounds.plan import Rounds, Step
from logotrain.run_files import RECIPE_FILE

RECORD = "rounds.json"


def run_rounds(rounds: Rounds, run: Callable[[Step], None] | None = None) -> RoundsRecord:
    """Run all rounds, or those before a reason to stop, then their control, and write ``rounds.json`` and
    ``report.html`` after each, ``control.html`` at the end.

    Commands that ended before are called again and say so: whatever was interrupted goes on. The recipe is
    bound by each command's own folder, and the number of rounds by this one. ``run`` runs a command; by default
    :func:`run_step`.

    Raises:
        UserError: The folder holds other rounds, or a command ended with an error, which it printed itself.
        KeyboardInterrupt: This process, or a command, was told to stop.
    """
    run = run or run_step
    with locked(rounds.folder):
        # The documents are dealt out by the number of rounds.
        bind_settings(rounds.folder, "rounds-settings.json", {"rounds": rounds.count, "held_out": rounds.held_out})
        for step in rounds.first_steps():
            run(step)
        outcomes: list[RoundOutcome] = []
        recorded = _recorded(rounds)
        control = recorded.control
        record = RoundsRecord(rounds=outcomes)
        for number in range(1, rounds.count + 1):
            data, *others = rounds.steps(number)
            run(data)
            reasons = list(reasons_not_to_train(rounds, number))
            if not reasons:
                for step in others:
                    run(step)
                outcomes.append(measure_round(rounds, number))
                run(rounds.compare(number))
                found = list(reasons_to_stop(outcomes))
                outcomes[-1] = outcomes[-1].model_copy(update={"reasons": found or None})
                reasons = [] if rounds.keep_going else found
            # One of fewer rounds says nothing of these.
            kept = control if control is not None and control.rounds == len(outcomes) else None
            record = RoundsRecord(rounds=outcomes, ended=reasons or None, control=kept)
            if reasons or len(outcomes) >= len(recorded.rounds):  # else an interruption would lose what is known
                write_json(rounds.folder / RECORD, record.to_json())
            if reasons:
                break
        if record.control is not None and not rounds.control:
            run(rounds.compare(len(outcomes), control=True))  # the report has the control that there is
        if rounds.control and len(outcomes) > 1:  # one round is its own control
            record = record.model_copy(update={"control": _run_control(rounds, outcomes, run)})
            write_json(rounds.folder / RECORD, record.to_json())
        return record


def _recorded(rounds: Rounds) -> RoundsRecord:
    path = rounds.folder / RECORD
    if not path.is_file():
        return RoundsRecord(rounds=[])
    mend = "delete it and run the same command again: it is written anew"
    return RoundsRecord.from_json(read_json(path), where=str(path), mend=mend)


def _run_control(rounds: Rounds, outcomes: Sequence[RoundOutcome], run: Callable[[Step], None]) -> ControlOutcome:
    """Run the control of these rounds, report on it beside them, and compare the last one with it.

    Its training has as many updates as theirs, and the recipe's schedule over all of them. So the mean learning rate is
    nearly the same where rounds are long; short ones spend another share of their updates in the warm-up.
    """
    last, updates = len(outcomes), sum(outcome.updates for outcome in outcomes)
    recipe = read_json(rounds.round(1) / "run" / RECIPE_FILE)
    # An early end would leave it fewer updates than the rounds had.
    patience = ["validation.patience=null"] if recipe["validation"]["patience"] is not None else []
    # One sample would do for so many epochs.
    steps = rounds.control_steps(last, updates, epochs=updates * recipe["samples_per_step"], settings=patience)
    for step in steps:
        run(step)
    outcome = measure_control(rounds, last)
    run(rounds.compare(last, control=True))
    run(rounds.against_control(last))
    return outcome


def run_step(step: Step) -> None:
    """Run a command. It gets one signal where this process gets one, and ends before this process does.

    Raises:
        UserError: It ended with an error.
        KeyboardInterrupt: It was told to stop.
    """
    note(f"{step.what}: {step}")
    # A session of its own, so that Ctrl-C in the terminal does not come twice: many take a second one for "at once".
    with raised_by(signal.SIGHUP, KeyboardInterrupt):  # a terminal that is closed
        process = subprocess.Popen(step.command, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            while process.poll() is None:  # whatever else comes: it ends first
                with suppress(KeyboardInterrupt):
                    process.wait()
            raise
    if code in (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        mend = "mend what its line above says, then run the same command again"
        raise UserError(f"{step.what} ended with exit code {code}", where=str(step), mend=mend)
