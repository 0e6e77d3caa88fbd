"""One process of a pair: does every task of a list, so that starting Python and torch is paid for once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from logodata.common.errors import UserError
from logotrain import steps, trainer
from logotrain.loss import reference
from logotrain.parallel import launched
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run
from tests.distributed.gradients import in_float64, keep_first_gradients


def main(tasks: Path) -> None:
    torch.set_num_threads(1)
    with launched() as world:
        for task in json.loads(tasks.read_text()):
            out = Path(task["out"])
            recipe = TrainRecipe.model_validate(task["recipe"])
            outcome = "finished"
            try:
                with (
                    keep_first_gradients(out.with_suffix(".gradients"), write=world.is_main),
                    in_float64() if task.get("float64") else nullcontext(),
                ):
                    if task.get("sigterm_rank") == world.rank:
                        _signal_before_row(4)
                    if task.get("sigterm_in_references") == world.rank:
                        _signal_at_references()
                    if task.get("sigint_in_validation") == world.rank:
                        _signal_in_validation(2)
                    run(recipe, out)
            except UserError as error:
                outcome = str(error)
            except KeyboardInterrupt:
                outcome = "interrupted"
            out.with_suffix(f".rank{world.rank}").write_text(outcome)
            if outcome == "interrupted":
                run(recipe, out)


def _signal_before_row(number: int) -> None:
    """SIGTERM to this process alone, once, before its row of that number (from 0)."""
    original, calls = steps._sample_loss, iter(range(10**6))

    def patched(*arguments: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    steps._sample_loss = patched


def _signal_at_references() -> None:
    """SIGTERM to this process alone, once, at its first row of reference log-probabilities."""
    original = reference.split_logprobs

    def patched(*arguments: Any) -> Any:
        reference.split_logprobs = original
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    reference.split_logprobs = patched


def _signal_in_validation(number: int) -> None:
    """SIGINT to this process alone, once, after the first block of held-out samples after step ``number``."""
    original = trainer.measure

    def patched(*arguments: Any, step: int, advance: Callable[[int], None], **options: Any) -> Any:
        def advanced(count: int) -> None:
            if step == number and trainer.measure is patched:
                trainer.measure = original
                os.kill(os.getpid(), signal.SIGINT)
            advance(count)

        return original(*arguments, step=step, advance=advanced, **options)

    trainer.measure = patched


if __name__ == "__main__":
    main(Path(sys.argv[1]))
