"""Forward and backward of one training sample, our way and the ways it replaces, interleaved in one process.

``python benchmarks/step.py --device cpu --json FILE``; every figure of a shape is an option, ``--help`` lists them.

What makes the comparison fair:

- All variants hold the same weight tensors: a randomly filled Llama with LoRA on every linear layer. Trees of modules
  over them are separate, so that no setting of one (attention, recomputation, hooks) reaches another.
- All see the same token ids. Responses have one length, so the padded patterns compute no padding: their best case.
- Before any clock runs, losses and the gradients of all adapters are compared. The exit code is 1 if they differ.
- In timed rounds memory is kept when freed, so that nobody pays for fresh pages: the large batches' best case.
- Each round runs every variant once and the next round starts with another one; figures are medians over rounds.
- TRL is its own CPOTrainer: its tokenisation, its collator, its concatenated forward, its loss. It has no LOGO loss, so
  it runs CPO, and our code runs CPO on the same pairs to be compared with it. The loss itself costs nothing.

A step is forward and backward of one sample. The optimizer is left out: it is the same for all, and adapters are small.

Two other comparisons run instead of this one:

- ``--context 2``: the same row computed by two processes of a thread or a GPU each (``parallel.context_size``).
- ``--rival flash-preference=PYTHON``, ``--rival dpo-prefix-sharing=PYTHON``: a DPO step of a pair by other projects
  that share prompts, each beside separate rows in the environment of its PYTHON, and logotrain in this one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from context_step import measure_context
from logodata.common.errors import UserError, run_command
from logodata.contract import PreferenceSample
from logotrain.attention.shared_prefix import choose_backend
from logotrain.loss.objective import sample_loss
from logotrain.plan.choices import recompute_choices
from logotrain.recipe.objectives import CpoSettings, DpoSettings, LogoSettings
from logotrain.recipe.settings import Recompute
from measure import Found, Meter, Stepper, Variant, examine, time_rounds
from patterns import (
    Attention,
    Logprobs,
    recompute_all,
    reference_pattern,
    reference_sums,
    separate_rows,
    shared_prefix,
    trl_cpo,
    trl_dpo,
    trl_recomputes,
)
from shape import CPU_SHAPE, CUDA_SHAPE, Shape, Work, make_model, make_sample, twin

LOGO, CPO, DPO = LogoSettings(), CpoSettings(), DpoSettings()
RIVALS = ("flash-preference", "dpo-prefix-sharing")
SETTINGS = {"logo": LOGO, "cpo": CPO, "dpo": DPO}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of gradients that counts as equal: norm of the difference over norm."""


