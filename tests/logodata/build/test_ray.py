"""A build on Ray: the same data set as in one process, also where a node is lost halfway."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from logodata.build import ray_driver
from logodata.build.preparing import Pool
from logodata.build.ray_coordinator import Coordinator, Workers, worker_size
from logodata.build.ray_workers import Answerer, Job, Result, portable
from logodata.cli import main
from logodata.common.errors import UserError
from logodata.common.groups import in_groups
from logodata.common.recipes.reading import load_recipe
from logodata.recipe.settings import BuildRecipe

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


def outcome_ids(output: Path) -> list[str]:
    log = output / "work" / "outcomes.jsonl"
    return [json.loads(line)["id"] for line in log.read_text().splitlines()] if log.exists() else []


def recipe(model: Path, *overrides: str) -> BuildRecipe:
    return load_recipe(BuildRecipe, "build", None, ["source.path=unread", f"model={model}", *SETTINGS, *overrides])


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node's processes 30 s to start, which a busy machine may exceed."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.mark.parametrize(("failures", "code"), [(2, None), (3, "Ray did not start in 3 tries")])
def test_a_slow_start_of_ray_is_tried_again(failures: int, code: str | None) -> None:
    class SlowRay:
        """Starts after so many failures."""

        def __init__(self) -> None:
            self.starts = self.ends = 0

        def init(self, *_: Any, **__: Any) -> None:
            self.starts += 1
            if self.starts <= failures:
                raise Exception("The current node timed out during startup. This could happen because ...")

        def shutdown(self) -> None:
            self.ends += 1

    ray = SlowRay()
    with pytest.raises(UserError, match=code) if code else nullcontext():
        ray_driver._start_here(ray, {})
    assert (ray.starts, ray.ends) == (3, failures)


@pytest.mark.slow  # Ray waits for it for a minute
def test_a_lost_node_costs_nothing(tmp_path: Path, tiny_model_dir: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    documents = write_documents(tmp_path, 10)
    here, there = tmp_path / "here", tmp_path / "there"
    assert run_build(documents, tiny_model_dir, here) == 0
    # One CPU a node, so that each has one engine, and there is no room for the lost one on the node that stays.
    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False}))
    lost = patiently(lambda: cluster.add_node(**node))
    at_loss: list[int] = []

    def lose_the_node() -> None:
        while not outcome_ids(there):
            time.sleep(0.02)
        cluster.remove_node(lost, allow_graceful=False)
        at_loss.append(len(outcome_ids(there)))

    loser = threading.Thread(target=lose_the_node, daemon=True)
    loser.start()
    try:
        on_ray = ("--executor", "ray", "--ray-address", cluster.address, "--workers", "2")
        assert run_build(documents, tiny_model_dir, there, *on_ray) == 0
        loser.join(timeout=10)
    finally:
        cluster.shutdown()
    ids = outcome_ids(there)
    assert at_loss
    assert at_loss[0] < len(ids), "lost on the way"
    assert sorted(ids) == sorted(outcome_ids(here)), "nothing lost, nothing doubled"
    for name in FILES:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def test_groups_are_whole_pools_of_enough_questions() -> None:
    pool = Pool((), ())
    pools = [(pool, frozenset(f"{number}-{n}" for n in range(size))) for number, size in enumerate([1, 1, 3, 2, 1, 1])]
    groups = list(in_groups(pools, (lambda asked: len(asked[1]), 2)))
    assert [asked for group in groups for asked in group] == pools
    assert [sum(len(ids) for _, ids in group) for group in groups] == [2, 3, 2, 2]
    assert len(groups) <= -(-9 // 2), "the bound that the coordinator is given"


@pytest.mark.parametrize(
    ("overrides", "nodes", "asked", "expected"),
    [
        ((), [{"CPU": 2}], None, Workers(1, 1, 0, 1)),
        ((), [{"CPU": 16}, {"CPU": 16}], None, Workers(2, 8, 0, 16)),
        ((), [{"CPU": 32, "GPU": 8}], None, Workers(8, 1, 1, 24)),
        (("engine.device=cpu",), [{"CPU": 32, "GPU": 8}], None, Workers(1, 16, 0, 16)),
        (("engine.kind=vllm",), [{"CPU": 32, "GPU": 8}], None, Workers(8, 1, 1, 24)),
        (
            ("engine.kind=vllm", "engine.tensor_parallel_size=2"),
            [{"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 4}, {"memory": 1}],
            None,
            Workers(3, 1, 2, 13),  # an engine does not span nodes
        ),
        (("engine.kind=vllm",), [{"CPU": 32, "GPU": 8}], 2, Workers(2, 1, 1, 30)),
        (("engine.kind=openai", 'engine.base_urls=["http://h:1/v1"]'), [{"CPU": 8}] * 4, None, Workers(1, 8, 0, 24)),
    ],
)
def test_engines_take_what_fits(
    tmp_path: Path, overrides: Sequence[str], nodes: list[dict[str, float]], asked: int | None, expected: Workers
) -> None:
    assert worker_size(recipe(tmp_path, *overrides), nodes, asked) == expected


@pytest.mark.parametrize(
    ("overrides", "nodes", "asked", "said"),
    [
        (("engine.kind=vllm", "engine.tensor_parallel_size=4"), [{"CPU": 8, "GPU": 2}] * 2, None, "0 fit"),
        (("engine.device=cuda",), [{"CPU": 8}], None, "1 engines of 1 CPU and 1 GPU each do not fit"),
        ((), [{"CPU": 2}], 3, "2 fit"),
        (("engine.device=cuda:1",), [{"CPU": 8, "GPU": 2}], None, "set it to auto"),
    ],
)
def test_engines_that_do_not_fit_are_refused(
    tmp_path: Path, overrides: Sequence[str], nodes: list[dict[str, float]], asked: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        worker_size(recipe(tmp_path, *overrides), nodes, asked)


def test_workers_get_absolute_paths(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").symlink_to(tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    for name in ("old.jsonl", "chat.jinja"):
        (tmp_path / name).touch()
    server = ("engine.kind=openai", 'engine.base_urls=["http://h:1/v1"]')
    sent = portable(recipe(Path("model"), "generation.cache=old.jsonl", "chat_template=chat.jinja", *server))
    assert (sent.model, sent.generation.cache) == (str(tmp_path / "model"), tmp_path / "old.jsonl")
    assert sent.chat_template == tmp_path / "chat.jinja"
    assert sent.engine.served_model == "model", "the name on the server stays"
    for judge, served in (("org/judge", "org/judge"), ("model", "model")):
        sent = portable(recipe(Path("model"), "judge.enabled=true", f"judge.model.name={judge}", *server))
        assert sent.judge.model is not None
        assert sent.judge.model.engine is not None
        assert sent.judge.model.engine.served_model == served
    same = portable(recipe(tiny_model_dir))
    assert same == recipe(tiny_model_dir)
    assert portable(recipe(tiny_model_dir, "generation.cache=embedded")).generation.cache == "embedded"


def test_a_fault_in_a_worker_is_a_result(tmp_path: Path, tiny_model_dir: Path) -> None:
    import pyarrow as pa

    broken = recipe(tmp_path / "gone", "evaluator.name=lexical")
    prepared = pa.table({"data": pa.array([pickle.dumps((7, []))], pa.large_binary())})
    result = pickle.loads(Answerer(Job(broken.model_dump_json(), "x"))(prepared)["data"][0].as_py())
    assert result.number == 7
    assert isinstance(result.fault, UserError)
    assert f"{tmp_path}/gone: no such model folder" in str(result.fault)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workers", "2"), "add --executor ray"),
        (("--ray-address", "auto"), "add --executor ray"),
        (("--executor", "ray", "--workers", "0"), "--workers: '0' is no positive number"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], said: str
) -> None:
    assert run_build(write_documents(tmp_path, 1), tiny_model_dir, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "no Ray cluster answers"),
        ("ray://127.0.0.1:9", "no Ray cluster answers"),
        ("there", "HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_is(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], address: str, said: str
) -> None:
    pytest.importorskip("ray")
    documents = write_documents(tmp_path, 1)
    on_ray = ("--executor", "ray", "--ray-address", address)
    assert run_build(documents, tiny_model_dir, tmp_path / "out", *on_ray) == 2
    assert said in capsys.readouterr().err


def test_ray_missing(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_build(write_documents(tmp_path, 1), tiny_model_dir, tmp_path / "out", "--executor", "ray") == 2
    assert "pip install 'logo-align[ray]'" in capsys.readouterr().err


def test_groups_that_ray_loses_are_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[int]] = []

    def execute(self: Coordinator, numbers: Sequence[int], this: object) -> Iterator[Result]:
        runs.append(list(numbers))
        yield Result(numbers[-1])
        yield Result(numbers[-1])  # delivered twice
        if len(runs) == 2:
            raise ConnectionError("a node is gone")

    monkeypatch.setattr(Coordinator, "_execute", execute)
    coordinator = Coordinator(Job("", ""), Workers(1, 1, 0, 1), 3)
    coordinator.run(None)
    assert runs == [[0, 1, 2], [0, 1], [0]]
    assert [result.number for result in coordinator.collect().results] == [2, 1, 0]
