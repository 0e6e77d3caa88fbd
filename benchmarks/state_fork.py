"""Models with a recurrent state: can the state at a prompt's end be handed to each response, and what would it save?

``python benchmarks/state_fork.py --json FILE``, on a CPU. ``logotrain`` computes the prompt of such a model once for
each of the M + 1 responses. The other way, called a fork here: run the prompt once with transformers' cache, repeat the
states in the cache M + 1 times, and go on with the responses as a batch, all in one graph.

- Exactness, in float64, on tiny copies of each kind: log-probabilities and gradients of all weights against separate
  rows. Kinds that compute parts in float32 differ by about 1e-4.
- Time, in float32, on wider copies of the kinds that are exact: forward and backward, separate rows against the fork,
  in turn. Responses have one length, so the batch has no padding: the fork's best case.

Nothing is recomputed in the backward pass, and states go through the PyTorch code of transformers, not through kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from measure import Meter

VOCABULARY, REJECTED = 128, 2
TOLERANCE = 2e-3
"""Largest difference that counts as equal, in nats; of gradients, as a share of the largest one."""
TIMED = ("qwen3_5_text", "mamba2", "falcon_h1", "lfm2")


def config_of(kind: str, hidden: int, layers: int) -> Any:
    """A small config: by turns a layer with a state and one with attention, where the kind has both."""
    heads, half = hidden // 16, layers // 2
    turns = ["linear_attention", "full_attention"] * half
    delta = {
        "layer_types": turns,
        "linear_num_key_heads": heads // 2,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    experts = {
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "num_experts": 4,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    mamba = {
        "mamba_n_heads": 2 * heads,
        "mamba_d_head": 16,
        "mamba_d_ssm": 2 * hidden,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 64,
    }
    own: dict[str, dict[str, Any]] = {
        "qwen3_next": delta | experts,
        "qwen3_5_text": delta,
        "qwen3_5_moe_text": delta | experts,
        "olmo_hybrid": delta | {"linear_num_key_heads": heads},
        "kimi_linear": experts
        | {"layer_types": turns, "linear_head_dim": 16, "linear_num_heads": heads, "num_key_value_heads": heads}
        | {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
        "minimax": {"layer_types": turns, "num_local_experts": 4, "block_size": 16},
        "mamba": {"state_size": 16},
        "falcon_mamba": {"state_size": 16},
        "mamba2": {"num_heads": 2 * heads, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 64},
        "falcon_h1": mamba,
        "bamba": mamba | {"attn_layer_indices": list(range(1, layers, 2))},
        "granitemoehybrid": mamba | {"layer_types": ["mamba", "attention"] * half, "num_local_experts": 0},
        "nemotron_h": {"layers_block_type": ["mamba", "attention"] * half, "mamba_num_heads": 2 * heads}
        | {"mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 64},
        "zamba2": {"layers_block_type": ["mamba", "hybrid"] * half, "n_mamba_heads": 2 * heads, "mamba_headdim": 16}
        | {
            "mamba_d_state": 16,
            "mamba_ngroups": 1,
            "chunk_size": 64,
            "num_mem_blocks": 1,
            "num_key_value_heads": heads,
        },
        "jamba": {"num_experts": 1, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"mamba_d_state": 16},
        "lfm2": {"layer_types": ["conv", "full_attention"] * half, "block_auto_adjust_ff_dim": False},
        "lfm2_moe": experts | {"layer_types": ["conv", "full_attention"] * half, "num_dense_layers": 1},
        "zaya": experts | {"num_experts_per_tok": 1},
        "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": hidden},
    }
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model(kind, **common | own[kind])


KINDS = (
    *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear", "mamba2", "falcon_h1", "bamba"),
    *("granitemoehybrid", "nemotron_h", "zamba2", "lfm2", "lfm2_moe", "minimax", "zaya"),
    *("mamba", "falcon_mamba", "jamba", "recurrent_gemma"),
)


def make_model(kind: str, hidden: int, layers: int, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    config = config_of(kind, hidden, layers)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager").eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=3.0 * weight.shape[-1] ** -0.5)
    return model


def separate_rows(model: PreTrainedModel, prompt: Tensor, responses: Tensor) -> Tensor:
    """Token log-probabilities of the responses [1 + M, R] after the prompt [1, P], each in a row of its own."""
    found = []
    for response in responses[:, None]:
        ids = torch.cat([prompt, response], dim=1)
        places = _positions(0, ids.shape[1])
        logits = model(input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=len(response[0]) + 1).logits
        found.append(_logprobs(logits[:, :-1], response))
    return torch.cat(found)


def forked(model: PreTrainedModel, prompt: Tensor, responses: Tensor, *, assign: bool = True) -> Tensor:
    """The same, the prompt computed once. ``assign``: the cache keeps a new state instead of writing over the old."""
    count, length = responses.shape
    first = model(input_ids=prompt, position_ids=_positions(0, prompt.shape[1]), use_cache=True, logits_to_keep=1)
    name = "cache_params" if "cache_params" in first else "past_key_values"
    cache = first[name]
    if hasattr(cache, "linear_cache"):  # MiniMax keeps its states beside the layers
        cache.linear_cache = [_repeated(state, count) for state in cache.linear_cache]
    for layer in cache.layers:
        for field, value in vars(layer).items():
            setattr(layer, field, _repeated(value, count))
        if assign and hasattr(layer, "recurrent_states"):
            layer.update_recurrent_state = MethodType(_assign_state, layer)
    places = _positions(prompt.shape[1], length - 1).expand(count, -1)
    after = model(input_ids=responses[:, :-1], position_ids=places, use_cache=True, **{name: cache})
    return _logprobs(torch.cat([first.logits.expand(count, -1, -1), after.logits], dim=1), responses)


def _positions(start: int, length: int) -> Tensor:
    return torch.arange(start, start + length)[None]


def _repeated(value: Any, count: int) -> Any:
    if isinstance(value, dict):
        return {key: _repeated(state, count) for key, state in value.items()}
    return value.repeat_interleave(count, dim=0) if isinstance(value, Tensor) and value.numel() else value


def _assign_state(layer: Any, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
    layer.recurrent_states[state_idx] = recurrent_states
    return recurrent_states


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]


def make_ids(prompt: int, response: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return tuple(  # type: ignore[return-value]
        torch.randint(1, VOCABULARY, shape, generator=draw) for shape in ((1, prompt), (1 + REJECTED, response))
    )


def examine(kind: str, response: int, *, assign: bool) -> dict[str, Any]:
    """How far values and gradients of a fork are off those of separate rows, or what it raised."""
    model = make_model(kind, 64, 2, torch.float64)
    ids = make_ids(150, response)
    slope = torch.linspace(-1, 1, ids[1].numel(), dtype=torch.float64).reshape(ids[1].shape)

    def values_and_gradients(way: Callable[..., Tensor], **options: bool) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        values = way(model, *ids, **options)
        (values * slope).sum().backward()
        return values.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    values, gradients = values_and_gradients(separate_rows)
    try:
        other, other_gradients = values_and_gradients(forked, assign=assign)
    except Exception as error:  # each kind fails in its own way
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    off = max(float((a - b).abs().max()) for a, b in zip(gradients, other_gradients, strict=True)) / largest
    return {"values": float((values - other).abs().max()), "gradients": off}


def is_exact(found: dict[str, Any]) -> bool:
    return "error" not in found and max(found.values()) < TOLERANCE


def time_kind(kind: str, prompt: int, response: int, rounds: int, hidden: int, layers: int) -> dict[str, Any]:
    """Seconds of a forward and backward pass of a sample, both ways in turn."""
    model = make_model(kind, hidden, layers, torch.float32)
    ids = make_ids(prompt, response)
    meter = Meter(torch.device("cpu"), torch.float32)

    def step(way: Callable[..., Tensor]) -> None:
        model.zero_grad()
        way(model, *ids).sum().backward()

    ways = {"separate_rows": separate_rows, "forked": forked}
    peaks = {name: meter.peak_bytes(lambda way=way: step(way)) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            seconds[name].append(meter.seconds(lambda way=ways[name]: step(way)))
    ratios = [a / b for a, b in zip(*(seconds[name] for name in ways), strict=True)]
    tokens = (1 + REJECTED) * (prompt + response) / (prompt + (1 + REJECTED) * response)
    return {
        "kind": kind,
        "prompt": prompt,
        "response": response,
        "ratio": statistics.median(ratios),
        "ratio_lowest_and_highest_round": [min(ratios), max(ratios)],
        "ratio_of_tokens": tokens,
        "seconds": seconds,
        "peak_bytes": peaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "options": {k: v for k, v in vars(arguments).items() if k != "json"} | {"rejected": REJECTED},
        "exactness": {},
        "time": [],
    }
    for kind in KINDS:
        found = {
            "assigned": examine(kind, 12, assign=True),
            "in_place": examine(kind, 12, assign=False),
            "assigned_one_token": examine(kind, 2, assign=True),
        }
        result["exactness"][kind] = found
        print(f"{kind:18}", {name: "exact" if is_exact(f) else f for name, f in found.items()}, flush=True)
    for kind in TIMED:
        for prompt in arguments.prompts:
            row = time_kind(kind, prompt, arguments.response, arguments.rounds, arguments.hidden, arguments.layers)
            result["time"].append(row)
            low, high = row["ratio_lowest_and_highest_round"]
            expected = row["ratio_of_tokens"]
            print(f"{kind:14} P={prompt}: {row['ratio']:.2f} ({low:.2f}-{high:.2f}), tokens {expected:.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
