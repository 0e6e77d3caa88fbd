"""Parts of gpu.py: the card's own speed, the training step, its attention, and the kernels that take the time."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from typing import Any, get_args

import torch
from torch import Tensor

from gpu_part import Bench, gib
from logodata.common.errors import UserError
from logotrain.attention.kernels import flash_attention, flex_row_attention, sdpa_attention
from logotrain.attention.shared_prefix import choose_backend
from logotrain.loss.objective import sample_loss
from logotrain.recipe.settings import Backend
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from measure import Stepper
from patterns import shared_prefix
from shape import Work, make_model, make_sample, twin
from step import LOGO, compare, environment, print_report


def ceilings(bench: Bench) -> dict[str, Any]:
    """Measure the rate of a square matrix product, of the product of the model's gate projection, and of a copy."""
    meter, shape = bench.meter(), bench.shape
    rates = [meter.product_rate() for _ in range(5)]
    tokens = shape.prompt + (1 + shape.rejected) * shape.response
    left, right = (
        torch.randn(size, device=bench.device, dtype=bench.dtype)
        for size in ((tokens, shape.hidden), (shape.hidden, shape.intermediate))
    )
    meter.seconds(lambda: left @ right)
    seconds = statistics.median(meter.seconds(lambda: left @ right) for _ in range(20))
    result: dict[str, Any] = {
        "matrix_product_flops_per_second": statistics.median(rates),
        "matrix_product_rounds": rates,
        "gate_projection_flops_per_second": 2 * tokens * shape.hidden * shape.intermediate / seconds,
        "copy_bytes_per_second": meter.copy_rate(),
        "environment": environment(bench.device),
    }
    if bench.on_gpu:
        free, total = torch.cuda.mem_get_info()
        result |= {"memory_bytes": total, "free_bytes": free, "cuda": torch.version.cuda}
    product, gate, copy = (
        result[name] / 1e12
        for name in (
            "matrix_product_flops_per_second",
            "gate_projection_flops_per_second",
            "copy_bytes_per_second",
        )
    )
    result["summary"] = [
        f"matrix product {product:.1f} TFLOP/s, gate projection {gate:.1f}, copy {copy:.2f} TB/s",
        f"{result['environment']['hardware']}, {result['environment']['versions']}",
    ]
    return result


MOST_TELLING = (
    *("reference", "separate_rows", "shared", "shared_selective", "shared_no_recompute"),
    "shared_no_recompute_compiled",
)


def step(bench: Bench) -> dict[str, Any]:
    """Compare and time the most telling variants of step.py, as :func:`step_all` does all of them."""
    return _step(bench, MOST_TELLING)


def step_all(bench: Bench) -> dict[str, Any]:
    """Compare and time all variants of step.py, interleaved, in up to five rounds while there is time."""
    return _step(bench, None)


def _step(bench: Bench, only: Collection[str] | None) -> dict[str, Any]:
    _let_variants_compile()
    faults: dict[str, str] = {}
    trl = only is None and find_spec("trl") is not None
    if only is None and not trl:
        faults["trl"] = "not installed"

    def with_summary(report: dict[str, Any]) -> dict[str, Any]:
        table = report["variants"]
        lines = [f"{name} {value:.2f}x" for name, value in report["ratios"].items() if value]
        fast = [name for name in ("shared_no_recompute", "shared_no_recompute_compiled") if name in table]
        lines += [
            f"{name}: {table[name]['seconds_median']:.3f} s, {table[name]['share_of_matrix_product']:.0%} of the "
            f"matrix product, {gib(table[name]['peak_bytes'])} above the weights"
            for name in fast
        ]
        lines.append(
            f"{report['repeats']} rounds; gradients differ by at most {report['largest_gradient_difference']:.1e}"
        )
        lines += [f"left out: {name}: {fault[:120]}" for name, fault in faults.items()]
        return {**report, "summary": lines}

    report = compare(
        bench.shape,
        bench.device,
        bench.dtype,
        rounds=1 if bench.small else 5,
        trl=trl,
        everything=True,
        only=only,
        attention=bench.attention,
        faults=faults,
        deadline=bench.deadline - 5,
        save=lambda report: bench.save(with_summary(report)),
    )
    print_report(report)
    report["attention_of_logotrain"], _ = choose_backend(bench.attention, bench.device, bench.dtype)
    return with_summary(report)


def _let_variants_compile() -> None:
    """Raise Dynamo's limit of eight: all variants share the code of a layer, and each has it compiled anew."""
    torch._dynamo.config.recompile_limit = 64


BACKENDS = {"flash": flash_attention, "flex": flex_row_attention, "sdpa": sdpa_attention}


