"""Check that token ids are the model's: a tokenizer may hold more tokens than the model's embedding has rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logodata.common.errors import UserError
from logodata.models.text_config import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ENLARGE = (
    "take the tokenizer that the model was trained with, or give the model rows for its tokens: "
    "model.resize_token_embeddings(len(tokenizer))"
)
"""How to mend a tokenizer that does not fit the model."""


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Return the number of rows of a model's embedding; of its text part if the model has several kinds of input."""
    return int(text_config(config).vocab_size)


def check_ids(size: int, *sequences: Sequence[int], where: str, mend: str = ENLARGE) -> None:
    """Refuse token ids that the model has no row for.

    Ids are checked instead of tokenizers: surplus tokens that no text becomes do no harm, and some published models
    have them. ``size`` is the number of rows, as :func:`vocabulary_size` returns it.

    Raises:
        UserError: It names the first such id.
    """
    for ids in sequences:
        if ids and not 0 <= min(ids) <= max(ids) < size:
            outside = next(token for token in ids if not 0 <= token < size)
            raise UserError(f"token id {outside} is outside the model's vocabulary of {size}", where=where, mend=mend)
