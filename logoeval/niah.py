"""Multi-value needle in a haystack, as RULER's ``niah_multivalue`` (Hsieh et al. 2024, arXiv 2404.06654; LOGO section
4).

Four numbers are hidden under one key, the model is asked for all of them. Needle sentence, question, answer prefix,
the forty depths and the recall score are RULER's. Ours: a real text begins at a random sentence and goes round,
needles in the noise haystack are placed by depth too, keys come from a short word list, and exact numbers are counted
beside RULER's recall.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logodata.common.errors import UserError
from logodata.engines import GenerationResult, Sampling
from logodata.prompts import CHUNK_SEPARATOR, PromptFormat, encode_text
from logoeval.generate import PromptItem, complete
from logoeval.recipe import NiahSettings
from logoeval.records import Metric, Outcome, SampleRow
from logoeval.texts import NOISE_LINE, pydoc_documents, read_documents, split_sentences, text_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from logoeval.session import Session

VERSION = 1
"""Raised when prompts or scores change their meaning: results of two versions are not compared."""

NEEDLE = "One of the special magic numbers for {key} is: {value}."
# PromptFormat writes a separator after the context, and the key comes with its leading space so that it is tokenised
# as it is inside the text. Put together this is RULER's prompt, character for character.
assert CHUNK_SEPARATOR == "\n"
TEMPLATE = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n{context}"
    "What are all the special magic numbers for{question} mentioned in the provided text?"
)
ANSWER_PREFIX = " The special magic numbers for {key} mentioned in the provided text are"

DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))
"""Percent of the haystack's sentences before a needle."""

_ADJECTIVES = """ancient bitter brave bright calm careful clever curious damp distant eager early elegant faint famous
fierce fragile gentle golden hidden hollow humble icy jolly keen lazy little lonely lucky mellow modern narrow noble
patient plain polite proud quick quiet rapid rough rusty shallow sharp shiny silent simple sleepy slow small smooth
solemn steady stormy sunny tender tidy velvet wild wise"""
_NOUNS = """anchor apple arrow barrel basket beacon bottle branch bridge bucket button candle canyon carpet castle
cellar chimney cloud compass copper cradle desert donkey engine falcon feather fiddle forest fountain garden hammer
harbor helmet island jacket kettle ladder lantern lemon marble meadow mirror needle ocean orchard oyster pencil pepper
pillow planet rabbit ribbon saddle shadow spider temple thunder tunnel violin walnut window"""

METRICS = [
    Metric(
        key="recall",
        label="Needle recall",
        explanation="Share of the hidden numbers that occur in the response, inside longer numbers too.",
        kind="share",
        better="higher",
        slice_by=["haystack", "length"],
    ),
    Metric(
        key="precision",
        label="Needle precision",
        explanation="Share of the distinct numbers in the response that are hidden ones; 0 where it gives no number.",
        kind="share",
        better="higher",
    ),
    Metric(
        key="distinct_values",
        label="Distinct values found",
        explanation="How many of the hidden numbers the response gives exactly, each counted once.",
        kind="count",
        better="higher",
    ),
]


class Haystack:
    """A text to hide needles in: units (sentences, or lines of noise) that are never cut."""

    def __init__(self, name: str) -> None:
        """Read the haystack of a recipe entry: ``noise``, ``essay``, or a path.

        Raises:
            UserError: no text there.
        """
        self.name = name if name in ("noise", "essay") else Path(name).name
        self.rotates = name != "noise"
        self.joiner = " " if self.rotates else "\n"
        if name == "noise":
            self.units = [NOISE_LINE]
        else:
            documents = pydoc_documents() if name == "essay" else read_documents(Path(name))
            self.units = split_sentences("\n\n".join(text for _, text in documents))
        self.fingerprint = text_fingerprint("\n".join(self.units))

    def take(self, start: int, count: int) -> list[str]:
        """``count`` units from number ``start`` on, going round at the end."""
        return [self.units[(start + offset) % len(self.units)] for offset in range(count)]


@dataclass(frozen=True, slots=True)
class NiahSample:
    """One prompt. ``values`` and ``depths`` are in order of appearance; ``repeats`` tells that the haystack went
    round."""

    id: str
    haystack: str
    length: int
    key: str
    values: tuple[str, ...]
    depths: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    repeats: bool