def attention(bench: Bench) -> dict[str, Any]:
    """Time one layer's attention, forward and backward, with each back end, and compare the results.

    They are compared with each other, and with separate rows in float64. The latter are computed for one group of
    heads, since groups do not depend on each other.
    """
    shape, meter = bench.shape, bench.meter()
    layout = RowLayout((SharedPrefixLayout(shape.prompt, (shape.response,) * (1 + shape.rejected)),))
    head = shape.hidden // shape.heads
    generator = torch.Generator(bench.device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        size = (heads, layout.total_length, head)
        return torch.randn(size, generator=generator, device=bench.device).to(bench.dtype)

    states = [draw(shape.heads), draw(shape.kv_heads), draw(shape.kv_heads)]
    weights = draw(shape.heads)
    group = shape.heads // shape.kv_heads
    exact = [
        states[0][:group].double(),
        states[1][:1].double(),
        states[2][:1].double(),
    ]
    expected = _with_gradients(partial(separate_attention, layout=layout), exact, weights[:group].double())
    flops = Work.shared_prefix(shape, 1 + shape.rejected, recompute="none").attention_flops(replace(shape, layers=1))
    found: dict[str, list[Tensor]] = {}
    result: dict[str, Any] = {"flops": flops, "back_ends": {}, "against_each_other": {}, "summary": []}
    for name in get_args(Backend):
        try:
            choose_backend(name, bench.device, bench.dtype)
        except UserError as error:
            result["back_ends"][name] = {"refused": str(error)}
            result["summary"].append(f"{name}: refused here: {error.what}")
            continue
        run = partial(BACKENDS[name], layout=layout, scaling=None)
        try:
            values = _with_gradients(run, states, weights)
            seconds = [meter.steady_seconds(lambda run=run: _with_gradients(run, states, weights)) for _ in range(10)]
        except Exception as error:
            result["back_ends"][name] = {"fault": f"{type(error).__name__}: {error}"}
            result["summary"].append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
            continue
        cut = [values[0][:group], values[1][:group], values[2][:1], values[3][:1]]
        errors = {
            part: _relative(ours.double(), theirs)
            for part, ours, theirs in zip(("output", "query", "key", "value"), cut, expected, strict=True)
        }
        found[name] = [tensor.float() for tensor in values]
        rate = flops / statistics.median(seconds)
        result["back_ends"][name] = {
            "seconds_median": statistics.median(seconds),
            "seconds": seconds,
            "flops_per_second": rate,
            "errors_against_float64": errors,
        }
        worst = max(errors.values())
        result["summary"].append(
            f"{name}: {1e3 * statistics.median(seconds):.2f} ms, {rate / 1e12:.1f} TFLOP/s, off float64 by {worst:.1e}"
        )
        bench.save(result)
    for one, other in combinations(found, 2):
        result["against_each_other"][f"{one} {other}"] = max(
            _relative(a, b) for a, b in zip(found[one], found[other], strict=True)
        )
    return result


def _with_gradients(function: Any, states: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Return the output, and the gradients of query, key and value, given the gradient of the output."""
    inputs = [tensor.detach().requires_grad_() for tensor in states]
    output = function(*inputs)
    output.backward(weights)
    return [output.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


def separate_attention(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout) -> Tensor:
    """Compute causal attention of each response after its prompt in a row of its own, with explicit scores.

    Args:
        query: [G, N, D].
        key: [1, N, D].
        value: [1, N, D].
        layout: the layout of the row, which holds one sample.
    """
    prompt = layout.samples[0].prompt_length
    outputs: list[Tensor] = []
    for start, length in zip(layout.response_starts[0], layout.samples[0].response_lengths, strict=True):
        q, k, v = (
            torch.cat([states[:, :prompt], states[:, start : start + length]], 1) for states in (query, key, value)
        )
        scores = q @ k.mT * q.shape[-1] ** -0.5
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        answered = scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v
        outputs += [answered[:, :prompt]] if not outputs else []
        outputs.append(answered[:, prompt:])
    return torch.cat(outputs, dim=1)


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def profile(bench: Bench) -> dict[str, Any]:
    """List the kernels in which a step without recompute spends its time, with and without compiled layers."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    _let_variants_compile()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    result: dict[str, Any] = {"summary": []}
    model = make_model(bench.shape, bench.device, bench.dtype)
    stepper, sample = Stepper(model), make_sample(bench.shape, bench.shape.rejected)
    with ExitStack() as stack:
        for name, compiled in (("shared_no_recompute", False), ("shared_no_recompute_compiled", True)):
            how: dict[str, Any] = {"recompute": "none", "compiled": compiled, "attention": bench.attention}
            logprobs = shared_prefix(twin(model), sample, bench.device, stack, **how)
            run = partial(stepper.step, lambda logprobs=logprobs: sample_loss(LOGO, logprobs()).loss[0])
            run()
            run()
            with profiled(activities=activities) as seen:
                run()
                if bench.on_gpu:
                    torch.cuda.synchronize()
            kind = DeviceType.CUDA if bench.on_gpu else DeviceType.CPU  # operators hold their kernels' times again
            times = {
                event.key: (event.self_device_time_total if bench.on_gpu else event.self_cpu_time_total) / 1e6
                for event in seen.key_averages()
                if event.device_type == kind
            }
            total = sum(times.values())
            top = dict(sorted(times.items(), key=lambda item: -item[1])[:25])
            result[name] = {"seconds": total, "kernels": top}
            result["summary"].append(f"{name}: {total:.3f} s in kernels; the longest:")
            result["summary"] += [
                f"  {seconds / total:5.1%} {key[:90]}" for key, seconds in list(top.items())[:10] if total
            ]
            bench.save(result)
    return result