def make_variants(
    shape: Shape,
    model: PeftModel,
    device: torch.device,
    stack: ExitStack,
    *,
    trl: bool,
    everything: bool = False,
    attention: Attention = "auto",
    faults: dict[str, str] | None = None,
) -> list[Variant]:
    """All variants, those that the others are compared with first.

    Args:
        shape: of model and sample.
        model: lends its weights to all of them.
        device: where.
        stack: closes what they need while they run.
        trl: whether TRL's trainers are among them.
        everything: also selective recomputation, compiled layers, M = 1 of the reference pattern and TRL's DPO.
        attention: of logotrain's variants.
        faults: gets what TRL said if its trainers cannot be made. None: that is raised.
    """
    sample, pair = make_sample(shape, shape.rejected), make_sample(shape, 1)
    many, rows = f"M={shape.rejected}", 1 + shape.rejected
    log_p = reference_sums(twin(model), sample, device) if trl and everything else None
    variants: list[Variant] = []

    def loss_of(key: str, logprobs: Logprobs) -> Callable[[], Tensor]:
        settings = SETTINGS[key.split()[0]]
        reference = log_p if settings is DPO else None
        return lambda: sample_loss(settings, logprobs(), reference=reference).loss[0]

    def add(name: str, says: str, logprobs: Logprobs, keys: Sequence[str], work: Work) -> None:
        variants.append(Variant(name, says, {key: loss_of(key, logprobs) for key in keys}, work))

    plain = {False: recompute_all(twin(model))}
    if everything:
        plain[True] = recompute_all(twin(model), compiled=True)
    for compiled, tree in plain.items():
        says, work = "full rows, all logits, full recompute", partial(Work.separate_rows, shape, recompute="full")
        if compiled:
            says += ", compiled"
        name = _name("reference", compiled=compiled)
        add(
            name,
            f"{rows} {says}",
            reference_pattern(tree, sample, device),
            [f"logo {many}"],
            work(rows, all_logits=True),
        )
        if everything and not compiled:
            one_pair = reference_pattern(tree, pair, device)
            add("reference_one_pair", f"2 {says}", one_pair, ["logo M=1"], work(2, all_logits=True))
    if trl:
        try:
            variants += _trl_variants(shape, model, sample, pair, device, stack, log_p)
        except Exception as error:
            if faults is None:
                raise
            faults["trl"] = f"{type(error).__name__}: {error}"
    for compiled, tree in plain.items():
        add(
            _name("separate_rows", compiled=compiled),
            f"{rows} full rows, response logits, full recompute{', compiled' if compiled else ''}",
            separate_rows(tree, sample, device),
            [f"logo {many}"],
            Work.separate_rows(shape, rows, all_logits=False, recompute="full"),
        )
    backend, _ = choose_backend(attention, device, model.get_base_model().dtype)
    choices = recompute_choices(backend) if everything else ("full", "none")
    for compiled, recompute in product(plain, choices):
        for data, keys in (
            (sample, [f"logo {many}", f"cpo {many}", *([] if log_p is None else [f"dpo {many}"])]),
            (pair, ["cpo M=1", *(["logo M=1"] if everything else [])]),
        ):
            if data is pair and recompute == "selective":
                continue
            logprobs = shared_prefix(
                twin(model), data, device, stack, recompute=recompute, compiled=compiled, attention=attention
            )
            says = f"logotrain, M={len(data.rejected)}, {recompute.replace('none', 'no')} recompute"
            work = Work.shared_prefix(shape, 1 + len(data.rejected), recompute=recompute)
            name = _name("shared", recompute=recompute, one_pair=data is pair, compiled=compiled)
            add(name, says + (", compiled" if compiled else ""), logprobs, keys, work)
    return variants


def _name(base: str, *, recompute: Recompute = "full", one_pair: bool = False, compiled: bool = False) -> str:
    again = {"full": "", "selective": "_selective", "none": "_no_recompute"}[recompute]
    return f"{base}{again}{'_one_pair' if one_pair else ''}{'_compiled' if compiled else ''}"


