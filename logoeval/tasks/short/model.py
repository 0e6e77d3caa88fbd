"""The model in transformers as lm-evaluation-harness sees it. Imported where it is needed: it loads the harness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval.models.huggingface import HFLM

from logodata.models.vocabulary import vocabulary_size
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.short.recording import HarnessAnswer, Recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from logoeval.session import Session


class HarnessModel(Recorded, HFLM):
    """The harness's model over weights that are loaded already.

    Args:
        model: the weights.
        tokenizer: not shared with others, since the harness may give it a padding token.
        window: tokens that a prompt with its answer may have.
        batch_size: rows of a forward pass.
        truncate: see :meth:`Recorded.record`.
        answers: see :meth:`Recorded.record`.
        reasons: see :meth:`Recorded.record`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int,
        batch_size: int,
        truncate: bool,
        answers: RecordFile[HarnessAnswer],
        reasons: Session | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            max_length=window,
            batch_size=batch_size,
        )
        self.record(
            answers, vocabulary=vocabulary_size(model.config), window=window, truncate=truncate, reasons=reasons
        )
