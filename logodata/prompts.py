"""Encode prompts as token ids: the templates, and how document text is kept apart from template tokens.

A prompt is a chat-template frame around ``instruction, context, question``. The frame is tokenised with special tokens
recognised. Document chunks, questions, references and responses are tokenised separately and always as plain text, so a
document that holds ``<|im_end|>`` cannot end a turn.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from logodata.common.chat_template import TEMPLATE_SETTING, render_chat
from logodata.common.errors import SettingError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Paper section 3.2: the prompt is question and context. The appendix prints no instruction; this one is ours.
_QUESTION = "Read the text below and answer the question that follows it.\n\n{context}\nQuestion: {question}\n"
ANSWER_TEMPLATE = _QUESTION + "Answer in one short sentence."

OPEN_ANSWER_TEMPLATE = _QUESTION + "Answer with all that the text says about it, and nothing else."
"""For answers that are graded: by how complete they are, too."""

ANSWER_TEMPLATES = (ANSWER_TEMPLATE, OPEN_ANSWER_TEMPLATE)
"""The wordings of prompts that are trained on."""

# These ask for the preferred answer in the model's own words. They begin alike, so one prefill serves all. Measured on
# 60 questions with the embedded model, greedy: 18, 12, 13 and 16 of their answers were right, ended, said more than the
# bare reference and showed no traces of the hint. 28 questions had at least one such answer.
GUIDED_TEMPLATES = (
    _QUESTION + "Answer in one short sentence. Correct answer: {reference}.",
    _QUESTION + "Answer in one full sentence that says: {reference}.",
    _QUESTION + "Answer in one full sentence. Correct answer: {reference}.",
    _QUESTION + "Answer in one short sentence, using these words: {reference}.",
)

# Paper section 4 (corpus): a model writes questions of four kinds on raw documents. The wordings are ours.
# logodata.questions.replies reads the two lines that they ask for; {question} holds the name that a biography is about.
_TWO_LINES = "Name people and things in full. Use this form:\nQuestion: (your question)\nAnswer: (your answer)"
_READ = "Read the text below.\n\n{context}\nWrite one question "
WRITING_TEMPLATES = {
    "single_detail": f"{_READ}about a single detail (a name, a number, a place, a reason), and its short answer. "
    f"{_TWO_LINES}",
    "multi_detail": f"{_READ}whose answer joins details from several parts of this text, and its answer. {_TWO_LINES}",
    "biography": f"{_READ}about the life and deeds of {{question}}, and its answer in a few sentences. {_TWO_LINES}",
    "summary": f"{_READ}that asks to summarize what happens here, naming its subject, and the answer in a few "
    f"sentences. {_TWO_LINES}",
}
# For multi_detail questions from a cluster of chunks. logodata.questions.replies reads the three lines.
CLUSTER_TEMPLATE = (
    "Below are numbered chunks of a longer text.\n\n{context}\n"
    "Write one question whose answer must join details from as many of these chunks as possible, so that no single "
    "chunk suffices, and its answer in at most 40 words. The question is for somebody who has the whole text and not "
    "these numbers: name people and things in full, and never the chunks. Use this form:\n"
    "Question: (your question)\nAnswer: (your answer)\nEvidence: (the numbers of the chunks that the answer needs, "
    "such as 1, 3)\n"
    "If these chunks do not belong together, reply with this one word: Skipped"
)
CLOSED_BOOK_TEMPLATE = "Answer the question in one short sentence.\n\nQuestion: {question}"

# These ask whether a response says what the reference says (logodata.judge.model reads the last line). The first
# wording decides. The second reverses the order of reference, response and verdicts, to see whether the order makes the
# verdict. Neither holds the context: the reference is the measure, and the prompt stays short.
_VERDICT_FORM = "Reply with one line and nothing else: "
JUDGE_TEMPLATES = (
    "Judge whether a response answers a question as the reference answer does. Other words for the same are correct; "
    "another answer, no answer, or one that contradicts the reference is wrong.\n\n"
    "Question: {question}\nReference answer: {reference}\nResponse: {response}\n\n"
    f'{_VERDICT_FORM}"Verdict: correct" or "Verdict: wrong".',
    "Below are a response to a question, and the reference answer. The response is wrong if it gives another answer "
    "than the reference, none, or one that contradicts it; the same in other words is correct.\n\n"
    "Question: {question}\nResponse: {response}\nReference answer: {reference}\n\n"
    f'{_VERDICT_FORM}"Verdict: wrong" or "Verdict: correct".',
)

# The grade of a written question (logodata.judge.replies reads the last line). {reference} is the written answer. The
# five parts and their weights (25, 30, 20, 15, 10 of 100) are LongRLVR's; the wording is ours.
QUESTION_GRADE_TEMPLATE = (
    "Below are chunks of a longer text, and a question with its answer that were written from them.\n\n{context}\n"
    "Question: {question}\nAnswer: {reference}\n\n"
    "Grade question and answer. Add up the points for each of these:\n"
    "0 to 2.5: the question asks for something that matters in the text, and is not easy to answer.\n"
    "0 to 3: what the answer says is true by the chunks.\n"
    "0 to 2: the answer says all that the question asks for.\n"
    "0 to 1.5: both are clear to somebody who has not seen the chunks, and it is plain whom every pronoun means.\n"
    "0 to 1: the answer makes use of all chunks.\n\n"
    'Reply with one line and nothing else: "Score: n", where n is the sum, from 0 to 10 with at most one decimal.'
)

# These grade a response without a reference, along the four lines of LongReward (arXiv 2410.21252). The wordings are
# ours. logodata.judge.replies reads the last lines and the list of facts. The first wording decides. The second has
# another order, to see whether the order makes the grade. Facts and extracts are what both wordings are asked about.
_SCORE_FORM = (
    "Give your reasons in a few sentences. Then write the score alone on the last line, from 0 to 10 with at most one "
    'decimal: "Score: n".'
)
_SUPPORT_FORM = f'{_VERDICT_FORM}"Support: full", "Support: partial" or "Support: none".'
FACTS_TEMPLATE = (
    "List the facts that a response to a question states. Write each fact as one sentence that is clear by itself, "
    "with names in place of pronouns. Leave out greetings, transitions, opinions and conclusions.\n\n"
    "Question: {question}\nResponse: {response}\n\n"
    'Reply with one fact a line, numbered "1.", "2.", and so on, and nothing else. If there is none, reply "None".'
)
EXTRACT_TEMPLATE = (
    "Read this part of a longer text.\n\n{context}\nQuestion: {question}\n\n"
    "Write in a few sentences what this part says that bears on the question. If it says nothing of the kind, reply "
    '"No relevant information" and nothing else.'
)
GRADE_TEMPLATES = {
    "helpfulness": (
        "Rate how helpful a response to a question is. A helpful one speaks of what was asked, serves the purpose of "
        "the question, leaves out nothing that was asked for, and has the form that was asked for.\n\n"
        f"Question: {{question}}\nResponse: {{response}}\n\n{_SCORE_FORM}",
        "Below are a response and the question that it answers.\n\nResponse: {response}\nQuestion: {question}\n\n"
        "How helpful is it? It should have the form that was asked for, leave out nothing that was asked for, serve "
        f"the purpose of the question, and speak of what was asked. {_SCORE_FORM}",
    ),
    "logicality": (
        "Rate how logical a response to a question is. It loses points where its parts contradict each other, and "
        "where a step, a sum or a conclusion is faulty. Judge by the response alone, not by what you know.\n\n"
        f"Question: {{question}}\nResponse: {{response}}\n\n{_SCORE_FORM}",
        "Below are a response and the question that it answers.\n\nResponse: {response}\nQuestion: {question}\n\n"
        "Is it logical? Faulty conclusions, sums and steps cost points, and so do parts that contradict each other. "
        f"Do not use your own knowledge: the response alone counts. {_SCORE_FORM}",
    ),
    "completeness": (
        "Rate how completely a response covers what a long text says about a question. The points of the text are "
        "given with their places in it.\n\nQuestion: {question}\nPoints of the text:\n{extracts}\n\n"
        "Response: {response}\n\n"
        f"A response that leaves out points which matter for the question loses some. {_SCORE_FORM}",
        "Below is a response, then the question that it answers, then the points which a long text makes about this "
        "question, with their places in the text.\n\nResponse: {response}\nQuestion: {question}\nPoints of the text:\n"
        f"{{extracts}}\n\nHow completely does it cover the points that matter for the question? {_SCORE_FORM}",
    ),
    "support": (
        "Read these passages.\n\n{context}\nStatement: {statement}\n\n"
        "Do the passages support the statement? Full: they say all of it. Partial: they say a part of it, and nothing "
        f"against the rest. None: they say something else, or nothing of it. Use these passages alone. {_SUPPORT_FORM}",
        "Read these passages.\n\n{context}\nBy these passages alone, how far is the statement below supported? None: "
        "not at all, or they contradict it. Partial: in part, and the rest is not contradicted. Full: as a whole.\n\n"
        f"Statement: {{statement}}\n\n{_SUPPORT_FORM}",
    ),
}

CHUNK_SEPARATOR = "\n"
"""Follows each chunk in a context, so that words of chunks that were not neighbours do not run together."""

_CONTROL = re.compile(r"<.+>|\[.+\]|\{.+\}|\|.+\|")
"""The form of control tokens. Other added tokens are words of a language or of a field."""
_text_tokenizers: WeakKeyDictionary[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None] = WeakKeyDictionary()

_FIELD = re.compile(r"\{(\w+)\}")
_PROBE = " Is it  'so'?\n\n\tNo . 12,5 é\u00a0東京 🙂 <|im_end|> <s>\n"
_EDGE = "\udfff"  # half of a surrogate pair, which no decoded text has
_MARK = "\ue000"  # private-use character: it occurs in no template, and documents never pass through the template


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a prompt, and the spans ``[start, end)`` of its chunks in them. A span includes the chunk's
    separator."""

    ids: tuple[int, ...]
    chunk_spans: tuple[tuple[int, int], ...]