def _trl_variants(
    shape: Shape,
    model: PeftModel,
    sample: PreferenceSample,
    pair: PreferenceSample,
    device: torch.device,
    stack: ExitStack,
    log_p: Tensor | None,
) -> list[Variant]:
    """CPO; and where the reference's log-probabilities are given, DPO as it comes and with these."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    default = trl_recomputes()
    variants: list[Variant] = []
    for name, data, changes in (
        ("trl_same_data", sample, {}),
        ("trl_same_data_no_recompute", sample, {"gradient_checkpointing": False}),
        ("trl_one_pair", pair, {}),
    ):
        pairs, recompute = len(data.rejected), default and not changes
        loss = trl_cpo(twin(model), data, CPO, device, folder, **changes)
        says = f"TRL CPO, {pairs} pairs, gradient_checkpointing={recompute}{'' if changes else ', its default'}"
        work = Work.separate_rows(shape, 2 * pairs, all_logits=True, recompute="full" if recompute else "none")
        variants.append(Variant(name, says, {f"cpo M={pairs}": loss}, work))
    if log_p is not None:
        pairs = len(sample.rejected)
        for name, known in (("trl_dpo", None), ("trl_dpo_known_reference", log_p)):
            loss = trl_dpo(twin(model), sample, DPO, device, folder, reference=known)
            when = "once" if known is not None else "in every step, its default"
            says = f"TRL DPO, {pairs} pairs, reference computed {when}"
            # Off the GPU TRL computes all logits.
            work = Work.separate_rows(
                shape,
                2 * pairs,
                all_logits=device.type == "cpu",
                recompute="full" if default else "none",
                reference=known is None,
            )
            variants.append(Variant(name, says, {f"dpo M={pairs}": loss}, work))
    return variants


RATIOS = {
    "separate_rows_vs_reference": ("reference", "separate_rows"),
    "shared_vs_reference": ("reference", "shared"),
    "shared_no_recompute_vs_reference": ("reference", "shared_no_recompute"),
    "shared_vs_trl_same_data": ("trl_same_data", "shared"),
    "shared_no_recompute_vs_trl_same_data": ("trl_same_data", "shared_no_recompute"),
    "shared_no_recompute_vs_trl_same_data_no_recompute": ("trl_same_data_no_recompute", "shared_no_recompute"),
    "shared_vs_trl_one_pair": ("trl_one_pair", "shared_one_pair"),
    "shared_no_recompute_vs_trl_one_pair": ("trl_one_pair", "shared_no_recompute_one_pair"),
}
"""Time of the first over time of the second: how many times faster the second is."""

MORE_RATIOS = {
    "shared_selective_vs_reference": ("reference", "shared_selective"),
    "shared_compiled_vs_reference": ("reference", "shared_compiled"),
    "shared_selective_compiled_vs_reference": ("reference", "shared_selective_compiled"),
    "shared_no_recompute_compiled_vs_reference": ("reference", "shared_no_recompute_compiled"),
    "shared_no_recompute_compiled_vs_reference_compiled": ("reference_compiled", "shared_no_recompute_compiled"),
    "shared_no_recompute_compiled_vs_shared_no_recompute": ("shared_no_recompute", "shared_no_recompute_compiled"),
    "shared_no_recompute_compiled_vs_trl_same_data": ("trl_same_data", "shared_no_recompute_compiled"),
    "shared_no_recompute_vs_reference_one_pair": ("reference_one_pair", "shared_no_recompute_one_pair"),
    "shared_no_recompute_vs_trl_dpo": ("trl_dpo", "shared_no_recompute"),
    "shared_no_recompute_vs_trl_dpo_known_reference": ("trl_dpo_known_reference", "shared_no_recompute"),
}
"""The same, of what ``everything`` adds."""


def make_report(
    shape: Shape,
    variants: list[Variant],
    found: dict[str, Found],
    seconds: dict[str, list[float]],
    rates: list[float],
) -> dict[str, Any]:
    rate = statistics.median(rates)
    table: dict[str, dict[str, Any]] = {}
    for variant in variants:
        times, flops = seconds[variant.name], variant.work.flops(shape)
        achieved = flops / statistics.median(times)
        table[variant.name] = {
            "is": variant.says,
            "timed_loss": variant.timed_loss,
            "seconds_median": statistics.median(times),
            "seconds_min": min(times),
            "seconds_max": max(times),
            "seconds": times,
            "flops": flops,
            "flops_per_second": achieved,
            "share_of_matrix_product": achieved / rate,
            "peak_bytes": found[variant.name].peak_bytes,
            "differences": found[variant.name].differences,
        }
    ratios: dict[str, float | None] = {}
    ranges: dict[str, list[float]] = {}
    counted: dict[str, float] = {}
    for name, (slow, fast) in (RATIOS | MORE_RATIOS).items():
        if slow not in table or fast not in table:
            ratios |= {name: None} if name in RATIOS else {}
            continue
        ratios[name] = table[slow]["seconds_median"] / table[fast]["seconds_median"]
        by_round = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
        ranges[name] = [min(by_round), max(by_round)]
        counted[name] = table[slow]["flops"] / table[fast]["flops"]
    return {
        "ratios": ratios,
        "ratios_lowest_and_highest_round": ranges,
        "ratios_of_flops": counted,
        "losses": {name: item.losses for name, item in found.items()},
        "variants": table,
        "matrix_product_flops_per_second": rate,
    }


def print_report(report: dict[str, Any]) -> None:
    print(
        f"\n{'variant':32} {'median s':>9} {'lowest':>8} {'highest':>8} {'TFLOP':>8} {'of matmul':>9} {'peak MiB':>9}"
    )
    for name, row in report["variants"].items():
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        times = f"{row['seconds_median']:9.3f} {row['seconds_min']:8.3f} {row['seconds_max']:8.3f}"
        print(f"{name:32} {times} {row['flops'] / 1e12:8.3f} {row['share_of_matrix_product']:9.0%} {peak:>9}")
    print(f"matrix product: {report['matrix_product_flops_per_second'] / 1e12:.3f} TFLOP/s; peak: above the weights")
    print(f"\n{'times as fast':50} {'measured':>8} {'rounds':>12} {'by FLOPs':>9}")
    for name, ratio in report["ratios"].items():
        if ratio is None:
            print(f"{name:50} {'-':>8}")
            continue
        low, high = report["ratios_lowest_and_highest_round"][name]
        print(f"{name:50} {ratio:8.2f} {low:6.2f}-{high:.2f} {report['ratios_of_flops'][name]:9.2f}")


def environment(device: torch.device) -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for package in ("torch", "transformers", "peft", "trl"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu: float32; cuda: bfloat16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median needs 5 (default)")
    parser.add_argument(
        "--everything", action="store_true", help="also selective recompute, compiled layers, M = 1, TRL's DPO"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default 1)")
    parser.add_argument("--context", type=int, metavar="C", help="only: one row over C processes, beside one process")
    parser.add_argument(
        "--rival", action="append", default=[], metavar="NAME=PYTHON", help=f"only: {', '.join(RIVALS)}; repeatable"
    )
    group = parser.add_argument_group("shape", "defaults for cpu, and for cuda")
    for field in fields(Shape):
        defaults = f"{getattr(CPU_SHAPE, field.name)}, {getattr(CUDA_SHAPE, field.name)}"
        group.add_argument(f"--{field.name.replace('_', '-')}", type=int, metavar="N", help=defaults)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device", mend="use --device cpu")
    for rival in arguments.rival:
        name, _, python = rival.partition("=")
        if name not in RIVALS or not python:
            raise UserError(
                f"no rival {name!r}", where="--rival", mend=f"give NAME=PYTHON, NAME one of {', '.join(RIVALS)}"
            )
    return arguments


def measure_rivals(shape: Shape, rivals: Sequence[str], device: str, rounds: int, threads: int) -> dict[str, Any]:
    """The DPO step of logotrain and of each ``NAME=PYTHON``, beside separate rows in the same environment. One that
    fails is told, and the others are measured."""
    results: dict[str, Any] = {}
    settings = json.dumps({**asdict(shape), "device": device, "rounds": rounds, "threads": threads})
    for name, python in [("logotrain", sys.executable), *(rival.split("=", 1) for rival in rivals)]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            program = str(Path(__file__).with_name("rival_step.py"))
            ended = subprocess.run([python, program, name, settings, str(file)], stderr=subprocess.PIPE, text=True)
            if ended.returncode or not file.exists():
                results[name] = {"fault": ended.stderr.strip()[-2000:]}
                print(f"{name}: failed: {ended.stderr.strip().splitlines()[-1:]}")
                continue
            results[name] = found = json.loads(file.read_text())
        medians = {way: statistics.median(times) for way, times in found["seconds"].items()}
        print(
            f"{name}: {medians['shared']:.3f} s, {found['ratio']:.2f} times as fast as separate rows there "
            f"({medians['separate']:.3f} s); gradients differ by {found['gradient_difference']:.1e}"
        )
    return results


def compare(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rounds: int,
    trl: bool,
    everything: bool = False,
    only: Collection[str] | None = None,
    attention: Attention = "auto",
    faults: dict[str, str] | None = None,
    deadline: float = math.inf,
    save: Callable[[dict[str, Any]], None] = lambda _report: None,
) -> dict[str, Any]:
    """Losses, gradients, memory and time of all variants.

    Args:
        shape: of model and sample.
        device: where.
        dtype: of the weights.
        rounds: of the clock.
        trl, everything, attention, faults: see :func:`make_variants` and :func:`measure.examine`.
        only: the names of the variants; None is all of them.
        deadline: see :func:`measure.time_rounds`.
        save: gets the report after each round.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*trl.experimental")
        model = make_model(shape, device, dtype)
        chosen: dict[str, Any] = {"trl": trl, "everything": everything, "attention": attention, "faults": faults}
        variants = make_variants(shape, model, device, stack, **chosen)
        variants = [variant for variant in variants if only is None or variant.name in only]
        stepper, meter = Stepper(model), Meter(device, dtype)
        print("losses, and how far they and the gradients are from the first variant's that computes the same:")
        found = examine(variants, stepper, meter, faults)
        variants = [variant for variant in variants if variant.name in found]
        worst = max((off["gradient"] for item in found.values() for off in item.differences.values()), default=0.0)

        def whole(seconds: dict[str, list[float]], rates: list[float]) -> dict[str, Any]:
            return {
                **make_report(shape, variants, found, seconds, rates),
                "largest_gradient_difference": worst,
                "left_out": faults or {},
                "shape": {**asdict(shape), "head_share": shape.head_share},
                "dtype": str(dtype).removeprefix("torch."),
                "repeats": len(rates),
            }

        seconds, rates = time_rounds(
            variants,
            stepper,
            meter,
            rounds,
            deadline=deadline,
            after_round=lambda seconds, rates: save(whole(seconds, rates)),
        )
    return whole(seconds, rates)


