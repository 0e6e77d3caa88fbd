"""Log-probabilities of the responses of a data set under its model: ``logodata stats --log-probs``.

LOGO trains the gap between r(preferred) and the mean of r(dis-preferred), where r is a response's mean log-probability
per token under the training prompt (paper, Eq. 2). A preferred response that the model would never word that way starts
far behind, and the loss is saturated before the first step. This command shows it before training. Positions are
natural here, and training spreads them.
"""

from __future__ import annotations

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
from logodata.common.resampling import mean_interval
from logodata.contract import ImportManifest, PreferenceSample
from logodata.dataset.files import read_recipe
from logodata.dataset.samples import check_pairs, iterate_samples, read_manifest
from logodata.engines.batching_trial import find_batching
from logodata.engines.settings import EngineSettings, asked_fingerprint
from logodata.models.loading import DType, device_named, dtype_for, load_config, load_model, load_tokenizer
from logodata.models.logprobs import text_logprobs, token_logprobs
from logodata.models.rope import reset_rope
from logodata.models.text_config import config_window
from logodata.models.vocabulary import check_ids, vocabulary_size
from logodata.prompts import encode_text
from logodata.sources.fields import text_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BARE_REFERENCE = "bare reference"
"""The name of the reference answer as a response, which is scored for comparison."""

PAPER_OBJECTIVES = ((10.0, 3.0), (2.5, 0.25))
"""(beta, gamma) of the paper for Llama-3, and of ``recipes/embedded.yaml`` for a small model."""

FAR_BEHIND = -10.0
"""The value of beta * gap below which the loss is saturated and every gradient is clipped. ``logotrain`` warns too."""

_Role = Literal["preferred", "dis-preferred", "for comparison"]


class Estimate(Record):
    """A mean in nats a token with its 95 % interval, which is None if all values come from one document."""

    mean: float
    interval: tuple[float, float] | None
    responses: int
    documents: int


class _StrategyHead(Record):
    role: _Role
    strategy: str


class StrategyEstimate(Estimate, _StrategyHead):
    """The mean log-probability of the responses of one strategy."""


class Start(Record):
    """The start of a loss. ``argument`` is the mean argument of its sigmoid, beta * gap - gamma. ``saturated`` is the
    share of samples where it is saturated."""

    beta: float
    gamma: float
    beta_gap: float
    argument: float
    saturated: float


class Gap(Estimate):
    """The mean distance of responses above the mean of the dis-preferred ones, and the losses that start there."""

    objectives: list[Start]


class LogProbs(Record):
    """Log-probabilities of the responses of a data set. ``gaps`` holds that of the preferred responses, and that of the
    bare references in their place."""

    model: str
    model_fingerprint: str
    dtype: str
    samples: int
    responses: list[StrategyEstimate]
    gaps: dict[str, Gap]


def response_logprobs(
    model: PreTrainedModel, prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]
) -> list[float]:
    """Return r(y) of each response: its mean log-probability per token after the prompt, in nats.

    The prompt runs once, for models that give the same numbers then (:mod:`logodata.engines.batching_trial`). All
    responses run as one batch against its keys and values. They are padded at the end, where nothing attends under
    causal attention. Logits of the prompt are computed at one position only. For other models each response runs after
    a prompt of its own. Log-softmax is taken in float32 (float64 for a float64 model), and means in float64.

    The prompt has two tokens at least, and a response one.
    """
    if find_batching(model.config).way != "shared":
        return [_separate_logprob(model, prompt_ids, ids) for ids in responses]
    prompt = torch.tensor([prompt_ids], device=model.device)
    width = max(map(len, responses))
    # The logits of the prompt's last token predict the first tokens of the responses, so it runs with them.
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


def _separate_logprob(model: PreTrainedModel, prompt_ids: Sequence[int], response: Sequence[int]) -> float:
    reset_rope(model)
    found = text_logprobs(model, [*prompt_ids, *response], len(response), chunk_tokens=len(response))
    return float(found.double().mean())


