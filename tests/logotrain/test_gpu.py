"""What only a GPU can show: its kernels let nothing leak, and training runs, stops and continues on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from logodata.engines import GenerationRequest, Sampling
from logodata.engines.transformers_engine import TransformersEngine
from logoeval.tasks.needles.attention_trace import trace_answers
from logoeval.tasks.perplexity import token_nlls
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.recipe.settings import Backend, TrainRecipe
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from logotrain.run import run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

Recipes = Callable[..., TrainRecipe]


def hidden_states(model: LlamaForCausalLM, ids: Tensor, layout: RowLayout) -> Tensor:
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    with torch.no_grad():
        return model.model(input_ids=ids, position_ids=positions, use_cache=False, shared_prefix=layout)[0][0]


@pytest.mark.parametrize("backend", ["flash", "flex", "sdpa"])
def test_a_token_changes_what_may_see_it_and_nothing_else(backend: Backend) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 3, "vocab_size": 300}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16).eval()
    layout = RowLayout((SharedPrefixLayout(700, (90, 41, 150)), SharedPrefixLayout(200, (30, 33))), padding=36)
    ids = torch.randint(0, 300, (1, layout.total_length), device="cuda")
    bounds = torch.tensor([0, *layout.pieces]).cumsum(0).tolist()
    names = ["prompt", "0", "1", "2", "other prompt", "other 0", "other 1", "padding"]
    pieces = dict(zip(names, map(slice, bounds[:-1], bounds[1:]), strict=True))
    with use_shared_prefix(model, backend):
        before = hidden_states(model, ids, layout)
        for place, seen_by in (
            (0, {"prompt", "0", "1", "2"}),
            (pieces["1"].start, {"1"}),
            (pieces["other prompt"].start, {"other prompt", "other 0", "other 1"}),
        ):
            changed = ids.clone()
            changed[0, place] = (ids[0, place] + 1) % 300
            after = hidden_states(model, changed, layout)
            for name, piece in pieces.items():
                last = before[piece][-1].equal(after[piece][-1])
                if name in seen_by:
                    assert not last, f"token {place} does not reach {name}"
                else:
                    assert before[piece].equal(after[piece]), f"token {place} leaks into {name}"


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compile": True},
        {"recompute": "selective"},
        {"attention": "flex", "recompute": "full"},
        {"tuning": "full", "recompute": "full"},
    ],
    ids=str,
)
def test_training_in_bfloat16_follows_float32_on_a_gpu(
    make_recipe: Recipes, tmp_path: Path, settings: dict[str, Any]
) -> None:
    tuning = {"tuning": settings["tuning"]} if "tuning" in settings else {}
    run(make_recipe(attention="sdpa", **tuning), tmp_path / "exact")
    run(make_recipe(dtype="bfloat16", **settings), tmp_path / "run")
    exact = losses(tmp_path / "exact")
    assert len(exact) == 4
    assert losses(tmp_path / "run") == pytest.approx(exact, rel=0.05)


def test_a_run_continues_on_a_gpu(make_recipe: Recipes, tmp_path: Path) -> None:
    recipe = make_recipe(dtype="bfloat16")
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "stopped")
    stopped = tmp_path / "stopped"
    for folder in (stopped / "final", stopped / "checkpoints" / "step-4"):
        folder.rename(folder.with_name(f"gone-{folder.name}"))
    run(recipe, stopped)
    assert losses(stopped) == pytest.approx(losses(tmp_path / "whole"), rel=0.02)  # sums in no fixed order


def test_evaluation_is_the_same_on_a_gpu(tiny_model: LlamaForCausalLM) -> None:
    ids = torch.randint(3, 269, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    requests = [GenerationRequest(str(n), (*ids, n), Sampling(8, (2,))) for n in range(3, 6)]

    def figures() -> tuple[Any, Any, Any]:
        answers = {item.id: item.token_ids for item in TransformersEngine(tiny_model).generate(requests)}
        [trace] = trace_answers(tiny_model, ids, [[5, 6, 7]])
        return answers, token_nlls(tiny_model, ids), trace

    answers, nlls, trace = figures()
    tiny_model.cuda()
    there = figures()
    assert there[0] == answers
    assert there[1] == pytest.approx(nlls, abs=1e-4)
    assert (there[2] == trace).mean() > 0.95  # of nearly equal scores another may be the largest
