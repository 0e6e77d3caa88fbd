"""Token ids must be the model's: a tokenizer may hold more tokens than the model's embedding has rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logodata.common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ENLARGE = (
    "take the tokenizer that the model was trained with, or give the model rows for its tokens: "
    "model.resize_token_embeddings(len(tokenizer))"
)
"""How to mend a tokenizer and a model that do not fit."""


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Rows of the embedding of a model; of one of several kinds of input, of its text part."""
    from logodata.models.text_config import text_config

    return int(text_config(config).vocab_size)


def check_ids(size: int, *sequences: Sequence[int], where: str, mend: str = ENLARGE) -> None:
    """Refuse token ids that the model has no row for.

    Tokens of a tokenizer that no text has been turned into do no harm, and some published models have such: so ids are
    checked, not tokenizers.

    Args:
        size: as :func:`vocabulary_size` gives it.
        sequences: of token ids.
        where: they stand.
        mend: what to do.

    Raises:
        UserError: it names the first one.
    """
    for ids in sequences:
        if ids and not 0 <= min(ids) <= max(ids) < size:
            outside = next(token for token in ids if not 0 <= token < size)
            raise UserError(f"token id {outside} is outside the model's vocabulary of {size}", where=where, mend=mend)
