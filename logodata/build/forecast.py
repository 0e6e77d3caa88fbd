"""Warn of questions that cannot become samples, before anything is generated.

Scores alone decide whether a question has the chunks for a sample, and scores are cheap. If most of the first questions
do not have them, the settings in their way are changed one after the other, and the same questions are prepared again.
So the advice has been tried on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

from logodata.build.preparing import QuestionPreparer, UnusableQuestion
from logodata.common.console import note
from logodata.contexts.scores import Evaluator
from logodata.contexts.settings import ContextSettings
from logodata.contract import Document
from logodata.recipe.settings import BuildRecipe

_QUESTIONS, _CHUNKS, _MOST_CHUNKS = 64, 128, 2048
"""Whole contexts are read until they hold so many questions and so many chunks, or the most chunks."""

_LESS = 4
"""The divisor of these numbers if a model scores the chunks, because it takes a second for a few of them."""

_FEW, _MOST, _STEPS = 0.5, 0.9, 5
"""The share of usable questions below which the user is warned, the share that is good enough, and the most changes."""

_TOP = 4
_LEAST_CHUNK_TOKENS = 32
_SPARE = 1.5
"""How many times the chunks that a context needs its document should have. Some chunks score as critical ones do, and
are neither critical nor irrelevant."""

_Changes = dict[str, Any]


def warn_of_losses(
    recipe: BuildRecipe, preparer: QuestionPreparer, documents: Iterable[Document], evaluator: Evaluator
) -> None:
    """Prepare the first questions. If few can become samples, say so, with the settings under which most can."""
    sample = list(_first(recipe, preparer, documents))
    total = sum(len(document.questions) for document in sample)
    lost = unusable = _unusable(preparer, sample, evaluator)
    usable = best = total - len(lost)
    if usable >= _FEW * total:
        return
    changes: _Changes = {}
    advised = changes
    for _ in range(_STEPS):
        step = _cure(_changed(recipe, changes), unusable)
        if not step:
            break
        changes = {**changes, **step}
        trial = QuestionPreparer(_changed(recipe, changes), preparer.tokenizer, preparer.window)
        unusable = _unusable(trial, sample, evaluator)
        if total - len(unusable) > best:
            best, advised = total - len(unusable), changes
        if best >= _MOST * total:
            break
    counts = Counter(question.reason for question in lost).most_common()
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts)
    cure = "the settings tried change little: see 'No pair was kept' in docs/build.md"
    if advised:
        settings = " ".join(f"{key}={'null' if value is None else value}" for key, value in advised.items())
        cure = f"{best} would with {settings}"
    note(
        f"warning: {usable} of the first {total} questions ({usable / total:.0%}) have the chunks for a sample "
        f"({reasons}); {cure}"
    )


def _first(recipe: BuildRecipe, preparer: QuestionPreparer, documents: Iterable[Document]) -> Iterator[Document]:
    """Yield documents of the first contexts, enough to ask many questions and to join some documents."""
    share = 1 if recipe.evaluator.name in ("entity", "lexical") else _LESS
    num_questions = num_chunks = 0
    for pool in preparer.pools(documents):
        yield from pool.documents
        num_questions += sum(len(document.questions) for document in pool.documents)
        num_chunks += len(pool.chunks)
        if num_chunks * share >= (_CHUNKS if num_questions * share >= _QUESTIONS else _MOST_CHUNKS):
            return


def _unusable(
    preparer: QuestionPreparer, documents: Iterable[Document], evaluator: Evaluator
) -> list[UnusableQuestion]:
    prepared = (one for pool in preparer.pools(documents) for one in preparer.prepare_pool(pool, evaluator))
    return [one for one in prepared if isinstance(one, UnusableQuestion)]


def _cure(recipe: BuildRecipe, unusable: Sequence[UnusableQuestion]) -> _Changes:
    """Return changes against the commonest reason; none if nothing can be changed, or it is changed already."""
    reason = Counter(question.reason for question in unusable).most_common(1)[0][0]
    found = [question for question in unusable if question.reason == reason]
    contexts, size = recipe.contexts, recipe.chunking.chunk_tokens
    if contexts.critical_top is None and reason != "prompt_exceeds_window":
        return {"contexts.critical_threshold": None, "contexts.critical_top": min(_TOP, contexts.num_chunks)}
    if reason == "no_critical_chunk" and recipe.evaluator.query == "question" and recipe.needs_references:
        return {"evaluator.query": "question_and_answer"}
    if reason == "prompt_exceeds_window":
        num_chunks = contexts.num_chunks - -(-max(question.excess_tokens for question in found) // size)
        if num_chunks >= 2:
            return _fewer_chunks(contexts, num_chunks)
        return {"chunking.chunk_tokens": size // 2} if size >= 2 * _LEAST_CHUNK_TOKENS else {}
    if reason == "too_few_irrelevant_chunks":
        needed = round(_SPARE * (contexts.num_chunks + (contexts.critical_top or 0)))
        pools = {id(question.pool): question.pool for question in found}.values()
        tokens = [sum(len(chunk.token_ids) for _, chunk in pool.chunks) for pool in pools]
        joined = -(-needed * size // 1024) * 1024
        if (recipe.source.join_tokens or 0) < joined <= sum(tokens):
            return {"source.join_tokens": joined}
        smaller = int(median(tokens)) // needed // 16 * 16
        if _LEAST_CHUNK_TOKENS <= smaller < size:
            return {"chunking.chunk_tokens": smaller}
        num_chunks = int(median(len(pool.chunks) for pool in pools)) // 3
        return _fewer_chunks(contexts, num_chunks) if 2 <= num_chunks < contexts.num_chunks else {}
    return {}


def _fewer_chunks(contexts: ContextSettings, num_chunks: int) -> _Changes:
    top = contexts.critical_top
    fewer = {"contexts.critical_top": num_chunks} if top is not None and top > num_chunks else {}
    return {"contexts.num_chunks": num_chunks, **fewer}


def _changed(recipe: BuildRecipe, changes: _Changes) -> BuildRecipe:
    values = recipe.model_dump()
    for key, value in changes.items():
        section, name = key.split(".")
        values[section][name] = value
    return BuildRecipe.model_validate(values)
