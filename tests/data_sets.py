"""Files of data sets that no build made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from logodata.common.files import write_json
from logodata.contract import SCHEMA_VERSION, EvaluatorChoice, Manifest, Stats
from logodata.dataset.statistics import Statistics
from logodata.recipe.settings import BuildRecipe
from logotrain.metrics import Throughput


def recipe_json(**sections: Any) -> dict[str, Any]:
    """A recipe as a manifest holds it; ``sections`` are parts of it."""
    recipe = {"model": "model", "source": {"path": "my.jsonl"}, **sections}
    return BuildRecipe.model_validate(recipe).model_dump(mode="json")


def manifest_of(**changes: Any) -> Manifest:
    """A manifest of made-up values, but for ``changes``."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "logo_align": "0",
        "model": "model",
        "model_fingerprint": "abc",
        "tokenizer_fingerprint": "t",
        "prompt_fingerprints": {"answer": "f00d", "guided": []},
        "window": 2048,
        "engine": "fake 1",
        "source": {"path": "my.jsonl", "sha256": "123"},
        "recipe": recipe_json(),
        "chat_template": None,
        "samples": 1,
    }
    return Manifest.model_validate({**facts, **changes})


def write_manifest(folder: Path, **changes: Any) -> None:
    write_json(folder / "manifest.json", manifest_of(**changes).to_json())


def new_statistics() -> Statistics:
    return Statistics(EvaluatorChoice(name="entity", query="question"))


def stats_of(**changes: Any) -> Stats:
    """Statistics of no question, but for ``changes``."""
    return Stats.model_validate({**new_statistics().result().to_json(), **changes})


TIMES = {"seconds", *Throughput.model_fields}
"""Fields of a step's metrics that differ from run to run."""
