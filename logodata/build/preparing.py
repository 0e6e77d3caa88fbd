"""Turn documents into requests: score pools of chunks, and make contexts and prompts for every question.

Everything here is a pure function of the recipe and the documents, so an interrupted build prepares the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from logodata.common.errors import SettingError
from logodata.common.turn_end import turn_end_ids
from logodata.contexts.chunking import chunk_text
from logodata.contexts.draw import Contexts, draw_contexts
from logodata.contexts.scores import Evaluator
from logodata.contract import Chunk, ContextChunk, Document, Question
from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.reasoning import Reply
from logodata.models.facts import model_eos_ids
from logodata.prompts import (
    ANSWER_TEMPLATE,
    CHUNK_SEPARATOR,
    GUIDED_TEMPLATES,
    OPEN_ANSWER_TEMPLATE,
    Prompt,
    PromptFormat,
)
from logodata.recipe.settings import BuildRecipe
from logodata.sources.fields import text_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TRAINING: Literal["training"] = "training"
"""The strategy of answers from the training context."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Documents that make one long context, and their chunks in order, each with its document."""

    documents: tuple[Document, ...] = ()
    chunks: tuple[tuple[Document, Chunk], ...] = ()

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all chunks."""
        return sum(len(chunk.token_ids) for _, chunk in self.chunks)

    def text(self, index: int) -> str:
        """Return the text of a chunk."""
        document, chunk = self.chunks[index]
        return document.text[chunk.start : chunk.end]


@dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A question with its contexts and its training prompt. ``preferred`` holds the requests for the preferred
    response, which are tried in order. ``rejected`` holds a request for each strategy. ``tries`` hold those that show
    how often the model answers the question right."""

    pool: Pool
    document: Document
    question: Question
    scores: NDArray[np.float64]
    contexts: Contexts
    prompt: Prompt
    preferred: tuple[GenerationRequest, ...]
    rejected: dict[str, GenerationRequest]
    tries: tuple[GenerationRequest, ...] = ()

    @property
    def context(self) -> str:
        """The text of the training context."""
        return CHUNK_SEPARATOR.join(map(self.pool.text, self.contexts.training))

    def training_chunks(self) -> list[ContextChunk]:
        """Return the chunks of the training context, with their places in the training prompt."""
        found = []
        critical = frozenset(self.contexts.critical)
        for index, (start, end) in zip(self.contexts.training, self.prompt.chunk_spans, strict=True):
            document, chunk = self.pool.chunks[index]
            found.append(
                ContextChunk(
                    doc_id=document.doc_id,
                    index=chunk.index,
                    start=chunk.start,
                    end=chunk.end,
                    token_start=start,
                    token_end=end,
                    score=float(self.scores[index]),
                    critical=index in critical,
                    text=self.pool.text(index),
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class UnusableQuestion:
    """A question that cannot become a sample. ``excess_tokens`` is how far its longest prompt exceeds the window."""

    pool: Pool
    document: Document
    question: Question
    reason: str
    detail: str = ""
    excess_tokens: int = 0


Prepared = PreparedQuestion | UnusableQuestion


def tokens_held(prepared: Prepared) -> int:
    """Return how many tokens a question keeps in memory: its pool, though others may share it, and its prompts."""
    tokens = prepared.pool.num_tokens
    if isinstance(prepared, PreparedQuestion):
        requests = (*prepared.preferred, *prepared.rejected.values(), *prepared.tries)
        prompts = [prepared.prompt.ids, *(request.prompt_ids for request in requests)]
        tokens += sum(map(len, prompts))
    return tokens


class QuestionPreparer:
    """Draws contexts and makes prompts for questions, under one recipe and tokenizer. ``window`` is the most tokens of
    a prompt with its response."""

    def __init__(self, recipe: BuildRecipe, tokenizer: PreTrainedTokenizerBase, window: int) -> None:
        self._recipe, self.tokenizer, self.window = recipe, tokenizer, window
        graded = recipe.generation.grades_answers
        self.answer_format = PromptFormat(tokenizer, OPEN_ANSWER_TEMPLATE if graded else ANSWER_TEMPLATE)
        self.guided_formats = tuple(PromptFormat(tokenizer, template) for template in GUIDED_TEMPLATES)
        self.stop_ids = turn_end_ids(tokenizer, model_eos_ids(recipe.model))
        self.reasoning = recipe.reasoning(tokenizer, window)
        generation = recipe.generation
        bare = not generation.keep_reasoning or generation.preferred == "reference"
        if bare and not generation.asks_only and self.reasoning.opens(self.answer_format.encode([], question="?").ids):
            raise SettingError(
                "the chat template opens the reasoning, and pairs of bare answers would be trained inside of it",
                where=recipe.model,
                setting="chat_template_args.enable_thinking=false, or generation.keep_reasoning=true",
            )

    def pools(self, documents: Iterable[Document]) -> Iterator[Pool]:
        """Chunk the documents and join them, in order, until a pool holds ``source.join_tokens`` tokens. Documents that
        are left at the end join the last pool."""
        least = self._recipe.source.join_tokens or 1
        complete = Pool()
        joined: list[Document] = []
        chunks: list[tuple[Document, Chunk]] = []
        num_tokens = 0
        for document in documents:
            cut = chunk_text(self.tokenizer, document.text, self._recipe.chunking.chunk_tokens)
            joined.append(document)
            chunks += ((document, chunk) for chunk in cut)
            num_tokens += sum(len(chunk.token_ids) for chunk in cut)
            if num_tokens >= least:
                if complete.documents:
                    yield complete
                complete = Pool(tuple(joined), tuple(chunks))
                joined, chunks, num_tokens = [], [], 0
        if complete.documents or joined:
            yield Pool((*complete.documents, *joined), (*complete.chunks, *chunks))

    def prepare_pool(self, pool: Pool, evaluator: Evaluator) -> Iterator[Prepared]:
        """Score a pool once for all its questions, then prepare each question."""
        asked = [(document, question) for document in pool.documents for question in document.questions]
        if not asked:
            return
        with_answer = self._recipe.evaluator.query == "question_and_answer"
        queries = [f"{q.question} {q.answers[0]}" if with_answer else q.question for _, q in asked]
        scores = evaluator.score([pool.text(i) for i in range(len(pool.chunks))], queries)
        for (document, question), row in zip(asked, scores, strict=True):
            yield self._prepare(pool, document, question, row)

    def _prepare(self, pool: Pool, document: Document, question: Question, scores: NDArray[np.float64]) -> Prepared:
        recipe = self._recipe
        contexts = draw_contexts(
            scores,
            recipe.contexts,
            np.random.default_rng([recipe.seed, int(text_digest(question.id)[:16], 16)]),
            compared=recipe.generation.compares_contexts,
        )
        if isinstance(contexts, str):
            return UnusableQuestion(pool, document, question, contexts)

        def prompt(indices: Sequence[int], form: PromptFormat) -> Prompt:
            chunks = [pool.chunks[i][1].token_ids for i in indices]
            return form.encode(chunks, question=question.question, reference=next(iter(question.answers), ""))

        generation = recipe.generation
        guided = generation.preferred == "guided"
        wordings = self.guided_formats[: generation.num_candidates] if guided else (self.answer_format,)
        preferred = [prompt(contexts.critical, form) for form in wordings]
        training = prompt(contexts.training, self.answer_format)
        strategies: dict[str, tuple[int, ...]] = {}
        if generation.compares_contexts:
            mixed = zip(recipe.contexts.mixed_ratios, contexts.mixed, strict=True)
            strategies = {"irrelevant": contexts.irrelevant}
            strategies |= {f"mixed-{ratio:g}": indices for ratio, indices in mixed}
        prompts = {name: prompt(indices, self.answer_format) for name, indices in strategies.items()}
        if generation.rejected == TRAINING:
            prompts[TRAINING] = training
        longest = max(len(p.ids) for p in (*preferred, training, *prompts.values()))
        new = generation.max_new_tokens + self.reasoning.budget
        if (excess := longest + new - self.window) > 0:
            detail = f"{longest} prompt tokens and {new} new ones exceed the window of {self.window}"
            return UnusableQuestion(pool, document, question, "prompt_exceeds_window", detail, excess)
        graded = generation.num_candidates if generation.grades_answers else 0
        tries = recipe.solve.tries if recipe.solve else 0
        # Sampled answers have numbers, and a greedy one has none. Those that are graded, and those that are counted,
        # are the same as far as both go.
        sampled = tuple(
            self._request(f"{question.id}/{TRAINING}-{n}", training, greedy=False) for n in range(max(graded, tries))
        )
        asked = {name: self._request(f"{question.id}/{name}", p, greedy=True) for name, p in prompts.items()}
        return PreparedQuestion(
            pool=pool,
            document=document,
            question=question,
            scores=scores,
            contexts=contexts,
            prompt=training,
            preferred=sampled[:graded] or self._preferred_requests(question.id, preferred),
            rejected=asked,
            tries=sampled[:tries],
        )

    def _preferred_requests(self, question_id: str, prompts: Sequence[Prompt]) -> tuple[GenerationRequest, ...]:
        """Return a greedy request for each wording, then sampled ones in turn."""
        settings = self._recipe.generation
        if settings.preferred == "reference":
            return ()
        return tuple(
            self._request(f"{question_id}/{settings.preferred}-{n}", prompts[n % len(prompts)], greedy=n < len(prompts))
            for n in range(settings.num_candidates)
        )

    def _request(self, request_id: str, prompt: Prompt, *, greedy: bool) -> GenerationRequest:
        settings = self._recipe.generation
        answer = replace(
            self._answer_sampling,
            temperature=0.0 if greedy else settings.temperature,
            top_p=1.0 if greedy else settings.top_p,
            seed=self._recipe.seed,
        )
        return GenerationRequest(request_id, prompt.ids, self.reasoning.sampling(answer, self.stop_ids))

    @property
    def _answer_sampling(self) -> Sampling:
        return Sampling(self._recipe.generation.max_new_tokens, self.stop_ids)

    def reply(self, request: GenerationRequest, result: GenerationResult) -> Reply:
        """Return the answer of a response, apart from the reasoning before it."""
        opened = self.reasoning.opens(request.prompt_ids)
        return self.reasoning.split(result, self._answer_sampling, opened=opened)
