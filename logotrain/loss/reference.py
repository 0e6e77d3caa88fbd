"""Log-probabilities of the untrained model, for objectives that compare with it: computed once, before step 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.common.files import append_lines
from logodata.common.finite import check_responses
from logodata.common.json_files import json_objects, strict_dumps
from logotrain.interrupt import StopFlag, Stopped
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.parallel import World, without_backward
from logotrain.rows.collate import Collator, Draw

_ANEW = "steps are done, and only the untrained model's count: start again in another -o"


class ReferenceLogprobs:
    """``reference.jsonl``: for each draw (sample and epoch, since positions differ) the responses' summed log-probs.

    Args:
        path: the file; what it holds already is not computed again.
        untrained: whether the model is still the one that training starts from; later nothing can be computed.

    Raises:
        UserError: a line is damaged.
    """

    def __init__(self, path: Path, *, untrained: bool) -> None:
        self._path, self._untrained = path, untrained
        mend = "delete the line, then run the same command again" if untrained else _ANEW
        self._values: dict[tuple[str, int], list[float]] = {}
        if path.exists():
            for where, record in json_objects(path, mend=mend):
                try:
                    self._values[record["id"], record["epoch"]] = record["logprobs"]
                except (KeyError, TypeError) as error:
                    raise UserError("damaged record", where=where, mend=mend) from error

    def of(self, draw: Draw, device: torch.device) -> Tensor:
        """Summed log-probabilities of a draw's responses, [1 + M], nats."""
        epoch, sample = draw
        return torch.tensor(self._values[sample.id, epoch], device=device)

    def complete(
        self,
        draws: Sequence[Draw],
        model: LogprobModel,
        collator: Collator,
        world: World,
        *,
        share: Callable[[Sequence[Draw]], list[list[int]]],
        block: int,
        stop: StopFlag,
    ) -> None:
        """Compute what is missing with ``model`` and append it to the file block by block.

        Args:
            draws: all that training will need.
            model: every process's part of it.
            collator: makes the rows, as in training.
            world: the processes that share the work.
            share: this process's rows of a block of draws, as indices into the block.
            block: draws between two writes.
            stop: looked at after each of them.

        Raises:
            UserError: something is missing and the model is trained already, or a log-probability is not finite.
            Stopped: ``stop`` was set on any process; what was computed is in the file.
        """
        wanted = {(sample.id, epoch): (epoch, sample) for epoch, sample in draws}
        missing = [draw for key, draw in wanted.items() if key not in self._values]
        if not missing:
            return
        if not self._untrained:
            raise UserError(
                f"lacks the untrained model's log-probabilities of {len(missing)} samples and epochs",
                where=str(self._path),
                mend=_ANEW,
            )
        known = len(wanted) - len(missing)
        with progress("reference log-probabilities", len(wanted), known) as bar, without_backward(model):
            for start in range(0, len(missing), block):
                found: dict[tuple[str, int], list[float]] = {}
                part = missing[start : start + block]
                for indices in share(part):
                    row = collator([part[index] for index in indices]).to(world.device)
                    samples = split_logprobs(model(row), row)
                    for index, sample in zip(indices, samples, strict=True):
                        epoch, source = part[index]
                        found[source.id, epoch] = [float(logprobs.sum()) for logprobs in sample.responses]
                everything = {key: value for values in world.gather(found) for key, value in values.items()}
                for (name, _), (chosen, *rejected) in everything.items():
                    check_responses(chosen, rejected, name)
                self._values.update(everything)
                lines = (
                    strict_dumps({"id": name, "epoch": epoch, "logprobs": value}) + "\n"
                    for (name, epoch), value in everything.items()
                )
                world.on_main(partial(append_lines, self._path, "".join(lines)))
                bar.advance(len(part))
                if world.any(bool(stop)):
                    raise Stopped


def cut_half_line(path: Path) -> None:
    """Remove what follows the last whole line: a kill or a power failure left it, and its draws are computed again."""
    if path.exists():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(path, end)
