"""How likely a model finds the responses of a data set: ``logodata stats --log-probs``.

LOGO trains the gap between r(preferred) and the mean of r(dis-preferred), where r is a response's mean log-probability
per token under the training prompt (paper, Eq. 2). A preferred response that the model would never word that way starts
far behind, and the loss is saturated before the first step; here one sees it before training. Positions are natural;
training spreads them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from rich.table import Table

from logodata.common.console import console, note, progress
from logodata.common.errors import UserError
from logodata.common.finite import check_finite, check_responses
from logodata.common.records import Record
from logodata.common.resampling import NUM_RESAMPLES, cluster_sums, percentile_interval
from logodata.contract import Manifest, PreferenceSample
from logodata.dataset.files import read_recipe
from logodata.dataset.samples import iterate_samples, read_manifest
from logodata.models.facts import length_dependent_rope, model_fingerprint
from logodata.models.loading import DType, load_config, load_model, load_tokenizer
from logodata.models.logprobs import token_logprobs
from logodata.models.text_config import config_window
from logodata.models.vocabulary import check_ids, vocabulary_size
from logodata.prompts import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BARE_REFERENCE = "bare reference"
"""The reference answer as a response, scored for comparison."""

PAPER_OBJECTIVES = ((10.0, 3.0), (2.5, 0.25))
"""(beta, gamma): the paper's for Llama-3, and what ``recipes/embedded.yaml`` takes for a small model."""

FAR_BEHIND = -10.0
"""Below this value of beta * gap the loss is saturated and every gradient clipped; ``logotrain`` warns there too."""


_Role = Literal["preferred", "dis-preferred", "for comparison"]


class Estimate(Record):
    """The mean of some values in nats a token, with its 95 % interval; None where all values are of one document."""

    mean: float
    interval: tuple[float, float] | None
    responses: int
    documents: int


class _StrategyHead(Record):
    role: _Role
    strategy: str


class StrategyEstimate(Estimate, _StrategyHead):
    """How likely the responses of one strategy are."""


class Start(Record):
    """Where a loss starts: ``argument`` is the mean argument of its sigmoid, beta * gap - gamma, and ``saturated`` the
    share of samples where the loss is saturated."""

    beta: float
    gamma: float
    beta_gap: float
    argument: float
    saturated: float


class Gap(Estimate):
    """How far responses are above the mean of the dis-preferred ones, and what the paper's objectives make of it."""

    objectives: list[Start]


class LogProbs(Record):
    """Log-probabilities of a data set's responses: ``gaps`` are those of the preferred responses, and of the bare
    references if they stood in their place."""

    model: str
    model_fingerprint: str
    dtype: str
    samples: int
    responses: list[StrategyEstimate]
    gaps: dict[str, Gap]


