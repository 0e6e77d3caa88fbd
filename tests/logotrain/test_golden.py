"""Golden losses: a refactor must not move them; a change of numerics re-records them and says why.

To record: ``LOGO_RECORD_GOLDEN=1 pytest tests/logotrain/test_golden.py``, and name the reason in the commit.
Weights come from numpy, so that the values do not depend on how a release of transformers draws its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run

GOLDEN = Path(__file__).with_name("golden.json")
COLUMNS = ("loss", "preference_loss", "sft_loss", "margin", "chosen_logp", "grad_norm", "lr", "tokens")


def test_four_steps_give_the_recorded_figures(
    make_recipe: Callable[..., TrainRecipe],
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if parameter.ndim == 2:
                seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
                values = np.random.default_rng(seed).standard_normal(parameter.shape) * 0.15
                parameter.copy_(torch.from_numpy(values))
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    recipe = make_recipe(
        **{"model": str(tmp_path / "model"), "lora.train_embeddings": True, "optimizer.lr": 5e-3, "optimizer.eps": 1e-3}
    )
    run(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [{column: line[column] for column in COLUMNS} for line in lines]

    if os.environ.get("LOGO_RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert len(found) == len(expected) == 4
    for step, reference in zip(found, expected, strict=True):
        assert step == pytest.approx(reference, rel=1e-6, abs=1e-6)
