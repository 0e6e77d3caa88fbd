"""One process of a pair: trains every run of a list, so that starting Python and torch is paid for once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from logotrain.parallel import launched
from logotrain.recipe import TrainRecipe
from logotrain.run import run


def main(tasks: Path) -> None:
    torch.set_num_threads(1)
    with launched():
        for task in json.loads(tasks.read_text()):
            run(TrainRecipe.model_validate(task["recipe"]), Path(task["out"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