class SampleBuilder:
    """Makes samples for one tokenizer and haystack; a sample depends on nothing but (seed, haystack, length, index)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, haystack: Haystack, *, seed: int, num_values: int) -> None:
        self._tokenizer, self._haystack, self._seed, self._num_values = tokenizer, haystack, seed, num_values
        self._format = PromptFormat(tokenizer, TEMPLATE)
        self.template = hashlib.sha256((self._format.fingerprint + ANSWER_PREFIX).encode()).hexdigest()[:16]

    @cached_property
    def _unit_tokens(self) -> list[int]:
        return [len(encode_text(self._tokenizer, self._haystack.joiner + unit)) for unit in self._haystack.units]

    def build(self, length: int, index: int) -> NiahSample:
        """Sample ``index`` of ``length`` tokens or just under: one more unit of the haystack would exceed it.

        Raises:
            UserError: the needles alone do not fit.
        """
        name = self._haystack.name
        identity = hashlib.sha256(f"{self._seed}/{name}/{length}/{index}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(identity[:8], "big"))
        key = f"{rng.choice(_ADJECTIVES.split())}-{rng.choice(_NOUNS.split())}"
        values: list[str] = []
        while len(values) < self._num_values:
            value = str(rng.integers(10**6, 10**7))
            if value not in values:
                values.append(value)
        depths = sorted(int(depth) for depth in rng.choice(DEPTHS, size=self._num_values, replace=False))
        start = int(rng.integers(len(self._haystack.units)))

        def prompt(count: int) -> tuple[int, ...]:
            units = self._haystack.take(start, count)
            # From the last needle to the first, so that earlier places stay where they are.
            for depth, value in zip(reversed(depths), reversed(values), strict=True):
                units.insert(count * depth // 100, NEEDLE.format(key=key, value=value))
            context = encode_text(self._tokenizer, self._haystack.joiner.join(units))
            answer_prefix = encode_text(self._tokenizer, ANSWER_PREFIX.format(key=key))
            return (*self._format.encode([context], question=f" {key}").ids, *answer_prefix)

        # A first guess from token counts of single units; then the whole prompt is counted, since tokens can merge at
        # borders.
        overhead = len(prompt(0))
        count, guess = 0, overhead
        while True:
            guess += self._unit_tokens[(start + count) % len(self._unit_tokens)]
            if guess > length:
                break
            count += 1
        ids = prompt(count)
        while len(ids) <= length and len(longer := prompt(count + 1)) <= length:
            count, ids = count + 1, longer
        while len(ids) > length and count > 0:
            count -= 1
            ids = prompt(count)
        if count == 0:
            raise UserError(
                f"niah.lengths: {length} tokens have no room for a haystack (frame and needles take {overhead})",
                mend="raise the length",
            )
        return NiahSample(
            id=f"niah-{name}-{length}-{index}",
            haystack=name,
            length=length,
            key=key,
            values=tuple(values),
            depths=tuple(depths),
            prompt_ids=ids,
            repeats=self._haystack.rotates and count > len(self._haystack.units),
        )


def score_response(response: str, values: Sequence[str]) -> dict[str, float]:
    """Scores of a response: see :data:`METRICS`. ``recall`` is RULER's ``string_match_all``."""
    numbers = set(re.findall(r"\d+", response))
    exact = numbers & set(values)
    return {
        "recall": sum(value in response for value in values) / len(values),
        "precision": len(exact) / len(numbers) if numbers else 0.0,
        "distinct_values": float(len(exact)),
    }


def haystacks(settings: NiahSettings) -> list[Haystack]:
    """The haystacks of a recipe.

    Raises:
        UserError: one cannot be read, or two folders share a name (sample ids would clash).
    """
    found = [Haystack(entry) for entry in settings.haystacks]
    names = [haystack.name for haystack in found]
    if len(set(names)) < len(names):
        raise UserError(
            "niah.haystacks: two folders share a name", where=", ".join(settings.haystacks), mend="rename one"
        )
    return found


def describe(settings: NiahSettings) -> dict[str, Any]:
    """What two comparable runs have in common; folders by name and contents, wherever they lie."""
    texts = {haystack.name: haystack.fingerprint for haystack in haystacks(settings)}
    return {**settings.model_dump(mode="json", exclude={"haystacks"}), "haystacks": texts}


def run(settings: NiahSettings, session: Session, predictions: Path) -> Outcome:
    """Answer all samples; a row a sample."""
    session.check_window(
        max(settings.lengths) + settings.max_new_tokens, "the longest of niah.lengths with niah.max_new_tokens"
    )
    samples: dict[str, NiahSample] = {}
    items: list[PromptItem] = []
    for haystack in haystacks(settings):
        builder = SampleBuilder(session.tokenizer, haystack, seed=session.recipe.seed, num_values=settings.num_values)
        for length in settings.lengths:
            for index in range(settings.num_samples):
                sample = builder.build(length, index)
                samples[sample.id] = sample
                items.append(PromptItem(sample.id, sample.prompt_ids, builder.template))

    def fields(response: str, result: GenerationResult) -> dict[str, Any]:
        sample = samples[result.id]
        return {
            "haystack": sample.haystack,
            "length": sample.length,
            "key": sample.key,
            "values": list(sample.values),
            "depths": list(sample.depths),
            "found": [value in response for value in sample.values],
            **score_response(response, sample.values),
        }

    records = complete(
        session.engine,
        session.tokenizer,
        items,
        sampling=Sampling(settings.max_new_tokens, session.stop_ids),
        path=predictions / "niah.jsonl",
        fields=fields,
        label="niah",
    )
    return Outcome(METRICS, [_row(record) for record in records], list(_notes(list(samples.values()))))


def _row(record: dict[str, Any]) -> SampleRow:
    return SampleRow(
        id=record["id"],
        cluster=record["id"],
        prompt_hash=record["prompt_hash"],
        scores={metric.key: record[metric.key] for metric in METRICS},
        facts={fact: record[fact] for fact in ("haystack", "length", "depths", "found")},
    )


def _notes(samples: Sequence[NiahSample]) -> Iterator[str]:
    for name, length in dict.fromkeys((sample.haystack, sample.length) for sample in samples if sample.repeats):
        yield f"the haystack {name!r} is shorter than {length} tokens and was repeated at that length"
