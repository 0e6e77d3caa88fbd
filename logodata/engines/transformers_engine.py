"""Generate with transformers, on any device, in batches.

A small copy of the model is tried first (:mod:`logodata.engines.batching_trial`). Most models with full attention
compute once what prompts begin with (:mod:`logodata.engines.shared_generation`). All others generate by their own code
(:mod:`logodata.engines.own_generation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import transformers

from logodata.common.console import note
from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.batching import check_requests, plan_batches
from logodata.engines.batching_trial import find_batching
from logodata.engines.decoding import choose
from logodata.engines.own_generation import generate_own
from logodata.engines.settings import EngineSettings, engine_name
from logodata.engines.shared_generation import generate_shared
from logodata.models.text_config import config_window
from logodata.models.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersEngine:
    """An engine over a loaded model. The model stays the caller's: its attention is replaced only while it generates.

    Args:
        model: A causal language model, in evaluation mode.
        settings: The limits of batches and of the window; None takes the defaults.

    Raises:
        UserError: See :func:`logodata.engines.batching_trial.find_batching`.
    """

    def __init__(self, model: PreTrainedModel, settings: EngineSettings | None = None) -> None:
        self._model, self._settings = model, settings or EngineSettings()
        self._window = self._settings.max_model_len or config_window(model.config)
        self._batching = find_batching(model.config)
        if self._batching.reason:
            note(f"generation: {self._batching}")

    @property
    def name(self) -> str:
        """``transformers`` with its version, and the dtype of the weights unless it is float32."""
        return engine_name("transformers", transformers.__version__, str(self._model.dtype).removeprefix("torch."))

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        """Yield results as rows finish. Batches run from the shortest prompts to the longest.

        Sampled results depend on the request's seed and id, not on the batch (except for float rounding).

        Raises:
            UserError: See :func:`logodata.engines.batching.check_requests`; raised before anything runs.
        """
        check_requests(requests, self._window, vocabulary_size(self._model.config))
        tokens, rows = self._settings.max_batch_tokens, self._settings.max_batch_rows
        way = self._batching.way
        if way == "shared":
            for batch in plan_batches(requests, max_tokens=tokens, max_rows=rows):
                yield from generate_shared(self._model, batch, choose)
        else:
            yield from generate_own(self._model, requests, choose, way=way, max_tokens=tokens, max_rows=rows)