def _write(file: Path | None, report: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if the variants disagree."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    given = {field.name: getattr(arguments, field.name) for field in fields(Shape)}
    shape = replace(
        CUDA_SHAPE if on_gpu else CPU_SHAPE, **{name: value for name, value in given.items() if value is not None}
    )
    facts = environment(device)
    trl = facts["versions"]["trl"] is not None
    if not trl:
        print("TRL is not installed, its variants are left out: pip install trl==1.16.0", file=sys.stderr)
    print(f"{facts['hardware']}, torch threads {facts['threads']}, {dtype}, head share {shape.head_share:.1%}")
    print(", ".join(f"{name} {value}" for name, value in asdict(shape).items()))
    if arguments.context or arguments.rival:
        report = {**facts, "shape": asdict(shape)}
        if arguments.context:
            report["context"] = measure_context(shape, arguments.context, arguments.device, arguments.repeats)
        if arguments.rival:
            how = (arguments.device, arguments.repeats, arguments.threads)
            report["rivals"] = measure_rivals(shape, arguments.rival, *how)
        _write(arguments.json, report)
        return 0
    backend, reason = choose_backend("auto", device, dtype)
    print(f"attention of logotrain: {backend} ({reason})")

    report = compare(shape, device, dtype, rounds=arguments.repeats, trl=trl, everything=arguments.everything)
    report = {**report, "attention_of_logotrain": backend, **facts}
    print_report(report)
    _write(arguments.json, report)
    worst = report["largest_gradient_difference"]
    if worst > TOLERANCE[dtype]:
        print(f"the variants disagree: gradients differ by {worst:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command("step.py", main, resume_hint="nothing was written"))
