"""Prompts of an exact length with needles between the sentences.

Samples of one number share their haystack: the text begins at the same sentence for every length and depth, so prompts
are equal up to their first needle and an engine's prefix cache computes that part once. Keys, values and random depths
are drawn anew for every sample.

Wordings, the forty depths and the depth's meaning are RULER's. Ours: a real text begins at a random sentence, needles
in the noise haystack are placed by depth too, and keys come from a short word list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logodata.common.errors import UserError
from logodata.prompts import PromptFormat, encode_text
from logoeval.tasks.needles.haystacks import KEYS, Haystack
from logoeval.tasks.needles.settings import NiahVariant
from logoeval.tasks.needles.variants import wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))
"""Percent of the haystack's sentences before a needle, where depths are random."""


@dataclass(frozen=True, slots=True)
class NiahSample:
    """One prompt. ``values``, ``depths`` (percent) and ``needles`` (sentences) are in order of appearance; ``repeats``
    tells that the haystack went round. ``prompt_ids`` end with the beginning of the answer. ``cluster`` is equal for
    samples that hide their needles in the same stretch of text, and are no independent evidence."""

    id: str
    cluster: str
    haystack: str
    length: int
    key: str
    values: tuple[str, ...]
    depths: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    repeats: bool
    needles: tuple[str, ...]


class SampleBuilder:
    """Makes samples for one tokenizer, haystack and variant; a sample depends on nothing but (seed, haystack, variant,
    length, depth, index)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        haystack: Haystack,
        *,
        seed: int,
        num_values: int,
        variant: NiahVariant = "multivalue",
    ) -> None:
        self._tokenizer, self._haystack, self._seed = tokenizer, haystack, seed
        self._num_values, self._variant = num_values, variant
        self._wording = wording(variant, num_values)
        self._format = PromptFormat(tokenizer, self._wording.template)
        self._unit_tokens: dict[int, int] = {}
        self._same: dict[int, int] = {}
        self.template = hashlib.sha256((self._format.fingerprint + self._wording.answer_prefix).encode()).hexdigest()[
            :16
        ]

    def build(self, length: int, index: int, depth: int | None = None) -> NiahSample:
        """Sample ``index`` of ``length`` tokens or just under: one more unit of the haystack would exceed it.

        Args:
            length: of the prompt in tokens, chat template and answer prefix included.
            index: at given depths, samples of one index share their text, so that a prefix cache computes it once;
                else every sample has a text of its own.
            depth: percent of the units before the needle; None draws one a value from :data:`DEPTHS`.

        Raises:
            UserError: the needles alone do not fit.
        """
        haystack = self._haystack
        # The first variant has no name of its own in ids: folders of earlier versions keep theirs.
        kind = () if self._variant == "multivalue" else (self._variant,)
        cell = "/".join(str(part) for part in (*kind, haystack.name, length, depth, index) if part is not None)
        rng = self._rng(cell)
        key = str(rng.choice(KEYS))
        values: list[str] = []
        while len(values) < self._num_values:
            value = str(rng.integers(10**6, 10**7))
            if value not in values and value not in haystack.numbers:
                values.append(value)
        needles = self._wording.needles(key, tuple(values))
        # Sentences that differ (first, second, ...) must not stand in their order, or depth would tell them apart.
        order = [int(place) for place in rng.permutation(self._num_values)]
        drawn = rng.choice(DEPTHS, size=self._num_values, replace=False) if depth is None else [depth] * len(values)
        depths = sorted(int(place) for place in drawn)
        text = f"{haystack.name}/text/{index}" if depth is not None else f"{haystack.name}/text/{length}/{index}"
        start = int(self._rng(text).integers(len(haystack.units)))
        answer_prefix = encode_text(self._tokenizer, self._wording.answer_prefix.format(key=key))

        def prompt(count: int) -> list[int]:
            units = haystack.take(start, count)
            # From the last needle to the first, so that earlier places stay where they are.
            for place, number in zip(reversed(depths), reversed(order), strict=True):
                units.insert(count * place // 100, needles[number])
            context = encode_text(self._tokenizer, haystack.joiner.join(units))
            return [*self._format.encode([context], question=f" {key}").ids, *answer_prefix]

        # A first guess from token counts of single units; then the whole prompt is counted, since tokens can merge at
        # borders. Where none did, one more unit is known not to fit without tokenising everything again.
        overhead = len(prompt(0))
        count, guess = 0, overhead
        while (longer := guess + self._count_tokens((start + count) % len(haystack.units))) <= length:
            count, guess = count + 1, longer
        ids = prompt(count)
        if len(ids) < guess:
            while len(longer_ids := prompt(count + 1)) <= length:
                count, ids = count + 1, longer_ids
        while len(ids) > length and count > 0:
            count -= 1
            ids = prompt(count)
        if count == 0:
            raise UserError(
                f"niah.lengths: {length} tokens have no room for a haystack (frame and needles take {overhead})",
                mend="raise the length",
            )
        sample_id = f"niah-{cell.replace('/', '-')}"
        return NiahSample(
            id=sample_id,
            # Noise is one text for every sample, a condition of the test and no draw: there only the needles are drawn.
            cluster=sample_id if haystack.repeats_by_design else text,
            haystack=haystack.name,
            length=length,
            key=key,
            values=tuple(values[number] for number in order),
            depths=tuple(depths),
            # One integer object a token of the vocabulary, not one a place: a fifth of the memory of a large grid.
            prompt_ids=tuple(self._same.setdefault(token, token) for token in ids),
            repeats=not haystack.repeats_by_design and count > len(haystack.units),
            needles=tuple(needles[number] for number in order),
        )

    def _rng(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def _count_tokens(self, unit: int) -> int:
        if unit not in self._unit_tokens:
            haystack = self._haystack
            self._unit_tokens[unit] = len(encode_text(self._tokenizer, haystack.joiner + haystack.units[unit]))
        return self._unit_tokens[unit]
