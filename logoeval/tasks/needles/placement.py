"""Build prompts of a given length with needles between the sentences.

At given depths, samples of one index share their haystack: the text begins at the same sentence for every length and
depth. So their prompts are equal up to the first needle, and an engine's prefix cache computes that part once. Keys,
values and random depths are drawn anew for every sample.

The wording, the forty depths and the meaning of a depth are RULER's. Three things differ from RULER: a real text begins
at a random sentence, needles in the noise haystack are placed by depth too, and keys come from a short word list.
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
from logoeval.tasks.texts import text_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))
"""The depths from which random ones are drawn, in percent of the haystack's sentences before the needle."""


@dataclass(frozen=True, slots=True)
class NiahSample:
    """One prompt with its needles. Values, depths (in percent) and needles (sentences) are in order of appearance.

    Samples of one ``cluster`` hide needles in the same stretch of text, so they are not independent evidence.
    ``length`` is the largest that the prompt may have, in tokens; the last ``prefix_tokens`` of the prompt begin the
    answer. ``repeats`` says whether the haystack is shorter and was repeated.
    """

    id: str
    cluster: str
    haystack: str
    length: int
    key: str
    values: tuple[str, ...]
    depths: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    prefix_tokens: int
    repeats: bool
    needles: tuple[str, ...]


class SampleBuilder:
    """Builds samples for one tokenizer, haystack and variant. A sample depends only on (seed, haystack, variant,
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
        self.template = text_fingerprint(self._format.fingerprint + self._wording.answer_prefix)

    def build(self, length: int, index: int, depth: int | None = None) -> NiahSample:
        """Build sample ``index`` with as many units of the haystack as fit into ``length`` tokens, chat template and
        answer prefix included. The needle stands at ``depth`` percent of the units; None draws a depth for each value
        from :data:`DEPTHS`.

        Raises:
            UserError: the needles alone do not fit.
        """
        haystack = self._haystack
        # The ids of RULER's own variant do not name it.
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
        # Sentences with an ordinal (first, second, ...) are shuffled, so that depth does not reveal the ordinal.
        order = [int(place) for place in rng.permutation(self._num_values)]
        drawn = rng.choice(DEPTHS, size=self._num_values, replace=False) if depth is None else [depth] * len(values)
        depths = sorted(int(place) for place in drawn)
        text = f"{haystack.name}/text/{index}" if depth is not None else f"{haystack.name}/text/{length}/{index}"
        start = int(self._rng(text).integers(len(haystack.units)))
        answer_prefix = encode_text(self._tokenizer, self._wording.answer_prefix.format(key=key))

        def prompt(count: int) -> list[int]:
            units = haystack.take(start, count)
            # Needles are inserted from the last to the first, so that the places of earlier ones do not move.
            for place, number in zip(reversed(depths), reversed(order), strict=True):
                units.insert(count * place // 100, needles[number])
            context = encode_text(self._tokenizer, haystack.joiner.join(units))
            return [*self._format.encode([context], question=f" {key}").ids, *answer_prefix]

        # The first guess adds the token counts of single units. Then the whole prompt is counted, because tokens can
        # merge where units meet. If none merged, one more unit does not fit, and nothing is tokenised again.
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
            # In the noise haystack all samples have the same text and only the needles are drawn, so each sample is a
            # cluster.
            cluster=sample_id if haystack.repeats_by_design else text,
            haystack=haystack.name,
            length=length,
            key=key,
            values=tuple(values[number] for number in order),
            depths=tuple(depths),
            # Equal token ids share one integer object, which takes a fifth of the memory for a large grid.
            prompt_ids=tuple(self._same.setdefault(token, token) for token in ids),
            prefix_tokens=len(answer_prefix),
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
