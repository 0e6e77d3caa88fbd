"""Log-probabilities of the reference model, which is the untrained model: they are computed before step 1."""

from __future__ import annotations

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
from logodata.common.records import Record
from logotrain.interrupt import StopFlag, Stopped
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.parallel import World, without_backward
from logotrain.rows.collate import Collator, Draw

_START_AGAIN = "training has begun, so they cannot be computed again; start again in another -o"


class _Line(Record):
    """A line of ``reference.jsonl``: the sum over each response's tokens, in nats. The responses are in the order of
    the sample's row, the preferred one first."""

    id: str
    epoch: int
    logprobs: list[float]


class ReferenceLogprobs:
    """The summed reference log-probabilities of each response, kept in ``reference.jsonl``.

    Each draw, a sample in an epoch, has its own values where its positions differ from those of other epochs.

    Args:
        redraws: whether they do; if not, the values of epoch 0 serve all.
        path: the file; values that it holds are not computed again.
        untrained: whether no step has been trained yet; only then can values be computed.

    Raises:
        UserError: a line of the file is damaged.
    """

    def __init__(self, path: Path, *, untrained: bool, redraws: bool = True) -> None:
        self._path, self._untrained, self._redraws = path, untrained, redraws
        mend = "delete the line, then run the same command again" if untrained else _START_AGAIN
        self._values: dict[tuple[str, int], list[float]] = {}
        if path.exists():
            for where, value in json_objects(path, mend=mend):
                line = _Line.from_json(value, where=where, mend=mend)
                self._values[line.id, line.epoch] = line.logprobs

    def of(self, draw: Draw, device: torch.device) -> Tensor:
        """Return the summed log-probabilities of a draw's responses in nats, in the order of its row ([1 + M] after one
        prompt)."""
        return torch.tensor(self._values[self._key(draw)], device=device)

    def _key(self, draw: Draw) -> tuple[str, int]:
        epoch, sample = draw
        return sample.id, epoch if self._redraws else 0

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
        """Compute the missing log-probabilities of ``draws`` with ``model`` and append them to the file.

        Args:
            draws: all draws that training will need.
            model: the untrained model; under sharding, this process's part of it.
            share: returns this process's rows of a block of draws, as indices into the block.
            block: number of draws between two writes.
            stop: checked after each write.

        Raises:
            UserError: values are missing but the model is already trained, or a log-probability is not finite.
            Stopped: ``stop`` was set on any process; the file holds all values computed so far.
        """
        wanted = {self._key(draw): draw for draw in draws}
        missing = [draw for key, draw in wanted.items() if key not in self._values]
        if not missing:
            return
        if not self._untrained:
            raise UserError(
                f"lacks the untrained model's log-probabilities of {len(missing)} samples and epochs",
                where=str(self._path),
                mend=_START_AGAIN,
            )
        known = len(wanted) - len(missing)
        with progress("reference log-probabilities", len(wanted), known) as bar, without_backward(model):
            for start in range(0, len(missing), block):
                found: dict[tuple[str, int], list[float]] = {}
                part = missing[start : start + block]
                for indices in share(part):
                    row = collator([part[index] for index in indices]).to(world.device)
                    of_row = split_logprobs(model(row), row)
                    count = len(collator.parts)
                    for place, index in enumerate(indices):
                        own = of_row[place * count : (place + 1) * count]
                        sums = [float(logprobs.sum()) for sample in own for logprobs in sample.responses]
                        found[self._key(part[index])] = sums
                everything = {key: value for values in world.gather(found) for key, value in values.items()}
                for (name, _), (chosen, *rejected) in everything.items():
                    check_responses(chosen, rejected, name)
                self._values.update(everything)
                lines = (_Line(id=name, epoch=epoch, logprobs=value) for (name, epoch), value in everything.items())
                text = "".join(strict_dumps(line.to_json()) + "\n" for line in lines)
                world.on_main(partial(append_lines, self._path, text))
                bar.advance(len(part))
                if world.any(bool(stop)):
                    raise Stopped
