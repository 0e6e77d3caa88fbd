"""The stages of a build on a Ray cluster: any number of processes plan, and any number of engines answer.

Three parties. This process (:func:`decide_on_ray`) reads the source, hands out groups of pools a few at a time, and
writes down what became of them. A :class:`Coordinator`, an actor beside it, runs Ray Data over the numbers of the
groups. Workers fetch a group by its number, plan it (a task on CPUs) and answer it (an actor that holds an engine), so
memory holds what is under way and not the corpus, here and there.

What a node takes with it when it is lost is planned or answered again: a group counts as decided once its outcomes are
with the coordinator, and the coordinator runs Ray Data until all are. Ray starts a lost actor again where there is
room. A task that was in the actor is not tried again with it (Ray Data's default), since it would wait for ever where
there is none, as with the GPUs of a node that is gone.

All nodes need the same environment, the model (and its cache of responses, if any) under the same path, and the
environment variables that the recipe names.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from logodata.candidates import Candidate, Fault
from logodata.common.console import Tracker
from logodata.common.errors import UserError
from logodata.engines.settings import EngineSettings
from logodata.models import EMBEDDED, resolve_model
from logodata.pipeline import Asked, Decided, Outcome, Pipeline
from logodata.recipe import BuildRecipe
from logodata.verdicts import ModelJudgeSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.actor import ActorHandle

_GROUPS_AHEAD = 4  # offered and not fetched yet
_GROUPS_PER_WORKER = 4  # at least, where there are questions enough: the last groups should end at about the same time
_FRUITLESS_RUNS = 3
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Which cluster, and how many engines on it.

    ``address``: None starts Ray on this machine; ``auto``, ``HOST:PORT`` and ``ray://HOST:PORT`` name a running
    cluster. ``workers``: engines; None makes as many as fit (:func:`worker_size`).
    """

    address: str | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker must know: the recipe as JSON, paths absolute, and the model's fingerprint."""

    recipe: str
    model_fingerprint: str


@dataclass(frozen=True, slots=True)
class Workers:
    """How many engines, what each holds, and how many processes plan."""

    count: int
    cpus: int
    gpus: int
    planners: int


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of a group. ``fault`` ends the build: an error of the user's, or the traceback of our bug."""

    number: int
    outcomes: Sequence[Outcome] = ()
    engine_names: dict[str, str] = field(default_factory=dict)
    fault: UserError | str | None = None


