"""LongBench's metrics, to the last bit of its official ``metrics.py``: functions of a prediction, one gold answer and
the task's classes, in [0, 1].

What looks odd is official: punctuation is deleted, not replaced; classes are removed from the list that is walked;
ROUGE lower-cases nothing.
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
    """Lower case, without ASCII punctuation and articles, white space collapsed."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_DELETE)).split())


def cut_words(text: str) -> list[str]:
    """The tokens that jieba cuts a text into, white space and punctuation among them."""
    return list(_jieba().cut(text, cut_all=False))


@cache
def _jieba() -> jieba.Tokenizer:
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)  # it reports on its dictionary otherwise
    return jieba.Tokenizer()


def qa_f1(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """F1 over the words of both normalised texts, repeats counted. Empty against empty is 0."""
    return _f1(normalize(prediction).split(), normalize(gold).split())


def qa_f1_zh(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """F1 over jieba's tokens, each lowered and without punctuation, empty ones dropped."""
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
    """F of ROUGE-L; 0 where the official script meets Python's recursion limit (see :func:`rouge_overflows`)."""
    return rouge_l(prediction, gold).f


def rouge_zh(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """F of ROUGE-L over jieba's tokens."""
    return rouge_l(" ".join(cut_words(prediction)), " ".join(cut_words(gold))).f


def classification(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """1/n if the gold class is among the n classes that the prediction holds as substrings, else 0.

    Raises:
        ValueError: no classes are given.
    """
    if all_classes is None:
        raise ValueError("classification needs all_classes")
    found = [name for name in all_classes if name in prediction]
    # Removing from the list that is walked skips the element after each removed one; so does the official script.
    for name in found:
        if name in gold and name != gold:
            found.remove(name)
    return 1.0 / len(found) if gold in found else 0.0


def retrieval(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the numbers in the prediction that are the gold paragraph's.

    Raises:
        IndexError: the gold answer names no paragraph.
    """
    return _number_share(prediction, re.findall(r"Paragraph (\d+)", gold)[0])


def retrieval_zh(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """The same for Chinese paragraphs.

    Raises:
        IndexError: the gold answer names no paragraph.
    """
    return _number_share(prediction, re.findall(r"段落(\d+)", gold)[0])


def count(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the numbers in the prediction that are the gold answer, compared as strings."""
    return _number_share(prediction, gold)


def _number_share(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def code_sim(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """Likeness of the prediction's first line of code, in hundredths: 2 x the longest common subsequence over both
    lengths, which is what the official script gives where python-Levenshtein is installed."""
    from rapidfuzz.distance import LCSseq

    line = _code_line(prediction)
    return _hundredths(line, gold, lambda: 2.0 * LCSseq.similarity(line, gold) / (len(line) + len(gold)))


def code_sim_difflib(prediction: str, gold: str, all_classes: Sequence[str] | None = None) -> float:
    """The same with difflib's ratio, which the official script falls back to without python-Levenshtein."""
    line = _code_line(prediction)
    return _hundredths(line, gold, lambda: difflib.SequenceMatcher(None, line, gold).ratio())


def _code_line(prediction: str) -> str:
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")


def _hundredths(line: str, gold: str, ratio: Callable[[], float]) -> float:
    # Equal texts, empty ones too, are alike; the ratio of two empty texts is not asked for.
    return 1.0 if line == gold else round(100 * ratio()) / 100


METRICS: dict[str, Metric] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge": rouge,
    "rouge_zh": rouge_zh,
    "classification": classification,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "count": count,
    "code_sim": code_sim,
}
"""By name. ``code_sim`` is rapidfuzz's; :data:`CODE_SIM` has both back ends."""

CODE_SIM: dict[CodeSimBackend, Metric] = {"rapidfuzz": code_sim, "difflib": code_sim_difflib}
"""Back ends of ``code_sim``. They differ by points on the same predictions, so results name theirs."""


def rouge_overflows(name: str, prediction: str, gold: str) -> bool:
    """Whether a ROUGE score is 0 only because the official script meets Python's recursion limit there."""
    if name == "rouge_zh":
        prediction, gold = " ".join(cut_words(prediction)), " ".join(cut_words(gold))
    elif name != "rouge":
        return False
    return rouge_l(prediction, gold).overflow
