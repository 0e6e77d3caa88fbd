"""The token that ends the assistant's turn: generation stops at it, and responses that are trained on end with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logodata.common.chat_template import TEMPLATE_SETTING, render_chat
from logodata.common.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "\ue000answer\ue000"  # private-use characters: they occur in no template


def turn_end_ids(tokenizer: PreTrainedTokenizerBase, model_eos_ids: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the ids that end the assistant's turn: the one that the chat template writes, the tokenizer's eos, the
    model's own.

    The first is appended to responses that are trained on. It is found by rendering an assistant's turn, since some
    families (Llama-3) end turns with a token other than the eos. They may still emit the eos, and must then stop too.
    :func:`logodata.models.facts.model_eos_ids` returns the model's own.

    Raises:
        UserError: No token ends a turn.
    """
    rendered = render_chat(tokenizer, "q", _ANSWER)
    after = tokenizer.encode(rendered.rpartition(_ANSWER)[2], add_special_tokens=False)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    ends = [token for token in after[:1] if token in special]
    ends += [token for token in (tokenizer.eos_token_id, *model_eos_ids) if token is not None]
    if not ends:
        what = "the chat template ends no turn and the tokenizer has no eos token"
        raise SettingError(what, setting=TEMPLATE_SETTING)
    return tuple(dict.fromkeys(ends))
