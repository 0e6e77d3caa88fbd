"""How many engines fit on the nodes of a cluster, and what each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from logodata.common.errors import UserError
from logodata.recipe import BuildRecipe


@dataclass(frozen=True, slots=True)
class Workers:
    """How many engines, what each holds, and how many processes plan."""

    count: int
    cpus: int
    gpus: int
    planners: int


def worker_size(recipe: BuildRecipe, nodes: Sequence[dict[str, float]], count: int | None) -> Workers:
    """How many engines to run on nodes with these resources, and what each takes.

    On GPUs as many as fit, each ``engine.tensor_parallel_size`` of them for vLLM and one for transformers. On CPUs one
    a node, with half of its CPUs; the others plan. One that asks servers, since ``engine.concurrency`` and the rate
    limits are those of one.

    Args:
        recipe: its engine section decides.
        nodes: ``CPU`` and ``GPU`` of each node.
        count: of engines, instead.

    Raises:
        UserError: they do not fit, or the recipe names one GPU by number.
    """
    engine = recipe.engine
    per_node = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes if node.get("CPU", 0) >= 1]
    num_cpus, num_gpus = sum(cpus for cpus, _ in per_node), sum(gpus for _, gpus in per_node)
    if engine.kind == "transformers" and ":" in engine.device:
        raise UserError(
            "on Ray each engine has a GPU of its own", where=f"engine.device={engine.device}", mend="set it to auto"
        )
    gpus = 0
    if engine.kind == "vllm":
        gpus = engine.tensor_parallel_size if num_gpus or engine.tensor_parallel_size > 1 else 0
    elif engine.kind == "transformers":
        gpus = int(engine.device == "cuda" or (engine.device == "auto" and num_gpus > 0))
    if gpus:
        cpus = 1
        fitting = sum(min(node_gpus // gpus, node_cpus) for node_cpus, node_gpus in per_node)
        count = count or max(fitting, 1)
    else:
        count = count or (1 if engine.kind == "openai" else max(len(per_node), 1))
        cpus = max(1, min(num_cpus // (2 * count), min((c for c, _ in per_node), default=1)))
        fitting = sum(node_cpus // cpus for node_cpus, _ in per_node)
    if count > fitting:
        raise UserError(
            f"{count} engines of {cpus} CPU and {gpus} GPU each do not fit on nodes with "
            + (", ".join(f"{node_cpus} CPU and {node_gpus} GPU" for node_cpus, node_gpus in per_node) or "nothing"),
            mend=f"{fitting} fit: set --workers, or engine.tensor_parallel_size",
        )
    return Workers(count, cpus, gpus, planners=max(1, num_cpus - count * cpus))
