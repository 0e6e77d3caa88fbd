"""The checked samples of a run, and what is told of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from logodata.contract import PreferenceSample
from logotrain.recipe.objectives import ObjectiveSettings
from logotrain.rows.collate import row_length, row_responses, short_prompt


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The checked samples of a run.

    Attributes:
        target_length: all positions are below this length, in tokens.
        objective: the loss, which says what is read of a sample.
        validation: samples that are held out, which are measured and not trained on.
        left_out: number of samples, held-out ones among them, whose chunks are all critical, if the objective reads a
            short prompt: it would be the whole one.
        mix: samples of ``data.mix``, which keep natural positions. No other sample has an id of theirs.
        mix_per_epoch: number of them that an epoch takes.
    """

    samples: list[PreferenceSample]
    target_length: int
    objective: ObjectiveSettings
    validation: Sequence[PreferenceSample] = ()
    left_out: int = 0
    mix: Sequence[PreferenceSample] = ()
    mix_per_epoch: int = 0

    @property
    def per_epoch(self) -> int:
        """Number of samples that an epoch takes."""
        return len(self.samples) + self.mix_per_epoch

    @property
    def unspread(self) -> frozenset[str]:
        """The ids of the samples whose positions are natural, whatever the recipe says."""
        return frozenset(sample.id for sample in self.mix)

    def fingerprint(self) -> str:
        """Return a hash, 16 hexadecimal digits, of everything that the trainer reads of the samples, in order,
        and of the held-out ones after them."""
        return self._hash([*self.samples, *self.validation])

    def example_epoch(self) -> list[PreferenceSample]:
        """Return samples like those of an epoch: all, and evenly spaced ones of ``mix``."""
        return [
            *self.samples,
            *(self.mix[at * len(self.mix) // self.mix_per_epoch] for at in range(self.mix_per_epoch)),
        ]

    def mix_fingerprint(self) -> str:
        """Return the same of ``mix``."""
        return self._hash(self.mix)

    def _hash(self, samples: Sequence[PreferenceSample]) -> str:
        digest = hashlib.sha256()
        for sample in samples:
            spans: list[tuple[int, ...]] = [(chunk.token_start, chunk.token_end) for chunk in sample.chunks]
            if self.objective.uses_short_prompt:
                spans += [(number,) for number, chunk in enumerate(sample.chunks) if chunk.critical]
            responses = row_responses(sample, rejected=True)  # metrics count them even where the loss does not
            digest.update(json.dumps([sample.id, sample.prompt_ids, spans, responses]).encode())
        return digest.hexdigest()[:16]

    def lengths(self) -> Table:
        """Return a table of the lengths of prompts, computed responses and rows, in tokens."""
        mixed = f" and {len(self.mix)} of data.mix" if self.mix else ""
        title = f"{len(self.samples)} samples{mixed}, positions under {self.target_length}"
        table = Table("tokens", "shortest", "median", "longest", title=title)
        lengths = self._lengths(self.samples)
        if self.mix:
            lengths |= {f"data.mix: {name}": values for name, values in self._lengths(self.mix).items()}
        for name, values in lengths.items():
            ordered = sorted(values)
            table.add_row(name, *(str(ordered[at]) for at in (0, len(ordered) // 2, -1)))
        return table

    def _lengths(self, samples: Sequence[PreferenceSample]) -> dict[str, list[int]]:
        lengths = {"prompt": [len(sample.prompt_ids) for sample in samples]}
        if self.objective.uses_short_prompt:
            lengths["short prompt"] = [len(short_prompt(sample)) for sample in samples]
        lengths["preferred response"] = [len(sample.chosen.token_ids) for sample in samples]
        if self.objective.uses_rejected:
            rejected = [response for sample in samples for response in sample.rejected]
            lengths["dis-preferred responses"] = [len(response.token_ids) for response in rejected]
        lengths["row"] = [row_length(sample, self.objective.parts) for sample in samples]
        return lengths