class PromptFormat:
    """One template inside a tokenizer's chat template. It encodes prompts piece by piece.

    The template is a text with ``{context}``, where chunks stand, and the names of other texts in braces, such as
    ``{question}``.

    Raises:
        UserError: The chat template fails, or drops or repeats the user's message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._tokenizer = tokenizer
        marked = _FIELD.sub(rf"{_MARK}\1{_MARK}", template)
        rendered = render_chat(tokenizer, marked)
        if rendered.count(_MARK) != marked.count(_MARK):
            raise SettingError("the chat template drops or repeats the user's message", setting=TEMPLATE_SETTING)
        pieces = rendered.split(_MARK)
        # Odd pieces are field names, even ones are the frame.
        self._frame = [pieces[i] if i % 2 else self._encode_frame(pieces[i]) for i in range(len(pieces))]
        self._separator = encode_text(tokenizer, CHUNK_SEPARATOR)
        self.fingerprint = hashlib.sha256(rendered.encode("utf-8")).hexdigest()[:16]

    def encode(self, chunks: Sequence[Sequence[int]], **texts: str) -> Prompt:
        """Return the token ids of the whole prompt, up to where the model's turn begins. ``chunks`` are the token ids
        of each chunk of the context, and ``texts`` hold the other fields of the template by name."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece in self._frame:
            if not isinstance(piece, str):
                ids += piece
            elif piece == "context":
                for chunk in chunks:
                    start = len(ids)
                    ids += [*chunk, *self._separator]
                    spans.append((start, len(ids)))
            else:
                ids += encode_text(self._tokenizer, texts[piece])
        return Prompt(tuple(ids), tuple(spans))

    def _encode_frame(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


class UserMessages:
    """Gives back the user's message of a prompt that :class:`PromptFormat` encoded, for engines that send texts.

    Raises:
        UserError: The tokenizer does not give back every text that it encodes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._control = {
            id_: token.content for id_, token in added.items() if token.special or is_control(token.content)
        }
        # Without a chat template prompts are texts that the model continues.
        rendered = render_chat(tokenizer, _MARK) if tokenizer.chat_template else _MARK
        begin, end = (list(tokenizer.encode(text, add_special_tokens=False)) for text in rendered.split(_MARK, 1))
        self._begin, self._end = self._marked(begin), self._marked(end)
        if self.decode([*begin, *encode_text(tokenizer, _PROBE), *end]) != rendered.replace(_MARK, _PROBE):
            what = f"the tokenizer of {tokenizer.name_or_path} does not give back the text that it encodes"
            raise UserError(what, mend="count with another model's, such as model=embedded")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included."""
        text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def read(self, prompt_ids: Sequence[int]) -> str:
        """Return the message of a prompt.

        A message cannot begin the answer, and holds no earlier turns: where a prompt does, all their texts stand in the
        message, one after the other, as RULER asks models without a chat template. So does a prompt without the chat
        template. What only looks like a control token is text.
        """
        text, begin, end = self._marked(prompt_ids), self._begin, self._end
        if (begin or end) and text.startswith(begin) and end in text:
            text = text.removeprefix(begin)
            if end:
                asked, _, begun = text.rpartition(end)
                if begin and _EDGE in begin + end:
                    asked = re.sub(re.escape(end) + "(.*?)" + re.escape(begin), r"\1", asked, flags=re.DOTALL)
                text = asked + begun
        return re.sub(f"{_EDGE}[^{_EDGE}]*{_EDGE}", "", text)

    def _marked(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens with an edge on either side of each control token."""
        parts, start = list[str](), 0
        for place, token in enumerate([*token_ids, None]):
            if token is None or token in self._control:
                parts.append(self.decode(token_ids[start:place]))
                parts += [] if token is None else [f"{_EDGE}{self._control[token]}{_EDGE}"]
                start = place + 1
        return "".join(parts)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of plain text. Control tokens that occur in it stay text."""
    return list(text_tokenizer(tokenizer).encode(text, add_special_tokens=False, split_special_tokens=True))


def numbered(tokenizer: PreTrainedTokenizerBase, chunks: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return chunks of token ids with a line before each that has its number, from 1 on, to be encoded in a prompt. The
    line is encoded on its own, so the tokens of the chunk stay as they are."""
    return [[*encode_text(tokenizer, f"Chunk {number}:\n"), *chunk] for number, chunk in enumerate(chunks, 1)]


def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose ``split_special_tokens`` keeps every control token as text.

    It is the tokenizer itself if all its control tokens are marked as special. Some models have control tokens that are
    not (OpenHermes' ``<|im_start|>``, Qwen3's ``<tool_call>``) and would be recognised in any text; then it is a copy
    in which they are marked. Only encode with it: decoding would drop what a response may hold.
    """
    if tokenizer not in _text_tokenizers:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        unmarked = [token for token in added if not token.special and is_control(token.content)]
        hiding = None
        if unmarked and getattr(tokenizer, "backend_tokenizer", None) is not None:
            hiding = copy.deepcopy(tokenizer)
            hiding.backend_tokenizer.add_special_tokens(unmarked)
        _text_tokenizers[tokenizer] = hiding
    return _text_tokenizers[tokenizer] or tokenizer


def is_control(token: str) -> bool:
    """Return whether an added token has the form of a control token, marked as special or not."""
    return _CONTROL.fullmatch(token) is not None


def gives_back(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], text: str) -> bool:
    """Return whether tokens say a text: as :func:`decode_text` reads them, or before it cleans spaces."""
    return text == decode_text(tokenizer, token_ids) or text == tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def decode_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of response tokens, without special tokens."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text
