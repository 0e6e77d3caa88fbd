"""What the samples are made of: wonderwords' lists, and the user's files (essays, SQuAD, HotpotQA), each read once."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from logodata.common.errors import UserError
from logodata.common.json_files import MAX_JSON_BYTES, parse_json, too_long
from logodata.common.packed_files import open_unpacked, text_suffix
from logoeval.records import Excerpt
from logoeval.tasks.ruler.needles import Essay
from logoeval.tasks.ruler.questions import Question, QuestionSet
from logoeval.tasks.ruler.sample import put_in_fixed_order
from logoeval.tasks.texts import read_documents, text_files

_FILES = {
    "essays": "give RULER's PaulGrahamEssays.json, a .txt file, or a folder of them",
    "squad": "give SQuAD 2.0's dev-v2.0.json, as it is or as .gz",
    "hotpot": "give HotpotQA's hotpot_dev_distractor_v1.json, as it is or as .gz",
}


def wonderwords_version() -> str:
    """Return the version of wonderwords, whose lists change from one to the next.

    Raises:
        UserError: the extra is missing.
    """
    if find_spec("wonderwords") is None:
        what = "wonderwords is not installed, whose word lists RULER takes"
        raise UserError(what, mend="pip install 'logo-align[ruler]'")
    return version("wonderwords")


@cache
def _words(kind: str) -> tuple[str, ...]:
    wonderwords_version()
    text = resources.files("wonderwords").joinpath("assets", f"{kind}list.txt").read_text(encoding="utf-8")
    return tuple(word.rstrip() for word in text.splitlines())


@cache
def common_words() -> list[str]:
    """Return wonderwords' nouns, adjectives and verbs, each once, in RULER's fixed order."""
    words = sorted({*_words("noun"), *_words("adjective"), *_words("verb")})
    put_in_fixed_order(words)
    return words


@cache
def key_words() -> Pairs:
    """Return the words that keys and values of needles are drawn from."""
    return Pairs(_words("adjective"), _words("noun"))


class Pairs(Sequence[str]):
    """All ``adjective-noun`` of two lists, sorted and each once, made when they are asked for: a list of the six
    million would take half a gigabyte."""

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        self._nouns = sorted(set(nouns))
        # Pairs of one adjective stand together, but for those of "well" and "well-off", which mix.
        groups: list[list[str]] = []
        for adjective in sorted(set(adjectives), key=lambda word: f"{word}-"):
            if groups and adjective.startswith(f"{groups[-1][0]}-"):
                groups[-1].append(adjective)
            else:
                groups.append([adjective])
        self._groups = [group[0] if len(group) == 1 else self._mixed(group) for group in groups]
        sizes = (len(self._nouns) if isinstance(group, str) else len(group) for group in self._groups)
        self._starts = [0, *accumulate(sizes)]

    def _mixed(self, group: Sequence[str]) -> list[str]:
        return sorted({f"{adjective}-{noun}" for adjective in group for noun in self._nouns})

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[str]: ...
    def __getitem__(self, number: int | slice) -> str | Sequence[str]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        place = bisect_right(self._starts, number) - 1
        group, left = self._groups[place], number - self._starts[place]
        return f"{group}-{self._nouns[left]}" if isinstance(group, str) else group[left]


@cache
def read_essays(path: Path) -> Essay:
    """Read the text of the essay haystack: RULER's JSON file (``{"text": ...}``), or ``.txt`` files.

    Raises:
        UserError: there is no text.
    """
    mend = _FILES["essays"]
    if path.is_dir() or text_suffix(path) != ".json":
        return Essay("\n\n".join(text for _, text in read_documents(path)))
    essay = Essay(_Essays.from_json(_read_json(path, "essays"), where=str(path), mend=mend).text)
    if not essay.num_words:  # no number of words would fill a prompt
        raise UserError("the text is empty", where=str(path), mend=mend)
    return essay


class _Essays(Excerpt):
    text: str


class _Answer(Excerpt):
    text: str


class _SquadQuestion(Excerpt):
    question: str
    is_impossible: bool
    answers: list[_Answer]


class _Paragraph(Excerpt):
    context: str
    qas: list[_SquadQuestion]


class _Article(Excerpt):
    paragraphs: list[_Paragraph]


class _Squad(Excerpt):
    data: list[_Article]


@cache
def read_squad(path: Path) -> QuestionSet:
    """Read the questions with an answer of a file in SQuAD 2.0's format, and all its paragraphs.

    Raises:
        UserError: the file has another format, or no question with an answer.
    """
    squad = _Squad.from_json(_read_json(path, "squad"), where=str(path), mend=_FILES["squad"])
    documents = sorted({paragraph.context for article in squad.data for paragraph in article.paragraphs})
    number = {text: place for place, text in enumerate(documents)}
    questions = []
    for article in squad.data:
        article_numbers = [number[paragraph.context] for paragraph in article.paragraphs]
        for paragraph in article.paragraphs:
            own = number[paragraph.context]
            related = tuple(other for other in article_numbers if other != own)
            questions += [
                Question(asked.question, tuple(answer.text for answer in asked.answers), (own,), related)
                for asked in paragraph.qas
                if not asked.is_impossible
            ]
    return _checked(QuestionSet(questions, documents), path, "squad")


class _HotpotQuestion(Excerpt):
    question: str
    answer: str
    context: list[tuple[str, list[str]]]


@cache
def read_hotpot(path: Path) -> QuestionSet:
    """Read the questions of a file in HotpotQA's format, in the distractor setting, and all its documents.

    Raises:
        UserError: the file has another format, or no question.
    """
    found = _read_json(path, "hotpot")
    if not isinstance(found, list):
        raise UserError("not a JSON list", where=str(path), mend=_FILES["hotpot"])
    asked = [
        _HotpotQuestion.from_json(entry, where=f"{path}, question {place}", mend=_FILES["hotpot"])
        for place, entry in enumerate(found)
    ]
    texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in entry.context] for entry in asked]
    documents = sorted({text for own in texts for text in own})
    number = {text: place for place, text in enumerate(documents)}
    questions = [
        Question(entry.question, (entry.answer,), tuple(number[text] for text in own))
        for entry, own in zip(asked, texts, strict=True)
    ]
    return _checked(QuestionSet(questions, documents), path, "hotpot")


def check_file(kind: str, path: Path) -> None:
    """Raise a ``UserError`` if there is no file, or no folder of texts, of this kind at ``path``."""
    if kind == "essays" and (path.is_dir() or text_suffix(path) != ".json"):
        text_files(path)
    elif not path.is_file():
        raise UserError("no such file", where=str(path), mend=_FILES[kind])


def _checked(data: QuestionSet, path: Path, kind: str) -> QuestionSet:
    if not data.questions:
        raise UserError("holds no question with an answer", where=str(path), mend=_FILES[kind])
    for question in data.questions:
        if not question.answers or not question.own:
            what = f"no answer or no document to the question {question.text!r}"
            raise UserError(what, where=str(path), mend=_FILES[kind])
    return data


def _read_json(path: Path, kind: str) -> Any:
    check_file(kind, path)
    with open_unpacked(path, str(path)) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise too_long(str(path), "a JSON file")
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), mend=_FILES[kind]) from error


def fingerprint(source: Essay | QuestionSet) -> str:
    """Return a hash, 16 hexadecimal digits, of all that prompts and scores depend on."""
    digest = hashlib.sha256()
    parts = source.words if isinstance(source, Essay) else [*source.documents, *map(repr, source.questions)]
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]
