"""The actor between the process that reads the source and the workers: it runs Ray Data until all is decided."""

from __future__ import annotations

import pickle
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logodata.distributed.sizes import Workers
from logodata.distributed.stages import Answerer, Job, Result, plan_group

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_FRUITLESS_RUNS = 3


@dataclass(frozen=True, slots=True)
class State:
    """What the coordinator has to say: new results, how many groups wait to be fetched, whether all are decided."""

    results: Sequence[Result]
    waiting: int
    finished: bool


class Coordinator:
    """Runs Ray Data over numbers of groups, keeps the groups until they are decided, and hands on what became of them.

    Args:
        job: for the workers.
        workers: how many.
        bound: of the number of groups, which is known when :meth:`close` is called.
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
        """A pickled group, for :meth:`take`."""
        import ray

        self._offered[number] = ray.put(group)
        self._num_offered += 1

    def close(self) -> None:
        """There are no more groups."""
        self._bound, self._closed = self._num_offered, True

    def take(self, number: int) -> list[Any] | None:
        """Reference to a group, in a list so that Ray does not resolve it; [] if there is nothing to do any more, None
        if the group is not there yet."""
        if number in self._offered:
            self._fetched.add(number)
            return [self._offered[number]]
        return [] if number in self._decided or (self._closed and number >= self._bound) else None

    def collect(self) -> State:
        """What is new."""
        finished = self._closed and len(self._decided) == self._bound
        results = []
        while not self._results.empty():
            results.append(self._results.get())
        return State(results, self._num_offered - len(self._fetched), finished)

    def run(self, this: ActorHandle) -> None:
        """Run Ray Data until every group is decided, or one has a fault.

        Args:
            this: handle of this actor, for the workers.

        Raises:
            Exception: Ray's, if run after run decides nothing.
        """
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
        """One run of Ray Data over these groups, in any order; what was lost on the way is not among the results."""
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # only what is lost is an error here: faults are results
        context.execution_no_progress_timeout_s = -1  # a group of long answers may take any time
        workers, given = self._workers, {"job": self._job}
        rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        # Planning claims no CPUs: beside engines that were started again on fewer nodes there may be none left.
        plans = rows.map_batches(
            plan_group,
            fn_kwargs={**given, "coordinator": this},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=workers.planners),
            num_cpus=0,
        )
        results = plans.map_batches(
            Answerer,
            fn_constructor_kwargs=given,
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
