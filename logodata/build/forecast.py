"""What a build will make of its questions, said before anything is generated.

Whether a question has the chunks for a sample follows from scores alone, which are cheap. Where most of the first
questions have not, the settings that stand in their way are changed one after the other, and the same questions are
prepared again each time: what is advised has been tried on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from logodata.build.preparing import QuestionPreparer, UnusableQuestion
from logodata.common.console import note
from logodata.contexts.scores import Evaluator
from logodata.contexts.settings import ContextSettings
from logodata.contract import Document
from logodata.recipe.settings import BuildRecipe

_QUESTIONS, _CHUNKS, _MOST_CHUNKS = 64, 128, 2048
"""Whole contexts are looked at until they hold so many questions and so many chunks, or the most chunks."""

_LESS = 4
"""By what all of these are divided where a model scores the chunks: it takes a second for a few."""

_FEW, _MOST, _STEPS = 0.5, 0.9, 5
"""Below this share of usable questions a warning is given; from this share on, or after so many changes, no further
setting is changed."""

_TOP = 4
_LEAST_CHUNK_TOKENS = 32
_SPARE = 1.5
"""Chunks that a context's document should have, over those it needs: some tie with critical ones and are neither."""

Changes = dict[str, Any]
"""Settings by dotted key."""


def warn_of_losses(
    recipe: BuildRecipe, preparer: QuestionPreparer, documents: Sequence[Document], evaluator: Evaluator
) -> None:
    """Prepare the first questions. If few of them can become samples, say so, with the settings under which most can.

    Args:
        recipe: the build recipe.
        preparer: for it.
        documents: of the source; only the first ones are read.
        evaluator: the recipe's.
    """
    sample = list(_first(recipe, preparer, documents))
    if not sample:
        return
    usable, lost = _prepare(preparer, sample, evaluator)
    total, unusable = usable + len(lost), lost
    if usable >= _FEW * total:
        return
    changes: Changes = {}
    best, advised = usable, changes
    for _ in range(_STEPS):
        step = _cure(_changed(recipe, changes), unusable)
        if not step:
            break
        changes = {**changes, **step}
        trial = preparer.under(_changed(recipe, changes))
        count, unusable = _prepare(trial, sample, evaluator)
        if count > best:
            best, advised = count, changes
        if best >= _MOST * total:
            break
    counts = Counter(question.reason for question in lost).most_common()
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts)
    cure = "the settings tried change little: see 'No pair was kept' in docs/build.md"
    if advised:
        cure = f"{best} would with {_as_overrides(advised)}"
    note(
        f"warning: {usable} of the first {total} questions ({usable / total:.0%}) have the chunks for a sample "
        f"({reasons}); {cure}"
    )


def _first(recipe: BuildRecipe, preparer: QuestionPreparer, documents: Sequence[Document]) -> Iterator[Document]:
    """Documents of the first contexts, enough to ask many questions and to join some documents."""
    share = 1 if recipe.evaluator.name in ("entity", "lexical") else _LESS
    num_questions = num_chunks = 0
    for pool in preparer.pools(documents):
        yield from pool.documents
        num_questions += sum(len(document.questions) for document in pool.documents)
        num_chunks += len(pool.chunks)
        if num_chunks * share >= (_CHUNKS if num_questions * share >= _QUESTIONS else _MOST_CHUNKS):
            return


def _prepare(
    preparer: QuestionPreparer, documents: Sequence[Document], evaluator: Evaluator
) -> tuple[int, list[UnusableQuestion]]:
    """How many questions have contexts, and the others."""
    num_usable, unusable = 0, []
    for pool in preparer.pools(documents):
        for document, question, scores in preparer.scored(pool, evaluator):
            prepared = preparer.prepare(pool, document, question, scores)
            if isinstance(prepared, UnusableQuestion):
                unusable.append(prepared)
            else:
                num_usable += 1
    return num_usable, unusable


def _cure(recipe: BuildRecipe, unusable: Sequence[UnusableQuestion]) -> Changes:
    """What to change against the commonest of the reasons; nothing where it is changed already, or cannot be."""
    reason = Counter(question.reason for question in unusable).most_common(1)[0][0]
    found = [question for question in unusable if question.reason == reason]
    contexts, size = recipe.contexts, recipe.chunking.chunk_tokens
    if contexts.critical_top is None and reason != "prompt_exceeds_window":
        return {"contexts.critical_threshold": None, "contexts.critical_top": min(_TOP, contexts.num_chunks)}
    if reason == "no_critical_chunk" and recipe.evaluator.query == "question":
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


def _fewer_chunks(contexts: ContextSettings, num_chunks: int) -> Changes:
    top = contexts.critical_top
    fewer = {"contexts.critical_top": num_chunks} if top is not None and top > num_chunks else {}
    return {"contexts.num_chunks": num_chunks, **fewer}


def _changed(recipe: BuildRecipe, changes: Changes) -> BuildRecipe:
    values = recipe.model_dump()
    for key, value in changes.items():
        section, name = key.split(".")
        values[section][name] = value
    return BuildRecipe.model_validate(values)


def _as_overrides(changes: Changes) -> str:
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in changes.items())
