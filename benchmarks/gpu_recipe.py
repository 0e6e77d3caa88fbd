"""A part of gpu.py: ``recipes/llama3-80k.yaml`` from its data to a merged model.

It types the commands that a user types. Weights are random, training takes 20 steps, and it is stopped and continued.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gpu_part import Bench
from logodata import __version__
from logodata.common.files import write_json
from logodata.contract import SCHEMA_VERSION, ContextChunk, Manifest, PreferenceSample, PromptFingerprints, SourceFile
from logodata.dataset.samples import write_samples
from logodata.models.facts import model_fingerprint, model_window, tokenizer_fingerprint
from patterns import word_tokenizer
from shape import Shape, make_sample, model_config, random_llama

RECIPE = Path(__file__).parents[1] / "recipes" / "llama3-80k.yaml"
STEPS, STOP_AFTER, SAMPLES_PER_STEP = 20, 8, 2


def recipe(bench: Bench) -> dict[str, Any]:
    """Train, stop, continue and merge; measure each command's seconds and check the merged weights."""
    shape, folder = bench.shape, bench.scratch
    window = 1024 if bench.small else 81920
    result: dict[str, Any] = {"seconds": {}, "summary": []}

    def timed(name: str, started: float) -> None:
        result["seconds"][name] = round(time.perf_counter() - started, 1)
        result["summary"] = [", ".join(f"{key} {value} s" for key, value in result["seconds"].items())]
        bench.save(result)

    started = time.perf_counter()
    model = write_model(shape, window, bench.device, folder / "model")
    timed("write random model", started)
    started = time.perf_counter()
    data = write_data(shape, model, folder / "data", count=STEPS * SAMPLES_PER_STEP)
    timed("write data", started)

    overrides = [
        f"model={model}",
        f"samples_per_step={SAMPLES_PER_STEP}",
        "epochs=1",
        "collapse.min_chosen_logp=null",  # random weights find every token equally unlikely: -11.8 nats
        "collapse.num_prompts=1",
        "collapse.max_new_tokens=16",
        f"attention={bench.attention}",
        "checkpoint.every_steps=10",
        "checkpoint.keep=1",  # each has 9 GB: the embedding is trained
        # A recipe for 8K contexts; positions reach the small shape's own window.
        *(["positions.target_length=1024", "dtype=float32", "lora.rank=4"] if bench.small else []),
    ]
    run = ["run", str(RECIPE), "--data", str(data), "-o", str(folder / "run"), *overrides]
    started = time.perf_counter()
    result["stopped_after"] = stop_after(run, folder / "run" / "metrics.jsonl", STOP_AFTER, bench.left())
    timed("train, stopped", started)
    started = time.perf_counter()
    said = logotrain(run, bench.left())
    timed("train, continued", started)
    result["continued"] = next((line for line in said.splitlines() if "continuing after" in line), None)
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    result["steps"] = [line["step"] for line in metrics]
    result["losses"] = [line["loss"] for line in metrics]
    result["seconds_per_step"] = [line["seconds"] for line in metrics]
    result["said"] = [line for line in said.splitlines() if line.startswith(("attention", "recompute", "strategy"))]
    bench.save(result)

    shutil.rmtree(folder / "run" / "checkpoints")
    started = time.perf_counter()
    adapter, merged = folder / "run" / "final", folder / "merged"
    logotrain(["merge", str(adapter), "--model", str(model), "-o", str(merged)], bench.left())
    timed("merge", started)
    result["merged_differs_by"] = check_merge(model, adapter, merged)
    ok = result["steps"] == list(range(1, STEPS + 1)) and result["continued"] is not None
    ok = ok and result["merged_differs_by"] < 0.01
    result["ok"] = ok
    per_step = sorted(result["seconds_per_step"])[STEPS // 2]
    result["summary"] += [
        f"{'ok' if ok else 'NOT AS EXPECTED'}: {len(metrics)} steps of {SAMPLES_PER_STEP} samples, median "
        f"{per_step:.2f} s; stopped after {result['stopped_after']}, {result['continued']}",
        f"loss {metrics[0]['loss']:.4f} to {metrics[-1]['loss']:.4f}; of a merged layer's weights "
        f"{result['merged_differs_by']:.2%} are rounded otherwise; {'; '.join(result['said'])[:200]}",
    ]
    return result


def write_model(shape: Shape, window: int, device: torch.device, folder: Path) -> Path:
    """Write a model folder with random bfloat16 weights and a tokenizer whose words are numbers."""
    config = model_config(
        shape,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": 200_000_000.0},
        use_cache=True,
    )
    random_llama(config, device, torch.bfloat16).save_pretrained(folder)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # training is another process
    word_tokenizer(shape.vocabulary).save_pretrained(folder)
    return folder


def write_data(shape: Shape, model: Path, folder: Path, count: int) -> Path:
    """Write a data folder as ``logodata build`` does, with prompts of 16 chunks of random tokens."""
    from transformers import AutoTokenizer

    chunks = 16
    size = shape.prompt // chunks
    base = make_sample(shape, shape.rejected)
    generator = torch.Generator().manual_seed(2)
    samples: list[PreferenceSample] = []
    for number in range(count):
        ids = torch.randint(3, shape.vocabulary, (shape.prompt,), generator=generator).tolist()
        spans = [
            ContextChunk(
                doc_id="random",
                index=n,
                start=n,
                end=n + 1,
                token_start=n * size,
                token_end=(n + 1) * size,
                score=0.0,
                critical=n == 0,
                text="",
            )
            for n in range(chunks)
        ]
        update = {"id": f"random-{number}", "question_id": f"q-{number}", "prompt_ids": ids, "chunks": spans}
        samples.append(base.model_copy(update=update))
    (folder / "data").mkdir(parents=True)
    write_samples(folder / "data" / "samples.parquet", samples)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        logo_align=__version__,
        model=str(model),
        model_fingerprint=model_fingerprint(str(model)),
        tokenizer_fingerprint=tokenizer_fingerprint(AutoTokenizer.from_pretrained(model)),
        prompt_fingerprints=PromptFingerprints(answer="none", guided=[]),
        window=model_window(str(model)),
        engine="none: tokens are random",
        source=SourceFile(path="random", sha256="none"),
        recipe={},
        chat_template=None,
        samples=count,
    )
    write_json(folder / "manifest.json", manifest.to_json())
    return folder