def decide_on_ray(
    recipe: BuildRecipe,
    model_fingerprint: str,
    pools: Iterable[Asked],
    num_questions: int,
    options: RayOptions,
    tracker: Tracker,
) -> Generator[Decided]:
    """Plan and answer on a cluster; as :func:`logodata.pipeline.decide_here`, but in any order.

    Args:
        recipe: the build recipe.
        model_fingerprint: of its model.
        pools: what to decide; read as workers ask for more.
        num_questions: how many are undecided in ``pools``.
        options: which cluster.
        tracker: shows how many engines are at work.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached or is too small, or what a worker met.
    """
    if not num_questions:
        for _ in pools:  # its reader keeps the order of the source
            pass
        return
    ray = _connect(options.address)
    try:
        workers = worker_size(recipe, [node["Resources"] for node in ray.nodes() if node["Alive"]], options.workers)
        size = max(1, min(recipe.generation.group_size, num_questions // (workers.count * _GROUPS_PER_WORKER)))
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        coordinator = (
            ray.remote(Coordinator)
            .options(num_cpus=0, max_concurrency=8, scheduling_strategy=here)
            .remote(Job(portable(recipe).model_dump_json(), model_fingerprint), workers, -(-num_questions // size))
        )
        running = coordinator.run.remote(coordinator)
        tracker.advance(0, workers=workers.count)
        groups = enumerate(group_pools(pools, size))
        more = True
        while True:
            state: _State = ray.get(coordinator.collect.remote())
            for result in state.results:
                if isinstance(result.fault, UserError):
                    raise result.fault
                if result.fault is not None:
                    raise RuntimeError(f"in a worker: {result.fault}")
                yield list(result.outcomes), result.engine_names
            if more and state.waiting < _GROUPS_AHEAD:
                number, group = next(groups, (None, None))
                more = group is not None
                ray.get(coordinator.offer.remote(number, pickle.dumps(group)) if more else coordinator.close.remote())
            elif not state.results:
                if state.finished:
                    ray.get(running)
                    return
                if ray.wait([running], timeout=_POLL_S)[0]:
                    ray.get(running)  # raises what it met
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"the cluster is gone: {str(error).splitlines()[0]}", mend="run the same command again to continue"
        ) from error
    finally:
        ray.shutdown()


def group_pools(pools: Iterable[Asked], size: int) -> Iterator[list[Asked]]:
    """Whole pools in order, in groups of ``size`` undecided questions or a few more; the last may have fewer."""
    group: list[Asked] = []
    for asked in pools:
        group.append(asked)
        if sum(len(ids) for _, ids in group) >= size:
            yield group
            group = []
    if group:
        yield group


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


def portable(recipe: BuildRecipe) -> BuildRecipe:
    """The recipe with absolute paths: a worker has another working directory."""
    generation, evaluator, judge = recipe.generation, recipe.evaluator, recipe.judge
    if isinstance(generation.cache, Path):
        generation = generation.model_copy(update={"cache": generation.cache.absolute()})
    named = {"entity_model": evaluator.entity_model, "embedding_model": evaluator.embedding_model}
    evaluator = evaluator.model_copy(update={key: _absolute(name) for key, name in named.items()})
    return recipe.model_copy(
        update={
            "model": _absolute(recipe.model),
            "chat_template": recipe.chat_template and recipe.chat_template.absolute(),
            "generation": generation,
            "engine": _served(recipe.engine, recipe.model),
            "evaluator": evaluator,
            "judge": judge.model_copy(
                update={
                    "embedding_model": _absolute(judge.embedding_model),
                    "model": judge.model and _portable_judge(judge.model, recipe.model),
                }
            ),
        }
    )


def _portable_judge(judge: ModelJudgeSettings, model: str) -> ModelJudgeSettings:
    return judge.model_copy(
        update={
            "name": judge.name and _absolute(judge.name),
            "chat_template": judge.chat_template and judge.chat_template.absolute(),
            "engine": judge.engine and _served(judge.engine, judge.name or model),
        }
    )


def _served(engine: EngineSettings, model: str) -> EngineSettings:
    """With servers, the model's name there is by default what was given as model: said before paths are changed."""
    if engine.kind != "openai" or engine.served_model is not None:
        return engine
    return engine.model_copy(update={"served_model": resolve_model(model)})


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.absolute()) if name != EMBEDDED and path.is_dir() else name


@dataclass(frozen=True, slots=True)
class _State:
    """What the coordinator has to say: new results, how many groups wait to be fetched, whether all are decided."""

    results: Sequence[_Result]
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
        self._results: queue.Queue[_Result] = queue.Queue(maxsize=4)

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

    def collect(self) -> _State:
        """What is new."""
        finished = self._closed and len(self._decided) == self._bound
        results = []
        while not self._results.empty():
            results.append(self._results.get())
        return _State(results, self._num_offered - len(self._fetched), finished)

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

    def _execute(self, numbers: Sequence[int], this: ActorHandle) -> Iterator[_Result]:
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


def plan_group(batch: pa.Table, job: Job, coordinator: ActorHandle) -> pa.Table:
    """The first stage: a group by its number, planned. Row: ``data``, a pickled :class:`_Result` or (number, plans)."""
    import ray

    number: int = batch["number"][0].as_py()
    while (taken := ray.get(coordinator.take.remote(number))) is None:
        time.sleep(_POLL_S)
    try:
        group: list[Asked] = pickle.loads(ray.get(taken[0])) if taken else []
        pipeline = _planning_pipeline(job)
        plans = [plan for pool, ids in group for plan in pipeline.plan(pool) if plan.question.id in ids]
        return _row((number, plans))
    except Exception as error:
        return _row(_Result(number, fault=_fault(error)))


class Answerer:
    """The second stage: an engine, opened for the first group, that answers planned groups. Row: ``data``, a pickled
    :class:`_Result`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipeline: Pipeline | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a group."""
        planned: _Result | tuple[int, list[Candidate | Fault]] = pickle.loads(batch["data"][0].as_py())
        if isinstance(planned, _Result):
            return _row(planned)
        number, plans = planned
        try:
            # Faults are results: an error in an actor would be one line among tracebacks in Ray's logs.
            pipeline = self._pipeline = self._pipeline or _open(self._job)
            outcomes = pipeline.answer(plans, Tracker("", len(plans)))
            pipeline.forget()
            return _row(_Result(number, outcomes, pipeline.engine_names))
        except Exception as error:
            return _row(_Result(number, fault=_fault(error)))


def _row(value: object) -> pa.Table:
    import pyarrow as pa

    return pa.table({"data": pa.array([pickle.dumps(value)], pa.large_binary())})


def _fault(error: Exception) -> UserError | str:
    return error if isinstance(error, UserError) else "".join(traceback.format_exception(error))


@lru_cache(maxsize=1)
def _planning_pipeline(job: Job) -> Pipeline:
    """One for all tasks that Ray gives to a process."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engines have the GPUs; Ray hides them only from who asks for some
    return _open(job)


def _open(job: Job) -> Pipeline:
    return Pipeline(BuildRecipe.model_validate_json(job.recipe), job.model_fingerprint)


def _connect(address: str | None) -> Any:
    """Ray, connected; its logs, bars and telemetry off.

    Raises:
        UserError: it is not installed, or no cluster answers.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise UserError("Ray is not installed, which --executor ray needs", mend="pip install 'logo-align[ray]'") from (
            error
        )
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # One CPU for the engine and one for planning at least.
        ray.init("local", num_cpus=max(2, os.cpu_count() or 1), include_dashboard=False, **quiet)
        return ray
    try:
        if address != "auto":
            _reach(address)
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise UserError(
            f"no Ray cluster answers: {str(error).splitlines()[0]}",
            where=f"--ray-address {address}",
            mend="start one with ray start --head, or leave the address out to use this machine",
        ) from error
    return ray


def _reach(address: str) -> None:
    """Ray itself tries for two minutes, and says so in its own words."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname is None or place.port is None:
        raise ValueError("no address, write auto, HOST:PORT or ray://HOST:PORT")
    socket.create_connection((place.hostname, place.port), timeout=10).close()
