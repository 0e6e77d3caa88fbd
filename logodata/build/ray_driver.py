"""The stages of a build on a Ray cluster: any number of processes prepare, and any number of engines answer.

There are three parties. This process reads the source, hands out a few groups of pools at a time, and writes down the
outcomes. A coordinator, an actor beside it (``ray_coordinator``), runs Ray Data over the numbers of the groups. Workers
(``ray_workers``) fetch a group by its number. A task on CPUs prepares it, and an actor that holds an engine answers it.
So memory holds what is under way and not the corpus.

The groups of a lost node are prepared or answered again. A group is decided once the coordinator has its outcomes, and
the coordinator runs Ray Data until all groups are decided. Ray starts a lost actor again where there is room. It does
not try the actor's task again, because the task would wait for ever where there is no room.

All nodes need the same environment, the model and its cache of responses under the same path, and the environment
variables that the recipe names.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from logodata.build.pipeline import GROUP_TOKENS, Asked, Decided
from logodata.build.ray_coordinator import Coordinator, State, worker_size
from logodata.build.ray_workers import POLL_S, Job, portable
from logodata.common.console import Tracker
from logodata.common.errors import UserError
from logodata.common.groups import in_groups
from logodata.recipe.settings import BuildRecipe

_STARTS = 3
_GROUPS_AHEAD = 4
"""The most groups that are offered and not fetched yet."""
_GROUPS_PER_WORKER = 4
"""The least groups of a worker, if there are questions enough. The last groups should end at about the same time."""


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The cluster, and the number of engines on it.

    Without an ``address`` Ray is started on this machine; ``auto``, ``HOST:PORT`` and ``ray://HOST:PORT`` name a
    running cluster. Without ``workers`` as many engines run as fit (:func:`worker_size`).
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
    """Prepare and answer questions on a cluster, in any order.

    ``pools`` are read as workers ask for more, and hold ``num_questions`` undecided questions.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached or is too small, or a worker met such an error.
    """
    if not num_questions:
        deque(pools, maxlen=0)  # its reader keeps the order of the source
        return
    with _kept_sigterm():
        ray = _connect(options.address)
    try:
        workers = worker_size(recipe, [node["Resources"] for node in ray.nodes() if node["Alive"]], options.workers)
        size = group_size(recipe, num_questions, workers.count)
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
        groups = enumerate(in_groups(pools, (lambda asked: len(asked[1]), size)))
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


def group_size(recipe: BuildRecipe, num_questions: int, num_workers: int) -> int:
    """Return the least number of questions of a group.

    It does not depend on what is read, because the coordinator is told how many groups there can be.
    """
    contexts, generation = recipe.contexts, recipe.generation
    tries = recipe.solve.tries if recipe.solve else 0
    num_prompts = 2 + len(contexts.mixed_ratios) + generation.num_candidates + tries
    # The pool has one context more at least (:func:`logodata.build.preparing.tokens_held`).
    tokens = (num_prompts + 1) * contexts.num_chunks * recipe.chunking.chunk_tokens
    most = min(generation.group_size, GROUP_TOKENS // tokens, num_questions // (num_workers * _GROUPS_PER_WORKER))
    return max(1, most)


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Keep our handler: Ray sets its own, which ends the process with code 1 where ours says how to go on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(address: str | None) -> Any:
    """Return Ray, connected, without its logs, bars and telemetry."""
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
    """Start Ray. It gives its own processes 30 s, which a busy machine may exceed."""
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
    """Find out now whether the address answers: Ray tries for two minutes, and then says so in its own words."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname is None or place.port is None:
        raise ValueError("no address, write auto, HOST:PORT or ray://HOST:PORT")
    socket.create_connection((place.hostname, place.port), timeout=10).close()
