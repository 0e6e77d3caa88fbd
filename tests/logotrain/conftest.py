"""Synthetic build folders and rows for the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from logodata.contract import ContextChunk, PreferenceSample, Response
from logodata.dataset.samples import write_samples
from logodata.models.facts import model_fingerprint, tokenizer_fingerprint
from logotrain.recipe.settings import TrainRecipe
from tests.data_sets import write_manifest
from tests.tiny_models import VOCABULARY


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_sample() -> Callable[..., PreferenceSample]:
    """``make_sample(name, responses=(5, 3, 4), chunks=3, chunk_length=8)``: random ids, the lengths given. Every other
    chunk is critical, from the first one on."""
    return sample_of


def sample_of(
    name: str, *, responses: tuple[int, ...] = (5, 3, 4), chunks: int = 3, chunk_length: int = 8, tail: int = 4
) -> PreferenceSample:
    rng = np.random.default_rng(list(name.encode()))
    head = 3

    def ids(count: int) -> list[int]:
        return [int(token) for token in rng.integers(3, VOCABULARY, count)]

    def response(length: int, ended: bool) -> Response:
        tokens = [*ids(length - 1), 2] if ended and length else ids(length)
        return Response(strategy="test", text="t", token_ids=tokens, ended=ended, word_share=1.0, token_f1=1.0)

    starts = [head + n * chunk_length for n in range(chunks)]
    return PreferenceSample(
        id=name,
        doc_id="d",
        question_id=f"q-{name}",
        kind="other",
        question="?",
        answers=["t"],
        prompt_ids=ids(head + chunks * chunk_length + tail),
        chunks=[
            ContextChunk(
                doc_id="d",
                index=n,
                start=n,
                end=n + 1,
                token_start=start,
                token_end=start + chunk_length,
                score=0.0,
                critical=n % 2 == 0,
                text="t",
            )
            for n, start in enumerate(starts)
        ],
        chosen=response(responses[0], ended=True),
        rejected=[response(length, ended=n % 2 == 0) for n, length in enumerate(responses[1:])],
        answer_in_critical=True,
    )


@pytest.fixture
def make_build(tmp_path: Path, tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """``make_build(samples)``: a folder as ``logodata build`` leaves it."""

    def make(samples: list[PreferenceSample], name: str = "build", **manifest: Any) -> Path:
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        write_samples(folder / "data" / "samples.parquet", samples)
        facts = {
            "model": str(tiny_model_dir),
            "model_fingerprint": model_fingerprint(str(tiny_model_dir)),
            "tokenizer_fingerprint": tokenizer_fingerprint(tiny_tokenizer),
        }
        write_manifest(folder, **{**facts, **manifest})
        return folder

    return make


@pytest.fixture
def build_dir(make_build: Callable[..., Path]) -> Path:
    """Six samples, M = 2, ragged responses."""
    return make_build([sample_of(f"s{n}", responses=(5 + n % 3, 3, 4 + n % 2)) for n in range(6)])


@pytest.fixture
def make_recipe(tiny_model_dir: Path, build_dir: Path) -> Callable[..., TrainRecipe]:
    """``make_recipe(**{"optimizer.lr": 1e-3})``: a small float32 run of the tiny model."""

    def make(**overrides: Any) -> TrainRecipe:
        values: dict[str, Any] = {
            "model": str(tiny_model_dir),
            "data": {"path": str(build_dir)},
            "objective": {"beta": 2.5, "gamma": 0.25},
            "lora": {"rank": 4, "alpha": 8, "train_embeddings": False},
            "optimizer": {"lr": 2e-3},
            "epochs": 2,
            "samples_per_step": 3,
            "recompute": "none",
            "dtype": "float32",
            "checkpoint": {"every_steps": 2},
            "collapse": {"max_new_tokens": 5},  # two continuations of 64 tokens are two thirds of a run
        }
        for key, value in overrides.items():
            section, _, leaf = key.rpartition(".")
            if section:
                values.setdefault(section, {})[leaf] = value
            else:
                values[leaf] = value
        return TrainRecipe.model_validate(values)

    return make
