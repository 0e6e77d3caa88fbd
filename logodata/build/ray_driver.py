"""The stages of a build on a Ray cluster: any number of processes prepare, and any number of engines answer.

Three parties. This process reads the source, hands out groups of pools a few at a time, and writes down
what became of them. A coordinator, an actor beside it (``ray_coordinator``), runs Ray Data over the numbers of the
groups. Workers (``ray_workers``) fetch a group by its number, prepare it (a task on CPUs) and answer it (an actor that
holds an engine), so memory holds what is under way and not the corpus, here and there.

What a node takes with it when it is lost is prepared or answered again: a group counts as decided once its outcomes are
with the coordinator, and the coordinator runs Ray Data until all are. Ray starts a lost actor again where there is
room. A task that was in the actor is not tried again with it (Ray Data's default), since it would wait for ever where
there is none, as with the GPUs of a node that is gone.

All nodes need the same environment, the model (and its cache of responses, if any) under the same path, and the
environment variables that the recipe names.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from logodata.build.pipeline import Asked, Decided
from logodata.build.ray_coordinator import Coordinator, State, worker_size
from logodata.build.ray_workers import POLL_S, Job, portable
from logodata.common.console import Tracker
from logodata.common.errors import UserError
from logodata.recipe.settings import BuildRecipe

_STARTS = 3  # of Ray on this machine
_GROUPS_AHEAD = 4  # offered and not fetched yet
_GROUPS_PER_WORKER = 4  # at least, where there are questions enough: the last groups should end at about the same time


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Which cluster, and how many engines on it.

    ``address``: None starts Ray on this machine; ``auto``, ``HOST:PORT`` and ``ray://HOST:PORT`` name a running
    cluster. ``workers``: engines; None makes as many as fit (:func:`worker_size`).
    """

    address: str | None = None
    workers: int | None = None


def decide_on_ray(
    recipe: BuildRecipe,
    model_fingerprint: str,
    pools: Iterable[Asked],
    num_questions: int,
    options: RayOptions,
    tracker: Tracker,
) -> Generator[Decided]:
    """Prepare and answer on a cluster; as :func:`logodata.build.pipeline.decide_here`, but in any order.

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
    with _kept_sigterm():
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
            state: State = ray.get(coordinator.collect.remote())
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
                if ray.wait([running], timeout=POLL_S)[0]:
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


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Ray sets a handler of its own, which ends the process with code 1 where ours says how to go on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


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
        _start_here(ray, quiet)
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


def _start_here(ray: Any, options: dict[str, Any]) -> None:
    """Ray gives its own processes 30 s to start, which a busy machine may exceed."""
    for left in reversed(range(_STARTS)):
        try:
            # One CPU for the engine and one to prepare at least.
            ray.init("local", num_cpus=max(2, os.cpu_count() or 1), include_dashboard=False, **options)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if not left:
                raise UserError(
                    f"Ray did not start in {_STARTS} tries", mend="the machine may be busy: run the same command again"
                ) from error


def _reach(address: str) -> None:
    """Ray itself tries for two minutes, and says so in its own words."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname is None or place.port is None:
        raise ValueError("no address, write auto, HOST:PORT or ray://HOST:PORT")
    socket.create_connection((place.hostname, place.port), timeout=10).close()