def response_logprobs(
    model: PreTrainedModel, prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]
) -> list[float]:
    """r(y) of each response: its mean log-probability per token after the prompt, in nats.

    The prompt runs once; then all responses as one batch against its keys and values, padded at the end, where under
    causal attention nothing looks. Of the prompt only one position's logits are ever computed.

    Args:
        model: a causal language model whose RoPE does not depend on the length of the row.
        prompt_ids: at least two tokens.
        responses: at least one token each.

    Returns:
        one number a response; log-softmax is taken in float32 (float64 for a float64 model), means in float64.
    """
    prompt = torch.tensor([prompt_ids], device=model.device)
    width = max(map(len, responses))
    # The last token of the prompt comes with the responses: its logits predict their first tokens.
    rows = torch.tensor(
        [[prompt_ids[-1], *ids[:-1], *[0] * (width - len(ids))] for ids in responses], device=model.device
    )
    with torch.inference_mode():
        cache = model(input_ids=prompt[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(responses))
        logits = model(input_ids=rows, past_key_values=cache, use_cache=True).logits
    targets = [torch.tensor(ids, device=model.device) for ids in responses]
    found = (token_logprobs(row[: len(ids)], ids) for row, ids in zip(logits, targets, strict=True))
    return [float(logprobs.double().mean()) for logprobs in found]


def measure(
    folder: Path,
    *,
    model: str | None = None,
    num_samples: int = 50,
    dtype: DType | None = None,
    device: str = "auto",
) -> LogProbs:
    """Log-probabilities of a data set's responses under the model that it was built for.

    Args:
        folder: of a build.
        model: where its model is now; by default the name in ``manifest.json``. Its fingerprint must be the build's.
        num_samples: how many are scored: those whose ids have the smallest hashes, so that builds of the same questions
            are compared on the same ones.
        dtype: of the weights; by default as in the build, but float32 on a CPU.
        device: ``auto`` is CUDA where there is one.

    Raises:
        UserError: no finished build there, another model, or one that gives no numbers.
    """
    manifest = read_manifest(folder)
    name = model or manifest.model
    config = load_config(name)
    _check_model(name, manifest, folder)
    if rope_type := length_dependent_rope(config):
        raise UserError(
            f"RoPE of type {rope_type!r} depends on the length of the row: a prompt cannot be computed once",
            where=name,
            mend="leave --log-probs out",
        )
    samples = heapq.nsmallest(num_samples, iterate_samples(folder), key=lambda sample: _digest(sample.id))
    if not samples:
        raise UserError("holds no samples", where=str(folder), mend="see its rejected.jsonl for the reasons")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    references = _bare_references(samples, name, config_window(config))
    if dtype is None:
        built = read_recipe(folder).engine.dtype
        dtype = "float32" if device == "cpu" else built
        if dtype != built:
            note(f"dtype: float32, on a CPU; the build's was {built} (--dtype {built} asks for it)")
    loaded = load_model(name, config=config, dtype=dtype, device=device)
    scored, size = [], vocabulary_size(config)
    with progress("log-probabilities", len(samples)) as tracker:
        for sample in samples:
            texts = [response.token_ids for response in (sample.chosen, *sample.rejected)]
            check_ids(size, sample.prompt_ids, *texts, *references.get(sample.id, []), where=f"sample {sample.id}")
            found = response_logprobs(loaded, sample.prompt_ids, texts + references.get(sample.id, []))
            check_responses(found[0], found[1 : len(texts)], sample.id)
            for value in found[len(texts) :]:
                check_finite({f"log-probability of the {BARE_REFERENCE}": value}, where=f"sample {sample.id}")
            scored.append(found)
            tracker.advance()
    estimates, gaps = _summary(samples, scored)
    return LogProbs(
        model=name,
        model_fingerprint=manifest.model_fingerprint,
        dtype=dtype,
        samples=len(samples),
        responses=estimates,
        gaps=gaps,
    )


def _check_model(name: str, manifest: Manifest, folder: Path) -> None:
    found, built = model_fingerprint(name), manifest.model_fingerprint
    if found != built:
        raise UserError(
            f"built with model {manifest.model} ({built}), this is {name} ({found})",
            where=str(folder),
            mend="give the build's own model with --model; a copy must have the same config and weights",
        )


def _bare_references(samples: Sequence[PreferenceSample], model: str, window: int) -> dict[str, list[list[int]]]:
    """For each sample's id a list of the reference as a response, as ``generation.preferred=reference`` makes it."""
    responses = (response for sample in samples for response in (sample.chosen, *sample.rejected))
    ends = [response.token_ids[-1] for response in responses if response.ended]
    if not ends:
        note("no response ended: the bare references are left out, for nothing says how a turn ends")
        return {}
    tokenizer = load_tokenizer(model, needs_template=False)
    found = {sample.id: [[*encode_text(tokenizer, sample.answers[0]), ends[0]]] for sample in samples if sample.answers}
    fitting = {
        sample.id: found[sample.id]
        for sample in samples
        if sample.id in found and len(sample.prompt_ids) + len(found[sample.id][0]) <= window
    }
    if len(fitting) < len(samples):
        note(f"{len(samples) - len(fitting)} samples have no reference, or one beyond the window: left out")
    return fitting


def _digest(sample_id: str) -> bytes:
    return hashlib.sha256(sample_id.encode("utf-8")).digest()


def _summary(
    samples: Sequence[PreferenceSample], scored: Sequence[Sequence[float]]
) -> tuple[list[StrategyEstimate], dict[str, Gap]]:
    """By strategy, and the paired gaps. ``scored``: preferred, dis-preferred ones, and the bare reference if any."""
    groups: dict[tuple[_Role, str], list[tuple[str, float]]] = defaultdict(list)
    gaps: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for sample, (chosen, *others) in zip(samples, scored, strict=True):
        rejected, reference = others[: len(sample.rejected)], others[len(sample.rejected) :]
        behind = sum(rejected) / len(rejected)
        groups["preferred", sample.chosen.strategy].append((sample.doc_id, chosen))
        gaps["preferred"].append((sample.doc_id, chosen - behind))
        for response, value in zip(sample.rejected, rejected, strict=True):
            groups["dis-preferred", response.strategy].append((sample.doc_id, value))
        for value in reference:
            groups["for comparison", BARE_REFERENCE].append((sample.doc_id, value))
            gaps[BARE_REFERENCE].append((sample.doc_id, value - behind))
    return (
        [
            StrategyEstimate(role=role, strategy=name, **dict(_estimate(found)))
            for (role, name), found in groups.items()
        ],
        {name: Gap(**dict(_estimate(found)), objectives=_starts(found)) for name, found in gaps.items()},
    )


def _starts(gaps: Iterable[tuple[str, float]]) -> list[Start]:
    """What the paper's objectives make of the gaps."""
    values = np.array([gap for _, gap in gaps])
    return [
        Start(
            beta=beta,
            gamma=gamma,
            beta_gap=float(beta * values.mean()),
            argument=float(beta * values.mean() - gamma),
            saturated=float((beta * values < FAR_BEHIND).mean()),
        )
        for beta, gamma in PAPER_OBJECTIVES
    ]


def _estimate(values: Sequence[tuple[str, float]]) -> Estimate:
    """Mean of (doc_id, value) with its 95 % bootstrap interval. Questions about one document are not
    independent: documents are drawn (:mod:`logodata.common.resampling`); of a single one there is no interval."""
    doc_ids, numbers = zip(*values, strict=True)
    [sums], counts = cluster_sums(np.array([numbers]), doc_ids)
    interval = None
    if (documents := len(sums)) > 1:
        draws = np.random.default_rng(0).multinomial(documents, [1 / documents] * documents, size=NUM_RESAMPLES)
        interval = percentile_interval((draws @ sums) / (draws @ counts), [documents])
    return Estimate(
        mean=sum(sums.tolist()) / len(values), interval=interval, responses=len(values), documents=documents
    )


def show(report: LogProbs) -> None:
    """Print the report of :func:`measure` as people read it."""
    table = Table("", "", box=None)
    for heading in ("nats a token", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.responses:
        table.add_row(row.role, f"{row.strategy} ({row.responses})", *_numbers(row))
    for name, gap in report.gaps.items():
        table.add_row("gap", f"{name} - dis-preferred", *_numbers(gap))
    console.print(f"log-probabilities of {report.samples} samples under {report.model}", markup=False)
    console.print(table)
    for line in advice(report.gaps["preferred"].objectives):
        console.print(line, markup=False, soft_wrap=True)


def _numbers(estimate: Estimate) -> tuple[str, str]:
    interval = estimate.interval
    return f"{estimate.mean:+.2f}", f"[{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "one document"


def advice(starts: Iterable[Start]) -> list[str]:
    """Lines under the table: where the loss starts, and a warning where it starts saturated."""
    lines = []
    for start in starts:
        lines.append(
            f"beta {start.beta:g}, gamma {start.gamma:g}: the loss starts at beta * gap - gamma = {start.argument:.1f}"
        )
        if start.beta_gap < FAR_BEHIND:
            lines.append(
                f"warning: beta * gap is {start.beta_gap:.1f}, below {FAR_BEHIND:g}: the loss starts saturated; "
                "build with generation.preferred=guided, model or best_of_n, or train with a smaller objective.beta"
            )
        elif start.saturated:
            lines[-1] += f"; beta * gap is below {FAR_BEHIND:g} for {start.saturated:.0%} of the samples"
    return lines