def logotrain(arguments: list[str], timeout: float) -> str:
    """Run a command of logotrain and return what it said.

    Raises:
        RuntimeError: the command fails.
    """
    command = [sys.executable, "-m", "logotrain", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:2])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout + done.stderr


def stop_after(arguments: list[str], metrics: Path, steps: int, timeout: float) -> int:
    """Start training, and send SIGTERM, as a cluster does, when so many steps are logged.

    The command then writes a checkpoint and ends with code 130.

    Returns:
        How many steps were logged when the command had ended.
    """
    deadline = time.monotonic() + timeout
    with subprocess.Popen([sys.executable, "-m", "logotrain", *arguments]) as process:
        while process.poll() is None:
            done = metrics.read_text().count("\n") if metrics.exists() else 0
            if done >= steps:
                process.send_signal(signal.SIGTERM)
                process.wait(120)
                break
            if time.monotonic() > deadline:
                process.kill()
                raise TimeoutError(f"{done} steps when the time was up")
            time.sleep(0.05)
    if process.returncode != 130:
        raise RuntimeError(f"logotrain run ended with {process.returncode} instead of being stopped")
    return metrics.read_text().count("\n")


def check_merge(model: Path, adapter: Path, merged: Path) -> float:
    """Return the share of a merged layer's weights that are not W + B A alpha / rank, rounded to bfloat16.

    The sum is computed here in float64. A sum that differs by rounding alone may round to the other neighbour.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text())
    name = "model.layers.0.self_attn.v_proj"
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        a, b = (file.get_tensor(f"base_model.model.{name}.lora_{side}.weight").double() for side in "AB")
    change = b @ a * settings["lora_alpha"] / settings["r"]
    if not change.any():
        raise RuntimeError("training changed nothing")
    before, after = (_tensor(folder, f"{name}.weight") for folder in (model, merged))
    return ((before.double() + change).bfloat16() != after.bfloat16()).double().mean().item()


def _tensor(folder: Path, name: str) -> torch.Tensor:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118  # not a mapping
                return file.get_tensor(name)
    raise KeyError(name)
