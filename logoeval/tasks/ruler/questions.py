"""Questions among documents of their data set (``qa.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from logoeval.tasks.ruler.sample import Generator, Sample, put_in_fixed_order


@dataclass(frozen=True, slots=True)
class Question:
    """A question with all its answers. ``own`` are the numbers of the documents that it is asked of, ``related`` those
    of others that come before random ones (SQuAD: the rest of the article)."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of a file, in its order, and all its documents, sorted."""

    questions: Sequence[Question]
    documents: Sequence[str]


class QuestionGenerator(Generator):
    """Makes samples of questions; units are documents."""

    first = 10

    def __init__(self, name: str, prompt: tuple[str, str], data: QuestionSet) -> None:
        self._name = name
        self._template, self._prefix = prompt
        self._data = data

    def fewest(self, index: int) -> int:
        """Return the number of the question's own documents."""
        return len(self._data.questions[index].own)

    def goes_round(self, num_units: int) -> bool:
        """Whether the data set has fewer documents."""
        return num_units > len(self._data.documents)

    def cluster(self, index: int) -> str:
        """Return the numbers of the documents that question ``index`` is asked of."""
        return f"{self._name}/{','.join(map(str, self._data.questions[index].own))}"

    def draw(self, rng: Random, num_units: int, index: int) -> Sample:
        """Draw the documents around question ``index``."""
        question, documents = self._data.questions[index], self._data.documents
        if num_units < len(documents):
            chosen = [documents[number] for number in self._choose(rng, num_units, question)]
        else:
            rounds = -(-num_units // len(documents))
            chosen = (list(documents) * rounds)[:num_units]
        put_in_fixed_order(chosen)
        context = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(chosen, 1))
        text = self._template.format(context=context, query=question.text)
        return Sample(((text, self._prefix),), question.answers)

    def _choose(self, rng: Random, count: int, question: Question) -> list[int]:
        added = count - len(question.own)
        if added <= len(question.related):
            return [*question.own, *rng.sample(question.related, added)]
        near = [*question.own, *question.related]
        taken = set(near)
        others = [number for number in range(len(self._data.documents)) if number not in taken]
        return near + rng.sample(others, count - len(near))
