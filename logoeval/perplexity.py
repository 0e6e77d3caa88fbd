"""Perplexity of long documents by the number of tokens read: one pass at the longest length gives every point of the
curve.

PPL(L) = exp(mean negative log-likelihood of the tokens predicted within the first L). A causal model gives a token
the same likelihood whatever follows it, so this equals running each length by itself, except under RoPE types whose
frequencies depend on the total length: those are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.common.shards import Shard
from logodata.models import length_dependent_rope
from logodata.prompts import encode_text
from logoeval.recipe import PerplexitySettings
from logoeval.records import Metric, Outcome, SampleRow, hash_ids
from logoeval.texts import pydoc_documents, read_documents, text_fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from logoeval.session import Session

VERSION = 1
"""Raised when documents or scores change their meaning: results of two versions are not compared."""

_SLICE_TOKENS = 512  # rows of logits at a time: 0.26 GB in float32 for a vocabulary of 128K


def metrics(settings: PerplexitySettings) -> list[Metric]:
    """Two metrics a length: over the first L tokens, and over the second half of them, which have read the most."""
    return [
        Metric(
            key=f"{kind}@{length}",
            label=f"Perplexity, {label.format(length=length, half=length // 2)}",
            explanation=explanation.format(length=length, half=length // 2),
            kind="perplexity",
            better="lower",
            headline=length == settings.lengths[-1],
        )
        for length in settings.lengths
        for kind, label, explanation in (
            (
                "ppl",
                "first {length:,} tokens",
                "How surprised the model is by real text, over the first {length:,} tokens of each document.",
            ),
            (
                "tail",
                "tokens {half:,} to {length:,}",
                "The same over the tokens after the first {half:,}, which have the most text before them.",
            ),
        )
    ]


def describe(settings: PerplexitySettings) -> dict[str, Any]:
    """What two comparable runs have in common; the text by its contents, wherever it lies."""
    text = "\n\n".join(text for _, text in _sources(settings))
    return {
        **settings.model_dump(mode="json"),
        "text": settings.text if settings.text == "pydoc" else Path(settings.text).name,
        "text_fingerprint": text_fingerprint(text),
    }


def _sources(settings: PerplexitySettings) -> tuple[tuple[str, str], ...]:
    return pydoc_documents() if settings.text == "pydoc" else read_documents(Path(settings.text))


def documents(
    settings: PerplexitySettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[int]], list[str]]:
    """Token ids of each document, cut to the longest length, and notes on what was left out.

    A beginning-of-sequence token comes first if and only if the tokenizer writes one by itself; it counts as a token.

    Raises:
        UserError: no document is long enough.
    """
    length = settings.lengths[-1]
    first = _begin_ids(tokenizer)
    found: dict[str, list[int]] = {}
    short = 0
    for name, text in _grouped(settings, tokenizer, length):
        ids = [*first, *encode_text(tokenizer, text)]
        if len(ids) < length:
            short += 1
        elif len(found) < settings.num_documents:
            found[name] = ids[:length]
    if not found:
        raise UserError(
            f"ppl.text: no document has {length} tokens, the longest of ppl.lengths",
            where=settings.text,
            mend="lower ppl.lengths or give longer texts",
        )
    notes = [f"beginning-of-sequence token: {'yes' if first else 'no'}"]
    if len(found) < settings.num_documents:
        notes.append(f"{len(found)} documents have {length} tokens, {settings.num_documents} were asked for")
    if short:
        notes.append(f"{short} documents are shorter than {length} tokens and were left out")
    return found, notes


def _grouped(
    settings: PerplexitySettings, tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[tuple[str, str]]:
    """Documents as they are; the built-in topics are short, and are joined until each document is long enough."""
    if settings.text != "pydoc":
        yield from _sources(settings)
        return
    names: list[str] = []
    texts: list[str] = []
    num_tokens = 0
    for name, text in _sources(settings):
        names.append(name)
        texts.append(text)
        num_tokens += len(encode_text(tokenizer, text))
        if num_tokens >= length:
            yield names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}", "\n\n".join(texts)
            names, texts, num_tokens = [], [], 0


def _begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer.encode("a", add_special_tokens=True)
    return [ids[0]] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def token_nlls(model: PreTrainedModel, ids: list[int]) -> NDArray[np.float64]:
    """Negative log-likelihood of every token but the first, in nats, [len(ids) - 1].

    The body runs once; the head runs over slices of the hidden states, since all logits of 64K tokens over a
    vocabulary of 128K would take 33 GB.

    Raises:
        UserError: the model does more to its logits than apply the head.
    """
    import torch

    from logotrain.logprobs import token_logprobs

    row = torch.tensor([ids], device=model.device)
    head = model.get_output_embeddings()
    with torch.inference_mode():
        hidden = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
        # Some families scale or cap their logits after the head; theirs would be wrong here.
        probe = row[:, :8]
        if not torch.allclose(
            model(input_ids=probe, use_cache=False).logits[0],
            head(model.base_model(input_ids=probe, use_cache=False).last_hidden_state[0]),
            atol=1e-3,
        ):
            raise UserError(
                f"{type(model).__name__} changes its logits after the output head",
                mend="this family is not supported by logoeval ppl",
            )
        parts = [
            token_logprobs(head(inputs), targets)
            for inputs, targets in zip(hidden[:-1].split(_SLICE_TOKENS), row[0, 1:].split(_SLICE_TOKENS), strict=True)
        ]
        return -torch.cat(parts).double().cpu().numpy()


def check_rope(config: PreTrainedConfig) -> None:
    """Refuse RoPE types whose frequencies depend on the total length, for which one pass is not the same as many.

    Raises:
        UserError: the model has such a type.
    """
    rope_type = length_dependent_rope(config)
    if rope_type:
        raise UserError(
            f"RoPE type {rope_type!r} depends on the total length: one pass gives no curve",
            mend="use a model with default, linear, llama3 or yarn RoPE",
        )


def run(settings: PerplexitySettings, session: Session, predictions: Path) -> Outcome:
    """Score all documents; a row a document."""
    session.check_window(settings.lengths[-1], "the longest of ppl.lengths")
    found, notes = documents(settings, session.tokenizer)
    wanted = metrics(settings)
    shard = Shard(predictions / "ppl.jsonl")
    waiting = {name: ids for name, ids in found.items() if name not in shard}
    if waiting:
        check_rope(session.model.config)
        with progress("ppl", len(found), len(found) - len(waiting)) as tracker:
            for name, ids in waiting.items():
                shard.append(
                    {
                        "id": name,
                        "prompt_hash": hash_ids(ids),
                        "num_tokens": len(ids),
                        **_scores(token_nlls(session.model, ids), settings.lengths),
                    }
                )
                tracker.advance()
    rows = []
    for name, ids in found.items():
        record = shard[name]
        if record["prompt_hash"] != hash_ids(ids):
            raise UserError(
                f"record {name!r} scores another text", where=str(shard.path), mend="evaluate into another folder"
            )
        rows.append(
            SampleRow(
                id=name,
                cluster=name,
                prompt_hash=record["prompt_hash"],
                scores={metric.key: record[metric.key] for metric in wanted},
            )
        )
    return Outcome(wanted, rows, notes)


def _scores(nlls: NDArray[np.float64], lengths: Sequence[int]) -> dict[str, float]:
    """Means in nats. ``nlls[i]`` belongs to token i + 1, so the first L tokens hold L - 1 predictions."""
    scores = {}
    for length in lengths:
        scores[f"ppl@{length}"] = float(nlls[: length - 1].mean())
        scores[f"tail@{length}"] = float(nlls[length // 2 - 1 : length - 1].mean())
    return scores