def measure(
    folder: Path, *, model: str | None = None, num_samples: int = 50, dtype: DType | None = None, device: str = "auto"
) -> LogProbs:
    """Measure the log-probabilities of the responses of a data set under the model that it was built for.

    Args:
        model: The model of the build, where it is now; by default the name in ``manifest.json``.
        num_samples: The number of samples to score. Those with the smallest hashes of ids are taken, so that builds of
            the same questions are compared on the same samples.
        dtype: The dtype of the weights; by default that of the build, but float32 on a CPU.
        device: The device; ``auto`` is CUDA if there is one.

    Raises:
        UserError: The folder holds no finished build, the model is another one, or it computes no finite numbers.
    """
    manifest = read_manifest(folder)
    name = model or manifest.model
    adapter = None
    if not isinstance(manifest, ImportManifest):
        recipe = read_recipe(folder)
        adapter = recipe.adapter
        if recipe.engine.kind == "chat":
            what = "a chat server wrote the responses, whose model has no weights here"
            raise UserError(what, where=str(folder), mend="import its text export (logodata export, logodata import)")
    config = load_config(name, adapter=adapter)
    found, built = asked_fingerprint(EngineSettings(), name, adapter), manifest.model_fingerprint
    if found != built:
        raise UserError(
            f"built with model {manifest.model} ({built}), this is {name} ({found})",
            where=str(folder),
            mend="give the build's own model with --model; a copy must have the same config and weights",
        )
    samples = heapq.nsmallest(num_samples, iterate_samples(folder), key=lambda sample: text_digest(sample.id))
    if not samples:
        raise UserError("holds no samples", where=str(folder), mend="see its rejected.jsonl for the reasons")
    check_pairs(samples, str(folder), mend="build without generation.rejected=none")
    device = device_named(device)
    references = _bare_references(samples, name, config_window(config))
    if dtype is None:
        of_build = "auto" if isinstance(manifest, ImportManifest) else read_recipe(folder).engine.dtype
        dtype = dtype_for(device) if device == "cpu" or of_build == "auto" else of_build
        if of_build not in ("auto", dtype):
            note(f"dtype: float32, on a CPU; the build's was {of_build} (--dtype {of_build} asks for it)")
    loaded = load_model(name, adapter=adapter, config=config, dtype=dtype, device=device)
    scored, size = [], vocabulary_size(config)
    with progress("log-probabilities", len(samples)) as tracker:
        for sample in samples:
            where, num_responses = f"sample {sample.id}", 1 + len(sample.rejected)
            texts = [response.token_ids for response in (sample.chosen, *sample.rejected)]
            texts += references.get(sample.id, [])
            check_ids(size, sample.prompt_ids, *texts, where=where)
            values = response_logprobs(loaded, sample.prompt_ids, texts)
            check_responses(values[0], values[1:num_responses], sample.id)
            for value in values[num_responses:]:
                check_finite({f"log-probability of the {BARE_REFERENCE}": value}, where=where)
            scored.append(values)
            tracker.advance()
    estimates, gaps = _summary(samples, scored)
    return LogProbs(
        model=name,
        model_fingerprint=built,
        dtype=dtype,
        samples=len(samples),
        responses=estimates,
        gaps=gaps,
    )


def _bare_references(samples: Sequence[PreferenceSample], model: str, window: int) -> dict[str, list[list[int]]]:
    """Return for the id of a sample a list with its reference, as ``generation.preferred=reference`` makes it."""
    if not any(sample.answers for sample in samples):
        return {}  # imported pairs have no references
    responses = (response for sample in samples for response in (sample.chosen, *sample.rejected))
    ends = [response.token_ids[-1] for response in responses if response.ended]
    if not ends:
        note("no response ended: the bare references are left out, for nothing says how a turn ends")
        return {}
    tokenizer = load_tokenizer(model, needs_template=False)
    found: dict[str, list[list[int]]] = {}
    for sample in samples:
        if sample.answers:
            reference = [*encode_text(tokenizer, sample.answers[0]), ends[0]]
            if len(sample.prompt_ids) + len(reference) <= window:
                found[sample.id] = [reference]
    if len(found) < len(samples):
        note(f"{len(samples) - len(found)} samples have no reference, or one beyond the window: left out")
    return found


def _summary(
    samples: Sequence[PreferenceSample], scored: Sequence[Sequence[float]]
) -> tuple[list[StrategyEstimate], dict[str, Gap]]:
    """Return estimates by strategy, and the paired gaps. Numbers of bare references stand at the end of ``scored``."""
    groups: dict[tuple[_Role, str], list[tuple[str, float]]] = defaultdict(list)
    gaps: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for sample, (chosen, *others) in zip(samples, scored, strict=True):
        rejected, reference = others[: len(sample.rejected)], others[len(sample.rejected) :]
        behind = sum(rejected) / len(rejected)
        groups["preferred", sample.chosen.strategy].append((sample.cluster, chosen))
        gaps["preferred"].append((sample.cluster, chosen - behind))
        for response, value in zip(sample.rejected, rejected, strict=True):
            groups["dis-preferred", response.strategy].append((sample.cluster, value))
        for value in reference:
            groups["for comparison", BARE_REFERENCE].append((sample.cluster, value))
            gaps[BARE_REFERENCE].append((sample.cluster, value - behind))
    return (
        [
            StrategyEstimate(role=role, strategy=name, **dict(_estimate(found)))
            for (role, name), found in groups.items()
        ],
        {name: Gap(**dict(_estimate(found)), objectives=_starts(found)) for name, found in gaps.items()},
    )


def _starts(gaps: Iterable[tuple[str, float]]) -> list[Start]:
    """Return where the paper's objectives start with these gaps."""
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
    """Return the mean of pairs (doc_id, value) with its 95 % bootstrap interval."""
    # Documents are drawn, because questions about one document are not independent.
    doc_ids, numbers = zip(*values, strict=True)
    return Estimate(
        mean=sum(numbers) / len(values),
        interval=mean_interval(numbers, doc_ids),
        responses=len(values),
        documents=len(set(doc_ids)),
    )


def show(report: LogProbs) -> None:
    """Print the result of :func:`measure` for people."""
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
    """Return lines that say where the loss starts, with a warning if it starts saturated."""
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
