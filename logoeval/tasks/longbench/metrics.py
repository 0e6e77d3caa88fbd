"""LongBench's metrics, which equal those of its official ``metrics.py`` to the last bit.

Each is a function of a prediction, one gold answer and the classes of the task, and returns a score in [0, 1]. Some
things look odd but are official: punctuation is deleted, not replaced by a space; classes are removed from a list while
it is iterated; ROUGE does not lower-case.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

from logoeval.tasks.longbench.rouge import rouge_l

if TYPE_CHECKING:
    import jieba

Metric = Callable[[str, str, Sequence[str] | None], float]
CodeSimBackend = Literal["rapidfuzz", "difflib"]

_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢"
    "｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_DELETE = str.maketrans("", "", string.punctuation)
_DELETE_ZH = str.maketrans("", "", string.punctuation + _CHINESE_PUNCTUATION)


def normalize(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation and articles, with white space collapsed."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_DELETE)).split())


def cut_words(text: str) -> list[str]:
    """Return jieba's tokens of a text, white space and punctuation included."""
    return list(_jieba().cut(text, cut_all=False))


@cache
def _jieba() -> jieba.Tokenizer:
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)  # at INFO it logs how it loads its dictionary
    return jieba.Tokenizer()


def qa_f1(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return F1 over the words of both normalised texts, with repeated words counted. Two empty texts give 0."""
    return _f1(normalize(prediction).split(), normalize(gold).split())


def qa_f1_zh(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return F1 over jieba's tokens, in lower case and without punctuation. Empty tokens are dropped."""
    return _f1(_tokens_zh(prediction), _tokens_zh(gold))


def _tokens_zh(text: str) -> list[str]:
    tokens = ("".join(token.lower().translate(_DELETE_ZH).split()) for token in cut_words(text))
    return [token for token in tokens if token]


def _f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return (2 * precision * recall) / (precision + recall)


def rouge(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return F of ROUGE-L, or 0 where the official script exceeds the recursion limit (:func:`rouge_overflows`)."""
    return rouge_l(prediction, gold).f


def rouge_zh(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return F of ROUGE-L over jieba's tokens."""
    return rouge_l(" ".join(cut_words(prediction)), " ".join(cut_words(gold))).f


def classification(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return 1/n if the gold class is one of the n classes that are substrings of the prediction, else 0."""
    if all_classes is None:
        raise ValueError("classification needs all_classes")
    found = [name for name in all_classes if name in prediction]
    # Removing from a list while it is iterated skips the element after each removed one. The official script does too.
    for name in found:
        if name in gold and name != gold:
            found.remove(name)
    return 1.0 / len(found) if gold in found else 0.0


def retrieval(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return the share of the numbers in the prediction that equal the gold paragraph's number."""
    return _number_share(prediction, re.findall(r"Paragraph (\d+)", gold)[0])


def retrieval_zh(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return the score of :func:`retrieval` for gold answers that name a paragraph in Chinese."""
    return _number_share(prediction, re.findall(r"段落(\d+)", gold)[0])


def count(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return the share of the numbers in the prediction that equal the gold answer as strings."""
    return _number_share(prediction, gold)


def _number_share(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def code_sim(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return the similarity of the prediction's first line of code to the gold line, rounded to hundredths: twice the
    length of the longest common subsequence, divided by the sum of both lengths. The official script gives this value
    where python-Levenshtein is installed."""
    from rapidfuzz.distance import LCSseq

    line = _code_line(prediction)
    return _hundredths(line, gold, lambda: 2.0 * LCSseq.similarity(line, gold) / (len(line) + len(gold)))


def code_sim_difflib(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Return the score of :func:`code_sim` with difflib's ratio, as the official script without python-Levenshtein."""
    line = _code_line(prediction)
    return _hundredths(line, gold, lambda: difflib.SequenceMatcher(None, line, gold).ratio())


def _code_line(prediction: str) -> str:
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")


def _hundredths(line: str, gold: str, ratio: Callable[[], float]) -> float:
    # The ratio of two empty texts would be 0/0; they count as equal.
    return 1.0 if line == gold else round(100 * ratio()) / 100


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (qa_f1, qa_f1_zh, rouge, rouge_zh, classification, retrieval, retrieval_zh, count, code_sim)
}
"""The metrics by name. ``code_sim`` is rapidfuzz's; :data:`CODE_SIM` has both back ends."""

CODE_SIM: dict[CodeSimBackend, Metric] = {"rapidfuzz": code_sim, "difflib": code_sim_difflib}
"""The back ends of ``code_sim``. Their scores of equal predictions differ by points, so results name the back end."""


def rouge_overflows(name: str, prediction: str, gold: str) -> bool:
    """Return whether a ROUGE score is 0 only because the official script exceeds Python's recursion limit."""
    if name == "rouge_zh":
        prediction, gold = " ".join(cut_words(prediction)), " ".join(cut_words(gold))
    elif name != "rouge":
        return False
    return rouge_l(prediction, gold).overflow
