"""A build on Ray: the same data set as in one process, also where a node is lost halfway."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main

FILES = ("data/train-00000-of-00001.parquet", "rejected.jsonl", "stats.json", "README.md", "manifest.json")
SETTINGS = [
    "chunking.chunk_tokens=48",
    "contexts.num_chunks=4",
    "contexts.critical_threshold=null",
    "contexts.critical_top=2",
    "generation.max_new_tokens=4",
    "judge.enabled=false",
]


def filler(number: int) -> str:
    return f"On day {number} nothing was written down but wind and weather of kind {number * 7}. "


def write_documents(folder: Path, count: int) -> Path:
    """Documents of two questions; every fifth is too short to give any pair."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        days = range(3 if number % 5 == 4 else 30)
        text = f"The mill {number} of Vell holds green millet. " + "".join(filler(day * (number + 1)) for day in days)
        asked = (f"What does the mill {number} of Vell hold?", "Which weather was there?")
        questions = [{"question": question, "answers": ["green millet"]} for question in asked]
        rows.append({"doc_id": f"mill-{number}", "context": text, "questions": questions})
    file = folder / "mills.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run_build(documents: Path, model: Path, output: Path, *more: str) -> int:
    return main(["build", str(documents), *SETTINGS, *more, "--model", str(model), "-o", str(output)])


def assert_same_files(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def outcome_ids(output: Path) -> list[str]:
    log = output / "work" / "outcomes.jsonl"
    return [json.loads(line)["id"] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two CPUs; this process is on the first."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)
    yield cluster
    cluster.shutdown()


def test_a_lost_node_costs_nothing(cluster: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    documents = write_documents(tmp_path, 40)
    here, there = tmp_path / "here", tmp_path / "there"
    assert run_build(documents, tiny_model_dir, here) == 0
    at_loss: list[int] = []

    def lose_a_node() -> None:
        while not outcome_ids(there):
            time.sleep(0.02)
        at_loss.append(len(outcome_ids(there)))
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)

    loser = threading.Thread(target=lose_a_node, daemon=True)
    loser.start()
    # Three engines and two CPUs a node: each node has one at least.
    on_ray = ("--executor", "ray", "--ray-address", cluster.address, "--workers", "3")
    assert run_build(documents, tiny_model_dir, there, *on_ray) == 0
    loser.join(timeout=10)
    assert at_loss
    assert at_loss[0] <= 40, "halfway at most"
    ids = outcome_ids(there)
    assert sorted(ids) == sorted(set(ids)) == sorted(outcome_ids(here)), "nothing lost, nothing doubled"
    assert_same_files(here, there)
