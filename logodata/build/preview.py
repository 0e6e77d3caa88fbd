"""Look at a build before anything is generated: its documents, chunks, questions and contexts, and the work they make.

Everything up to the prompts is prepared as in a build, so their numbers and tokens are those of the build. How many
responses are preferred, and how long they are, is not known before: these numbers have bounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median_low

from logodata.build.forecast import warn_of_losses
from logodata.build.inputs import check_inputs
from logodata.build.pipeline import build_window
from logodata.build.preparing import PreparedQuestion, QuestionPreparer, UnusableQuestion
from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.common.records import ABSENT, Record
from logodata.contexts.scores import open_evaluator
from logodata.contract import ContextChunk, Spread
from logodata.engines.prices import find_prices
from logodata.engines.response_log import ResponseLog
from logodata.engines.settings import asked_fingerprint
from logodata.recipe.settings import BuildRecipe
from logodata.sources import Source, read_source

SHOWN = 5
"""The number of questions whose contexts are shown."""


class PreviewedQuestion(Record):
    """A question with its training context."""

    id: str
    doc_id: str
    question: str
    answers: list[str]
    prompt_tokens: int
    context: list[ContextChunk]


class Work(Record):
    """What the engine of a build is asked.

    Preferred responses are all generated, those of ``cached`` prompts excepted. Dis-preferred ones are generated where
    a preferred one is right, so their prompts are at most so many. Where ``try_prompts`` decide whether a question is
    asked, preferred responses are at most so many, too. Every response has at most ``max_new_tokens``.
    ``judge_prompts`` is the most that a model judge is asked; their tokens depend on the responses.
    """

    try_prompts: int | None = ABSENT
    try_prompt_tokens: int | None = ABSENT
    preferred_prompts: int
    preferred_prompt_tokens: int
    dispreferred_prompts_at_most: int
    dispreferred_prompt_tokens_at_most: int
    cached: int
    max_new_tokens: int
    response_tokens_at_most: int
    judge_prompts_at_most: int | None = ABSENT
    cost_at_least: float | None = ABSENT
    cost_at_most: float | None = ABSENT
    seconds_at_least: float | None = ABSENT
    seconds_at_most: float | None = ABSENT

    @property
    def prompt_tokens_at_most(self) -> int:
        """The tokens of all prompts."""
        at_most = self.preferred_prompt_tokens + self.dispreferred_prompt_tokens_at_most
        return (self.try_prompt_tokens or 0) + at_most

    @property
    def asks(self) -> bool:
        """Whether anything is asked, or taken from the cache."""
        return bool(self.prompt_tokens_at_most or self.cached)

    @property
    def first(self) -> tuple[int, int]:
        """The number of prompts that are asked in any case, and of their tokens."""
        if self.try_prompts is not None and self.try_prompt_tokens is not None:
            return self.try_prompts, self.try_prompt_tokens
        return self.preferred_prompts, self.preferred_prompt_tokens


class Preview(Record):
    """A build before it generates. Token counts are under the tokenizer of the model. Documents are ``left_out``, and
    questions ``unusable``, by reason; ``lost`` is what converted documents have and their texts lack."""

    source: str
    documents: int
    document_tokens: Spread | None
    total_tokens: int
    left_out: dict[str, int]
    lost: dict[str, int]
    chunks: int
    chunk_tokens: int
    pools: int
    questions: int
    usable: int
    unusable: dict[str, int]
    shown: list[PreviewedQuestion]
    work: Work


def preview(recipe: BuildRecipe, *, prices: tuple[float, float] | None, tokens_per_s: float | None) -> Preview:
    """Prepare all questions of a build, and ask nothing.

    The tokenizer of the model is loaded, and no weights of it. An evaluator that embeds loads its own model.

    Args:
        prices: The price of a million prompt tokens, and of a million response tokens; by default those of the table
            ``engine.prices``.
        tokens_per_s: How many tokens the engine reads and writes in a second, as the progress of a build shows it.

    Raises:
        UserError: The source or the recipe has a fault, or there are prices and the engine is no server.
    """
    if prices is not None and not recipe.engine.asks_servers:
        mend = "set engine.kind to openai or chat, and engine.base_urls, or leave the prices out"
        raise UserError(f"the engine {recipe.engine.kind} has no price", mend=mend)
    check_inputs(recipe, recipe.source, None)
    if prices is None and (listed := find_prices(recipe.engine, recipe.model)) is not None:
        prices = (listed.prompt, listed.response)
    source = read_source(recipe.source, needs_questions=False, needs_references=recipe.needs_references)
    tokenizer = recipe.load_tokenizer()
    preparer = QuestionPreparer(recipe, tokenizer, build_window(recipe))
    evaluator = open_evaluator(recipe.evaluator)
    if source.documents.num_questions:
        warn_of_losses(recipe, preparer, source.documents, evaluator)
    lengths: list[int] = []
    num_chunks = num_pools = 0
    # Rows of documents without a question count as documents.
    reasons = Counter(row.reason for row in source.rejected if row.question or row.reason == "empty_question")
    counts = _Counts(recipe, preparer.reasoning.budget)
    with progress("preview", len(source.documents)) as tracker:
        for pool in preparer.pools(source.documents):
            tokens = Counter[str]({document.doc_id: 0 for document in pool.documents})
            for document, chunk in pool.chunks:
                tokens[document.doc_id] += len(chunk.token_ids)
            lengths += tokens.values()
            num_chunks, num_pools = num_chunks + len(pool.chunks), num_pools + 1
            for one in preparer.prepare_pool(pool, evaluator):
                if isinstance(one, UnusableQuestion):
                    reasons[one.reason] += 1
                else:
                    counts.add(one)
            tracker.advance(len(pool.documents))
    spread = Spread(min=min(lengths), median=median_low(lengths), max=max(lengths)) if lengths else None
    return Preview(
        source=recipe.source.path,
        documents=len(source.documents),
        document_tokens=spread,
        total_tokens=sum(lengths),
        left_out=_left_out(source),
        lost=dict(source.lost),
        chunks=num_chunks,
        chunk_tokens=recipe.chunking.chunk_tokens,
        pools=num_pools,
        questions=counts.usable + reasons.total(),
        usable=counts.usable,
        unusable=dict(reasons.most_common()),
        shown=[_shown(question) for question in counts.shown()],
        work=_priced(counts.work(), recipe, prices, tokens_per_s),
    )


def _left_out(source: Source) -> dict[str, int]:
    """Return the counts of documents without text, by reason. A document without a question has a row of its own."""
    found = {
        row.doc_id: row.reason for row in source.rejected if row.reason in ("empty_document", "unreadable_document")
    }
    return dict(Counter(found.values()).most_common())


class _Counts:
    """Counts prompts and tokens of usable questions, and keeps a few to show, of different documents if there are."""

    def __init__(self, recipe: BuildRecipe, thinking_tokens: int) -> None:
        self._recipe, self._thinking_tokens = recipe, thinking_tokens
        self._numbers = Counter[str]()
        self._first: dict[str, PreparedQuestion] = {}
        self._others: list[PreparedQuestion] = []
        self.usable = 0
        cache = recipe.generation.cache
        self._log = self._base_log = None
        if cache is not None:
            of_model = asked_fingerprint(recipe.engine, recipe.model, recipe.adapter)
            self._log = self._base_log = ResponseLog(None, of_model, cache)
            if recipe.uses_base:
                self._base_log = ResponseLog(None, asked_fingerprint(recipe.engine, recipe.model), cache)

    def add(self, question: PreparedQuestion) -> None:
        """Count a question."""
        self.usable += 1
        self._numbers["context tokens"] += len(question.prompt.ids)
        # Answers that are both counted and graded are generated once.
        preferred = [it for it in question.preferred if it not in question.tries]
        asked = {"try": question.tries, "preferred": preferred, "dispreferred": question.rejected.values()}
        for role, requests in asked.items():
            log = self._base_log if role == "dispreferred" else self._log
            missing = [it for it in requests if log is None or log.get(it) is None]
            self._numbers["cached"] += len(requests) - len(missing)
            self._numbers[role] += len(missing)
            self._numbers[f"{role} tokens"] += sum(len(it.prompt_ids) for it in missing)
        if len(self._first) < SHOWN and question.document.doc_id not in self._first:
            self._first[question.document.doc_id] = question
        elif len(self._others) < SHOWN:
            self._others.append(question)

    def shown(self) -> Sequence[PreparedQuestion]:
        """Return the questions to show."""
        return [*self._first.values(), *self._others][:SHOWN]

    def work(self) -> Work:
        """Return the work, without costs."""
        numbers, solves = self._numbers, self._recipe.solve is not None
        prompts = numbers["try"] + numbers["preferred"] + numbers["dispreferred"]
        new = self._recipe.generation.max_new_tokens + self._thinking_tokens
        return Work(
            try_prompts=numbers["try"] if solves else None,
            try_prompt_tokens=numbers["try tokens"] if solves else None,
            preferred_prompts=numbers["preferred"],
            preferred_prompt_tokens=numbers["preferred tokens"],
            dispreferred_prompts_at_most=numbers["dispreferred"],
            dispreferred_prompt_tokens_at_most=numbers["dispreferred tokens"],
            cached=numbers["cached"],
            max_new_tokens=new,
            response_tokens_at_most=prompts * new,
            judge_prompts_at_most=self._judge_prompts(prompts + numbers["cached"]),
        )

    def _judge_prompts(self, responses: int) -> int | None:
        """Return the most prompts of a model judge."""
        judge = self._recipe.judge
        if judge.asked is None:
            return None
        again = 2 if judge.asked.rejudge_share else 1
        if judge.grades is None:
            return again * responses
        graded = self.usable * self._recipe.generation.num_candidates
        scores = 3 + judge.grades.max_facts  # and a list of facts, which is the same in both wordings
        extracts = self._numbers["context tokens"] // judge.grades.extract_tokens + self.usable
        return extracts + graded * (1 + again * scores)


def _priced(work: Work, recipe: BuildRecipe, prices: tuple[float, float] | None, tokens_per_s: float | None) -> Work:
    """Return the work with its costs and its time, as far as they are known. A rate limit bounds the time from below,
    and a measured rate from above."""
    update: dict[str, float] = {}
    if prices is not None:
        update["cost_at_least"] = work.first[1] * prices[0] / 1e6
        most = work.prompt_tokens_at_most * prices[0] + work.response_tokens_at_most * prices[1]
        update["cost_at_most"] = most / 1e6
    engine = recipe.engine
    waits = [
        number / limit / max(len(engine.base_urls), 1) * 60
        for number, limit in (
            (work.first[0], engine.requests_per_minute),
            (work.first[1] + work.first[0] * work.max_new_tokens, engine.tokens_per_minute),
        )
        if limit is not None and engine.asks_servers
    ]
    if waits:
        update["seconds_at_least"] = max(waits)
    if tokens_per_s is not None:
        most = (work.prompt_tokens_at_most + work.response_tokens_at_most) / tokens_per_s
        update["seconds_at_most"] = max(most, *waits)
    return work.model_copy(update=update)


def _shown(prepared: PreparedQuestion) -> PreviewedQuestion:
    question = prepared.question
    return PreviewedQuestion(
        id=question.id,
        doc_id=prepared.document.doc_id,
        question=question.question,
        answers=question.answers,
        prompt_tokens=len(prepared.prompt.ids),
        context=prepared.training_chunks(),
    )
