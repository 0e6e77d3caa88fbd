"""Parts of gpu.py: perplexity curve and retrieval score at 64K tokens, and generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from gpu_part import Bench, gib
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.settings import EngineSettings
from logodata.engines.transformers_engine import TransformersEngine
from logoeval.tasks.needles.attention_trace import trace_answers
from logoeval.tasks.perplexity import token_nlls
from shape import BOS, EOS, model_config, random_llama


def _model(bench: Bench, window: int) -> PreTrainedModel:
    config = model_config(bench.shape, max_position_embeddings=window, use_cache=True)
    return random_llama(config, bench.device, bench.dtype).eval()


def _ids(bench: Bench, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [BOS, *torch.randint(3, bench.shape.vocabulary, (count - 1,), generator=generator).tolist()]


def _measured(bench: Bench, work: Callable[[], object]) -> dict[str, Any]:
    """Measure the bytes above the weights in a first run, and the seconds of a second one."""
    meter = bench.meter()
    return {"peak_bytes": meter.peak_bytes(work), "seconds": meter.seconds(work)}


def long_context(bench: Bench) -> dict[str, Any]:
    """Measure the perplexity curve in one pass and length by length, and the trace of two answers (retrieval score)."""
    longest = 256 if bench.small else 65536
    lengths = [longest // 2**n for n in range(5, -1, -1)]
    model, ids = _model(bench, 2 * longest), _ids(bench, longest, 0)
    result: dict[str, Any] = {"longest": longest, "lengths": lengths, "summary": []}

    result["one_pass"] = found = _measured(bench, lambda: token_nlls(model, ids))
    result["summary"].append(
        f"perplexity at {longest}: {found['seconds']:.2f} s, {gib(found['peak_bytes'])} above the weights"
    )
    bench.save(result)

    answers = [_ids(bench, 4 if bench.small else 48, seed) for seed in (1, 2)]
    result["trace"] = found = _measured(bench, lambda: trace_answers(model, ids[: -len(answers[0])], answers))
    result["summary"].append(
        f"retrieval score at {longest}, two answers of {len(answers[0])} tokens: {found['seconds']:.2f} s, "
        f"{gib(found['peak_bytes'])} above the weights"
    )
    bench.save(result)

    meter = bench.meter()
    result["length_by_length"] = times = [meter.seconds(lambda n=n: token_nlls(model, ids[:n])) for n in lengths]
    ratio = sum(times) / result["one_pass"]["seconds"]
    result["ratios"] = {"perplexity_curve_one_pass_vs_length_by_length": ratio}
    result["summary"].append(f"the curve of {len(lengths)} lengths in one pass: {ratio:.2f}x of length by length")
    return result


def generate(bench: Bench) -> dict[str, Any]:
    """Measure the transformers engine on five questions on each of four documents.

    It answers them in batches with shared prefixes, in batches of single prompts, and one prompt at a time.
    """
    documents, questions, new = (2, 3, 4) if bench.small else (4, 5, 64)
    context, question = (24, 6) if bench.small else (6144, 64)
    model = _model(bench, 2 * (context + question + new))
    sampling = Sampling(max_new_tokens=new, stop_ids=(EOS,), min_new_tokens=new)
    requests = [
        GenerationRequest(f"{d}-{q}", (*_ids(bench, context, d), *_ids(bench, question, 100 + q)), sampling)
        for d in range(documents)
        for q in range(questions)
    ]
    result: dict[str, Any] = {"prompts": len(requests), "prompt_tokens": context + question, "summary": []}
    tokens: dict[str, dict[str, tuple[int, ...]]] = {}

    def run(name: str, parts: list[list[GenerationRequest]], **settings: int) -> None:
        engine = TransformersEngine(model, EngineSettings(**settings))
        list(engine.generate([GenerationRequest("warm", requests[0].prompt_ids, Sampling(2, (EOS,)))]))
        started = time.perf_counter()
        found = [item for part in parts for item in engine.generate(part)]
        if bench.on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        tokens[name] = {item.id: item.token_ids for item in found}
        rate = sum(len(item.token_ids) for item in found) / seconds
        # Greedy choices of bfloat16 logits may part where two are nearly equal.
        first = next(iter(tokens.values()))
        same = sum(value == first[key] for key, value in tokens[name].items()) / len(found)
        result[name] = {"seconds": seconds, "new_tokens_per_second": rate, "prompts": len(found), "same_as_first": same}
        result["summary"].append(
            f"{name}: {rate:.0f} new tokens/s, {len(found) / seconds:.2f} answers/s, {same:.0%} as the first"
        )
        bench.save(result)

    wide = 2 * len(requests) * (context + question)
    run("batched_shared_prefix", [requests], max_batch_tokens=wide)
    run("default_settings", [requests])
    mixed = [requests[q::questions] for q in range(questions)]  # no two on one document
    run("batched_no_sharing", mixed, max_batch_tokens=wide)
    run("one_at_a_time", [[request] for request in requests[: len(requests) // 2]])

    def ratio(slow: str) -> float:
        answers = {name: result[name]["prompts"] / result[name]["seconds"] for name in ("batched_shared_prefix", slow)}
        return float(answers["batched_shared_prefix"] / answers[slow])

    result["ratios"] = {
        f"batched_shared_prefix_vs_{slow}": ratio(slow) for slow in ("batched_no_sharing", "one_at_a_time")
    }
    result["summary"] += [f"{name} {value:.2f}x" for name, value in result["ratios"].items()]
    return result
