"""One process of four: reads models into its shards, compares them with whole ones, and then runs like the others."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from logotrain.loss.logprobs import LogprobModel
from logotrain.model.loading import load_trainable
from logotrain.model.sharded_loading import Shares
from logotrain.parallel import World, launched, shard
from logotrain.recipe.settings import TrainRecipe
from logotrain.trainable import _probe_row
from tests.distributed import worker
from tests.tiny_models import VOCABULARY

CPU = torch.device("cpu")


def main(root: Path) -> None:
    torch.set_num_threads(1)
    with launched() as world:
        small, large = (TrainRecipe.model_validate(value) for value in json.loads((root / "memory.json").read_text()))
        found = _memory(small, large, world)
        (root / f"memory.rank{world.rank}").write_text(json.dumps(found))
        for name, recipe in json.loads((root / "equal.json").read_text()).items():
            differ = _differences(TrainRecipe.model_validate(recipe), world)
            (root / f"{name}.rank{world.rank}").write_text(json.dumps(differ))
        worker.main(root / "tasks.json")


def _memory(small: TrainRecipe, large: TrainRecipe, world: World) -> dict[str, int]:
    """The most memory of its own that this process takes for a model, by how it is read."""
    _sharded(small, world)  # what is imported on the way does not count
    with _peak() as sharded:
        model = _sharded(large, world)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    del model
    found = {"weights": weights, "sharded": sharded[0]}
    if world.is_main:
        with _peak() as whole:
            load_trainable(large, CPU)
        found["whole"] = whole[0]
    return found


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Measures the most memory, in bytes, that is this process's own, which a mapped file's is not, above the start."""
    start, found, done = _own_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            found[0] = max(found[0], _own_bytes() - start)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found[0] = max(found[0], _own_bytes() - start)


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def _sharded(recipe: TrainRecipe, world: World) -> LogprobModel:
    size = recipe.parallel.shares(world.size)
    shares = Shares(world.rank % size, size, CPU)
    model = LogprobModel(load_trainable(recipe, CPU, shares))
    assert shares._shares, "no weight was cut"
    with shares.put_into(model):
        shard(model, recipe, world)
    return model


def _differences(recipe: TrainRecipe, world: World) -> list[str]:
    """Names of what differs between a model read into shards and one that was read whole, for the main process."""
    model, row = _sharded(recipe, world), _probe_row(VOCABULARY)
    ours = {name: (weight.full_tensor(), weight.requires_grad) for name, weight in _named(model).items()}
    buffers = {name: (buffer, False) for name, buffer in model.named_buffers()}
    with torch.no_grad():
        logprobs = {} if recipe.mixed_precision else {"log-probabilities": (model(row), False)}
    if not world.is_main:
        return []
    whole = LogprobModel(load_trainable(recipe, CPU))
    theirs = {name: (weight, weight.requires_grad) for name, weight in _named(whole).items()}
    theirs |= {name: (buffer, False) for name, buffer in whole.named_buffers()}
    with torch.no_grad():
        theirs |= {name: (whole(row), False) for name in logprobs}
    found = ours | buffers | logprobs
    differ = [*(found.keys() ^ theirs.keys())]
    for name in found.keys() & theirs.keys():
        (value, trained), (expected, is_trained) = found[name], theirs[name]
        if value.dtype != expected.dtype or not torch.equal(value, expected) or trained != is_trained:
            differ.append(name)
    return differ


def _named(model: LogprobModel) -> dict[str, Any]:
    return dict(model.named_parameters(remove_duplicate=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
