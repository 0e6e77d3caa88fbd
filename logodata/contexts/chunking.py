"""Cut documents into token chunks that reassemble exactly (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logodata.contract import Chunk
from logodata.prompts import text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chunk_text(tokenizer: PreTrainedTokenizerBase, text: str, chunk_tokens: int) -> list[Chunk]:
    """Cut a text into chunks of ``chunk_tokens`` tokens. Control tokens that occur in the text stay text.

    The text is tokenised once, as a whole. The joined ids of the chunks are those of the document, and their joined
    ``text[start:end]`` are the text, character for character. Byte-level tokenizers spread a character over several
    tokens. A border inside a character moves back to its start, so a chunk may be a few tokens shorter. A character of
    more than ``chunk_tokens`` tokens stays whole.
    """
    encoded = text_tokenizer(tokenizer)(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    # Equal ids become one number object: four times less memory for the tokens of a long document and of its prompts.
    number: dict[int, int] = {}
    ids = [number.setdefault(token, token) for token in encoded["input_ids"]]
    offsets = encoded["offset_mapping"]
    chunks: list[Chunk] = []
    first = character = 0
    while first < len(ids):
        last = min(first + chunk_tokens, len(ids))
        while last > first and not _is_border(offsets, last):
            last -= 1
        if last == first:
            last = next(i for i in range(first + 1, len(ids) + 1) if _is_border(offsets, i))
        # Characters that no token covers (some normalisers drop them) belong to the chunk before them.
        end = len(text) if last == len(ids) else offsets[last][0]
        chunks.append(Chunk(len(chunks), character, end, tuple(ids[first:last])))
        first, character = last, end
    return chunks


def _is_border(offsets: Sequence[tuple[int, int]], index: int) -> bool:
    """Whether a text can be cut before token ``index``: no character has tokens on both sides."""
    return index == len(offsets) or offsets[index][0] >= offsets[index - 1][1]
