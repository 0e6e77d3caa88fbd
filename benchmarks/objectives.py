"""What a sample costs under each objective, as a multiple of LOGO with M = 2: measured interleaved, and by formula.

``python benchmarks/objectives.py [--rounds 7] [--threads 1]``

A sample is a forward and backward pass over its shared row, and where the objective reads the untrained model, one
forward pass without gradients over that model's row. Prompts have four chunks, of which one is critical. The model is
that of step.py on a CPU, Llama-3-8B's proportions, in float32 and without recomputation.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from logodata.contract import PreferenceSample
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.plan.cost import forward_flops, row_flops
from logotrain.plan.shape import model_shape
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Collator
from logotrain.steps import _sample_loss
from measure import Meter, Stepper, keep_freed_memory
from shape import CPU_SHAPE, LORA_TARGETS, make_model, make_sample

CHUNKS = 4
SAMPLES: dict[str, tuple[dict[str, Any], int]] = {
    "logo M=2": ({"name": "logo"}, 2),
    "simpo M=1": ({"name": "simpo"}, 1),
    "orpo M=1": ({"name": "orpo"}, 1),
    "ipo M=1": ({"name": "ipo"}, 1),
    "solopo M=1": ({"name": "solopo"}, 1),
    "solopo M=2": ({"name": "solopo"}, 2),
    "solopo over dpo M=1": ({"name": "solopo", "loss": {"name": "dpo"}}, 1),
    "longpo M=1": ({"name": "longpo"}, 1),
}
"""The first one is what the others are compared with."""


def sample_with_chunks(num_rejected: int) -> PreferenceSample:
    sample = make_sample(CPU_SHAPE, num_rejected)
    length = len(sample.prompt_ids) // CHUNKS
    spans = [(n * length, (n + 1) * length) for n in range(CHUNKS)]
    chunks = [
        sample.chunks[0].model_copy(update={"index": n, "token_start": start, "token_end": end, "critical": n == 0})
        for n, (start, end) in enumerate(spans)
    ]
    return sample.model_copy(update={"chunks": chunks})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    model = make_model(CPU_SHAPE, device, torch.float32)
    scorer, stepper, meter = LogprobModel(model), Stepper(model), Meter(device, torch.float32)
    shape = model_shape(model.get_base_model().config)
    steps: dict[str, Callable[[], None]] = {}
    flops: dict[str, float] = {}
    with use_shared_prefix(model.get_base_model()):
        for name, (objective, num_rejected) in SAMPLES.items():
            lora = {"rank": CPU_SHAPE.rank, "target_modules": LORA_TARGETS, "train_embeddings": False}
            values = {"model": "random", "positions": {"mode": "natural"}, "objective": objective, "lora": lora}
            recipe = TrainRecipe.model_validate({**values, "dtype": "float32"})
            sample, collator = sample_with_chunks(num_rejected), Collator.of(recipe, 2**20)
            steps[name] = step_of(recipe, sample, scorer, stepper)
            flops[name] = row_flops(StepPlan(shape, recipe, collator.layout(sample)))
            if parts := recipe.objective.reference_parts:
                untrained = Collator(recipe.positions, 2**20, 0, parts)
                flops[name] += forward_flops(StepPlan(shape, recipe, untrained.layout(sample)))
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        keep_freed_memory()
        for number in range(-1, arguments.rounds):  # the first one warms up
            names = list(steps)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                taken = meter.seconds(steps[name])
                seconds[name] += [taken] * (number >= 0)
    base = next(iter(steps))
    print(f"{'':22} {'seconds':>8} {'of ' + base:>14} {'rounds':>12} {'by FLOPs':>9}")
    for name, taken in seconds.items():
        ratios = [own / other for own, other in zip(taken, seconds[base], strict=True)]
        median = statistics.median(ratios)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{name:22} {statistics.median(taken):8.3f} {median:14.2f} {spread:>12} {flops[name] / flops[base]:9.2f}")


def step_of(
    recipe: TrainRecipe, sample: PreferenceSample, scorer: LogprobModel, stepper: Stepper
) -> Callable[[], None]:
    """The work of one sample: the untrained model's pass if there is one, then forward and backward."""
    collator = Collator.of(recipe, 2**20)
    row = collator([(0, sample)])
    parts = recipe.objective.reference_parts
    untrained = Collator(recipe.positions, 2**20, 0, parts)([(0, sample)]) if parts else None

    def step() -> None:
        expected: Tensor | None = None
        if untrained is not None:
            with torch.no_grad():
                found = split_logprobs(scorer(untrained), untrained)
            expected = torch.stack([values.sum() for part in found for values in part.responses])

        def loss() -> Tensor:
            return _sample_loss(sample, split_logprobs(scorer(row), row), recipe.objective, expected)[0]

        stepper.step(loss)

    return step


if __name__ == "__main__":
    main()
