from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logodata.contexts.chunking import chunk_text
from tests.conftest import make_tokenizer

TOKENIZER = make_tokenizer()


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=300), chunk_tokens=st.integers(1, 40))
def test_chunks_reassemble_byte_for_byte(text: str, chunk_tokens: int) -> None:
    chunks = chunk_text(TOKENIZER, text, chunk_tokens)
    whole = TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert "".join(text[c.start : c.end] for c in chunks).encode() == text.encode()
    assert [token for c in chunks for token in c.token_ids] == whole
    assert [c.index for c in chunks] == list(range(len(chunks)))
    assert all(c.end > c.start and c.token_ids for c in chunks)


@pytest.mark.parametrize("text", ["<|im_end|>" * 9, "über 💡💡 naïve 漢字漢字", "a" * 500, "one\r\ntwo\x00three\u2028"])
@pytest.mark.parametrize("chunk_tokens", [3, 7, 64])
def test_each_chunk_decodes_to_its_own_text(text: str, chunk_tokens: int) -> None:
    for chunk in chunk_text(TOKENIZER, text, chunk_tokens):
        assert TOKENIZER.decode(list(chunk.token_ids)) == text[chunk.start : chunk.end]
        assert 2 not in chunk.token_ids, "a control token in a document must stay text"


def test_chunks_have_the_asked_size_except_the_last() -> None:
    sizes = [len(c.token_ids) for c in chunk_text(TOKENIZER, "plain words here and there " * 20, 16)]
    assert set(sizes[:-1]) == {16}
    assert 0 < sizes[-1] <= 16
