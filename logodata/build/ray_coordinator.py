"""The actor between the process that reads the source and the workers. It runs Ray Data until all is decided."""

from __future__ import annotations

import pickle
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logodata.build.ray_workers import Answerer, Job, Result, prepare_group
from logodata.common.errors import UserError
from logodata.recipe.settings import BuildRecipe

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_FRUITLESS_RUNS = 3


@dataclass(frozen=True, slots=True)
class State:
    """The state of a coordinator: new results, the number of groups not fetched yet, and whether all are decided."""

    results: Sequence[Result]
    waiting: int
    finished: bool


class Coordinator:
    """Runs Ray Data over the numbers of groups, keeps the groups until they are decided, and hands on the results.

    There are at most ``bound`` groups. Their number is known when :meth:`close` is called.
    """

    def __init__(self, job: Job, workers: Workers, bound: int) -> None:
        self._job, self._workers, self._bound = job, workers, bound
        self._offered: dict[int, Any] = {}  # object references, so that Ray can move groups to disk
        self._num_offered = 0
        self._closed = False
        self._fetched: set[int] = set()
        self._decided: set[int] = set()
        self._results: queue.Queue[Result] = queue.Queue(maxsize=4)

    def offer(self, number: int, group: bytes) -> None:
        """Keep a pickled group for :meth:`take`."""
        import ray

        self._offered[number] = ray.put(group)
        self._num_offered += 1

    def close(self) -> None:
        """Take note that there are no more groups."""
        self._bound, self._closed = self._num_offered, True

    def take(self, number: int) -> list[Any] | None:
        """Return the reference to a group, in a list so that Ray does not resolve it. The list is empty if nothing is
        left to do. None means that the group is not there yet."""
        if number in self._offered:
            self._fetched.add(number)
            return [self._offered[number]]
        return [] if number in self._decided or (self._closed and number >= self._bound) else None

    def collect(self) -> State:
        """Return the state, and hand over the new results."""
        finished = self._closed and len(self._decided) == self._bound
        results = []
        while not self._results.empty():
            results.append(self._results.get())
        return State(results, self._num_offered - len(self._fetched), finished)

    def run(self, this: ActorHandle) -> None:
        """Run Ray Data until every group is decided, or one has a fault. If run after run decides nothing, the error of
        Ray is raised. ``this`` is the handle of this actor, for the workers."""
        fruitless = 0
        while numbers := [number for number in range(self._bound) if number not in self._decided]:
            before, error = len(self._decided), None
            try:
                for result in self._execute(numbers, this):
                    if result.number in self._decided or result.number >= self._bound:
                        continue
                    self._results.put(result)
                    if result.fault is not None:
                        return
                    self._decided.add(result.number)
                    self._offered.pop(result.number, None)
            except Exception as caught:  # a lost node can surface as any of Ray's and Ray Data's errors
                error = caught
            fruitless = fruitless + 1 if len(self._decided) == before else 0
            if fruitless == _FRUITLESS_RUNS:
                raise error or RuntimeError(f"Ray lost {len(numbers)} groups {fruitless} times; its log says why")

    def _execute(self, numbers: Sequence[int], this: ActorHandle) -> Iterator[Result]:
        """Run Ray Data once over these groups, in any order. What is lost on the way is not among the results."""
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # faults are results, so an error is only what is lost
        context.execution_no_progress_timeout_s = -1  # a group of long answers may take any time
        workers = self._workers
        rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        # Preparing claims no CPUs, because engines that were started again on fewer nodes may leave none.
        prepared = rows.map_batches(
            prepare_group,
            fn_kwargs={"job": self._job, "coordinator": this},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=workers.preparers),
            num_cpus=0,
        )
        results = prepared.map_batches(
            Answerer,
            fn_constructor_kwargs={"job": self._job},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=-1,
            max_task_retries=0,
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for data in batch["data"]:
                yield pickle.loads(data.as_py())


@dataclass(frozen=True, slots=True)
class Workers:
    """The number of engines, what each of them holds, and the number of processes that prepare."""

    count: int
    cpus: int
    gpus: int
    preparers: int


def worker_size(recipe: BuildRecipe, nodes: Sequence[dict[str, float]], count: int | None) -> Workers:
    """Decide how many engines run on some nodes, and what each of them holds.

    As many engines run as the GPUs hold. vLLM takes ``engine.tensor_parallel_size`` GPUs for each, and transformers
    one. Without GPUs each node has one engine, on half of its CPUs, and the other half prepares. Servers are asked by
    one engine, because ``engine.concurrency`` and the rate limits are those of one.

    Args:
        nodes: The number of ``CPU`` and ``GPU`` of each node.
        count: The number of engines instead.

    Raises:
        UserError: The engines do not fit, or the recipe names one GPU by its number.
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
        count = count or (1 if engine.asks_servers else max(len(per_node), 1))
        cpus = max(1, min(num_cpus // (2 * count), min((c for c, _ in per_node), default=1)))
        fitting = sum(node_cpus // cpus for node_cpus, _ in per_node)
    if count > fitting:
        raise UserError(
            f"{count} engines of {cpus} CPU and {gpus} GPU each do not fit on nodes with "
            + (", ".join(f"{node_cpus} CPU and {node_gpus} GPU" for node_cpus, node_gpus in per_node) or "nothing"),
            mend=f"{fitting} fit: set --workers, or engine.tensor_parallel_size",
        )
    return Workers(count, cpus, gpus, preparers=max(1, num_cpus - count * cpus))
