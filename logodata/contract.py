"""The data contract: what a source yields, what a build writes, what the trainer and the evaluator read.

A data set is a folder with these files:

| file | a row, or the whole file |
| --- | --- |
| ``data/*.parquet`` | :class:`PreferenceSample` |
| ``rejected.jsonl`` | :class:`RejectedQuestion` |
| ``decisions.jsonl`` | :class:`DecisionRow`; an import has none |
| ``stats.json`` | :class:`Stats` |
| ``manifest.json`` | :class:`Manifest`; of an import :class:`ImportManifest` |
| ``shard.json``, in a shard of a build | :class:`ShardRecord` |
| ``work/outcomes.jsonl`` | :class:`QuestionOutcome` |

Prompts are stored as token ids, chunk by chunk, so that the trainer sees exactly what the model saw and knows where
each chunk begins (position synthesis needs it).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from logodata.common.records import ABSENT, Int32, Record

SCHEMA_VERSION = 2
"""The version of what a build writes."""

IMPORT_SCHEMA_VERSION = 3
"""The version of what ``logodata import`` writes: what only a build can know is None. Every other row is as in version
2, which an earlier program can read."""

READABLE_VERSIONS = (SCHEMA_VERSION, IMPORT_SCHEMA_VERSION)

QuestionKind = Literal["single_detail", "multi_detail", "summary", "biography", "other"]
ResponseOrigin = Literal["live", "cache", "import"]
"""Generated in this build, taken from a cache of responses, or read with a pair that was made elsewhere."""

Role = Literal["preferred", "rejected", "try"]
"""What a response is generated for. A ``try`` shows how often the model answers a question right."""

RuleVerdict = Literal["right", "half_right", "wrong"]
"""What the judge's rules say of a response beside the references."""

ModelVerdict = Literal["correct", "wrong", "malformed", "exceeds_window"]
"""What a model judge says of a response. ``malformed``: the reply does not have the form that was asked for, and
nothing is guessed from it. ``exceeds_window``: question, reference and response did not fit the judge's window, so the
judge was not asked."""

Reason = Literal[
    "preferred_empty",
    "preferred_not_ended",
    "preferred_wrong",
    "preferred_leaks_hint",
    "preferred_is_bare_reference",
    "preferred_repeats_itself",
    "preferred_adds_words",
    "rejected_empty",
    "rejected_right",
    "rejected_half_right",
    "identical_responses",
    "judge_says_preferred_wrong",
    "judge_says_rejected_right",
    "judge_reply_malformed",
    "judge_prompt_exceeds_window",
    "too_few_grades",
    "grades_too_close",
    "solved_too_rarely",
    "solved_too_often",
    "tokens_lose_text",
    "holds_reasoning",
]
"""Why the judge does not keep a pair."""

Ungraded = Literal["malformed", "exceeds_window"]
"""Why a response has no grade: a reply of the judge does not have the form that was asked for, or a prompt did not fit
the judge's window. Nothing is guessed."""

ErrorPattern = Literal["instruction_unfollowing", "hallucination"]
"""How a wrong answer goes wrong (paper, Appendix C)."""

_PLACE = re.compile(r"(.+):(\d+|row \d+)", re.DOTALL)


class Question(Record):
    """A question about a document. ``answers`` are acceptable references; ``evidence`` spans are in characters of the
    document. ``model_grade`` is what a model gave a question that was written by one, from 0 to 10."""

    id: str
    question: str = Field(min_length=1)
    answers: list[str] = Field(default_factory=list)
    kind: QuestionKind = "other"
    evidence: list[tuple[int, int]] = Field(default_factory=list)
    model_grade: float | None = Field(default=None, ge=0, le=10, exclude_if=lambda value: value is None)


class Document(Record):
    """A long text with its questions. ``where`` is ``file:line``, for messages."""

    doc_id: str
    text: str = Field(min_length=1)
    questions: list[Question]
    title: str = ""
    where: str = ""

    @property
    def source(self) -> str:
        """The file in which the document stands."""
        return file_of(self.where)


def file_of(where: str) -> str:
    """Return the file of a place: ``my.jsonl`` of ``my.jsonl:12``, ``org/name[train]`` of ``org/name[train]:row 3``. A
    text file is its own place."""
    match = _PLACE.fullmatch(where)
    return match[1] if match else where


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part ``document.text[start:end]`` of a document. Its chunks follow each other without gap or overlap."""

    index: int
    start: int
    end: int
    token_ids: tuple[int, ...]


class ContextChunk(Record):
    """A chunk of the training context: its place in the document, its score, and where its tokens stand in the prompt.

    ``start`` and ``end`` are characters of the document; ``token_start`` and ``token_end`` index ``prompt_ids``. Of an
    imported pair they are characters of the prompt's text, its document is known only where a column holds it, and
    nothing was scored.
    """

    doc_id: str | None
    index: Int32
    start: int
    end: int
    token_start: Int32
    token_end: Int32
    score: float | None
    critical: bool
    text: str


class Measures(Record):
    """How near a response comes to the reference answers (:mod:`logodata.judge.measures`), and what the judge's rules
    make of it. What was not measured is None: ``number_share`` where a reference holds no number, ``similarity`` where
    the judge does not ask for it, everything where there is no reference."""

    word_share: float | None = None
    token_f1: float | None = None
    contains_reference: bool | None = None
    number_share: float | None = None
    similarity: float | None = None
    verdict: RuleVerdict | None = None


class _Generated(Record):
    strategy: str
    text: str
    token_ids: list[Int32]
    ended: bool


class Response(Measures, _Generated):
    """A response as it is trained on: ``token_ids`` hold the end-of-turn token if and only if ``ended``.

    ``strategy`` says which prompt produced it (``guided``, ``irrelevant``, ``mixed-0.5``, ...), and is ``imported``
    where that is not known. ``origin`` tells where it comes from.
    """

    origin: ResponseOrigin = "live"


class PreferenceSample(Record):
    """One LOGO sample: a shared prompt, one preferred response, M dis-preferred ones (paper section 2).

    Of an imported pair ``question_id`` and ``answer_in_critical`` are None, as are ``doc_id`` and ``question`` unless a
    column holds document and question. It has no ``answers``, and ``chunks`` only if the import was asked to cut them.
    A build with ``generation.rejected=none`` writes samples without ``rejected`` ones.
    """

    schema_version: Int32 = SCHEMA_VERSION
    id: str
    doc_id: str | None
    question_id: str | None
    kind: QuestionKind
    question: str | None
    answers: list[str]
    prompt_ids: list[Int32]
    chunks: list[ContextChunk]
    chosen: Response
    rejected: list[Response]
    answer_in_critical: bool | None
    """Whether the critical chunks of the context hold every content word of a reference answer."""

    @property
    def origin(self) -> ResponseOrigin:
        """``cache`` if any response came from a cache, else where the preferred one comes from."""
        cached = any(response.origin == "cache" for response in (self.chosen, *self.rejected))
        return "cache" if cached else self.chosen.origin

    @property
    def cluster(self) -> str:
        """What samples that are not independent have in common: the document, else the prompt."""
        if self.doc_id is not None:
            return self.doc_id
        return hashlib.sha256(repr(self.prompt_ids).encode()).hexdigest()[:16]


class RejectedQuestion(Record):
    """A question, or an imported pair, that gave no sample: a row of ``rejected.jsonl``.

    ``where`` is the place of its document or of its own row, and ``source`` the file that it counts under. ``stage``
    says who rejected it, and ``detail`` with which numbers. ``preferred`` and ``rejected`` are the texts that were
    generated for it by then. Of an imported pair nothing but its place and the reason is written.
    """

    id: str
    doc_id: str | None
    where: str
    source: str
    question: str | None
    kind: QuestionKind
    answers: list[str] | None = ABSENT
    reason: str
    detail: str | None = ABSENT
    stage: Literal["source", "contexts", "judge", "import"]
    preferred: list[str] | None = ABSENT
    rejected: list[str] | None = ABSENT


class GradedFact(Record):
    """A fact that a response states, and how far the passages next to it support it: 1, 0.5 or 0."""

    text: str
    support: float | Ungraded


class Grades(Record):
    """The grades of a response, each from 0 to 10 (LongReward, arXiv 2410.21252).

    ``faithfulness`` is 10 times the mean support of the response's facts. ``grade`` is the mean of the four; it is None
    if one of them is missing.
    """

    helpfulness: float | Ungraded
    logicality: float | Ungraded
    faithfulness: float | Ungraded
    completeness: float | Ungraded
    facts: list[GradedFact]
    grade: float | None

    @property
    def scores(self) -> dict[str, float | Ungraded]:
        """The four grades, by name."""
        return {name: getattr(self, name) for name in ("helpfulness", "logicality", "faithfulness", "completeness")}


class _DecisionHead(Record):
    id: str
    source: str
    role: Role
    strategy: str
    text: str
    ended: bool


class DecisionRow(Measures, _DecisionHead):
    """The decision on a response to the question ``id``: a row of ``decisions.jsonl``.

    ``rule`` is what the rules have against the response in its role. The verdicts of a model judge are None where it
    was not asked, and the second one decides nothing. ``grades`` are those of a judge that grades, and the second ones,
    in another wording, decide nothing either. ``kept`` says whether the response stands in the data set.
    """

    origin: ResponseOrigin
    rule: Reason | None
    model_verdict: ModelVerdict | None
    second_model_verdict: ModelVerdict | None
    grades: Grades | None = ABSENT
    second_grades: Grades | None = ABSENT
    kept: bool


class QuestionOutcome(Record):
    """The end of a question: a sample, or a row with the reason why there is none, and a decision on each response that
    was judged. Of an imported pair nothing was judged, and ``where`` is its place."""

    id: str
    decisions: list[DecisionRow]
    sample: PreferenceSample | None = ABSENT
    rejected: RejectedQuestion | None = ABSENT
    where: str | None = ABSENT

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.sample is None and self.rejected is None:
            raise ValueError("neither a sample nor a reason why there is none")
        if self.sample is not None and self.rejected is not None:
            raise ValueError("a sample and a reason why there is none")
        if self.sample is not None and not self.decisions and self.where is None:
            raise ValueError("a sample without its decisions")
        return self

    @property
    def doc_id(self) -> str:
        """The document of the question; where none is known, the question itself."""
        found = self.sample or self.rejected
        return (found and found.doc_id) or self.id

    @property
    def source(self) -> str:
        """The file that the question counts under."""
        return file_of(self.where) if self.where is not None else (self.rejected or self.decisions[0]).source

    @property
    def kind(self) -> QuestionKind:
        """The kind of the question."""
        found = self.sample or self.rejected
        assert found is not None
        return found.kind


class ModelJudgeStats(Record):
    """What a model judge said of responses, and how far its two wordings agree.

    ``compared`` counts the responses with two verdicts of correct or wrong. ``agreement`` is the share of equal ones
    among them, with its Wilson interval (95 %); ``kappa`` is Cohen's, with an interval of bootstrap percentiles (95 %).
    They are None where they are not defined.
    """

    judged: int
    correct: int
    wrong: int
    malformed: int
    exceeds_window: int
    judged_again: int
    malformed_again: int
    exceeds_window_again: int
    compared: int
    agreement: float | None
    agreement_interval: tuple[float, float] | None
    kappa: float | None
    kappa_interval: tuple[float, float] | None


class GradeStats(Record):
    """How a judge graded responses, and how far its two wordings agree. Equal responses to a question count once.

    ``malformed`` and ``exceeds_window`` count responses without a grade. ``preferred`` and ``dispreferred`` are the
    mean grades of the kept responses. ``longer_preferred`` is the share of pairs whose preferred response has more
    tokens: a judge that pays for length shows there.

    ``graded_again`` counts the questions that were graded in both wordings, and ``ungraded_again`` their responses
    without a second grade. ``rank_correlation`` is the mean of Spearman's between the two grades over the ``compared``
    questions, where it is defined. ``same_best`` and ``same_worst`` are the shares of
    questions whose best and worst response stay so, and ``pairs_agree`` is the share of the ``pairs_again`` whose
    preferred response is graded higher in the second wording, too. Intervals are of 95 %: Wilson's of shares, and
    bootstrap percentiles over documents of the mean. What is not defined is None.
    """

    graded: int
    malformed: int
    exceeds_window: int
    preferred: float | None
    dispreferred: float | None
    longer_preferred: float | None
    longer_preferred_interval: tuple[float, float] | None
    graded_again: int
    ungraded_again: int
    compared: int
    rank_correlation: float | None
    rank_correlation_interval: tuple[float, float] | None
    same_best: float | None
    same_worst: float | None
    pairs_again: int
    pairs_agree: float | None
    pairs_agree_interval: tuple[float, float] | None


class SolveStats(Record):
    """How often questions were answered right. ``histogram[n]`` counts the questions with ``n`` right answers among so
    many ``tries`` from the training context, whether they were kept or not."""

    tries: int
    histogram: list[int]


class Spread(Record):
    """The range of some counts, and their median."""

    min: int
    median: int
    max: int


class GroupStats(Record):
    """Yield and purity of questions that have something in common.

    A pair is *pure* if no verdict says the opposite of what its responses are kept as: the verdict of the rules, and
    those of a model judge where it was asked, in both wordings. ``preferred_judged`` and ``dispreferred_judged`` count
    the verdicts of the rules on every response that was judged. Shares of nothing are None.
    """

    questions: int
    kept: int
    yield_: float | None = Field(validation_alias="yield", serialization_alias="yield")
    rejected_by_reason: dict[str, int]
    purity: float | None
    preferred_judged: dict[RuleVerdict, int]
    dispreferred_judged: dict[RuleVerdict, int]


class EvaluatorChoice(Record):
    """The evaluator that scored chunks, and what it compared them with."""

    name: str
    query: str


class Stats(GroupStats):
    """The statistics of a build: ``stats.json``. They are the same for the same data, however they were built.

    Token counts and means are those of the kept samples, None where there is none. What only a build knows is None or
    empty in those of an import, and so is ``dispreferred_per_sample`` where samples have different numbers of them.
    """

    kept_by_kind: dict[str, int]
    kept_by_origin: dict[ResponseOrigin, int]
    dispreferred_per_sample: int | None
    prompt_tokens: Spread | None
    preferred_tokens: Spread | None
    dispreferred_tokens: Spread | None
    preferred_ended: float | None
    dispreferred_ended: float | None
    preferred_word_share: float | None
    dispreferred_word_share: float | None
    preferred_token_f1: float | None
    dispreferred_token_f1: float | None
    dispreferred_error_patterns: dict[ErrorPattern | Literal["right"], int]
    answer_in_critical: float | None
    single_critical_chunk: int | None
    model_judge: ModelJudgeStats | None = ABSENT
    grades: GradeStats | None = ABSENT
    solve: SolveStats | None = ABSENT
    by_source: dict[str, GroupStats]
    by_kind: dict[str, GroupStats]
    evaluator: EvaluatorChoice | None

    @property
    def groups(self) -> dict[str, dict[str, GroupStats]]:
        """The statistics of parts of the questions, by what the parts have in common."""
        return {"source": self.by_source, "kind": self.by_kind}


class PromptFingerprints(Record):
    """Fingerprints of the prompts' wordings under the chat template: of the answer's, and of those that name the
    reference."""

    answer: str
    guided: list[str]


class BuildIdentity(Record):
    """All that a build follows from besides its recipe and its source. The fields of the judge are those of a model
    judge."""

    model_fingerprint: str
    tokenizer_fingerprint: str
    prompt_fingerprints: PromptFingerprints
    window: int
    judge_model: str | None = ABSENT
    judge_model_fingerprint: str | None = ABSENT
    judge_prompt_fingerprints: list[str] | None = ABSENT
    judge_window: int | None = ABSENT


class SourceFile(Record):
    """The documents of a build, and the start of their sha256. ``lost`` counts what converted documents have and their
    texts lack, by name."""

    path: str
    sha256: str
    lost: dict[str, int] | None = ABSENT


class _ManifestHead(Record):
    schema_version: int
    logo_align: str
    model: str


class Manifest(BuildIdentity, _ManifestHead):
    """The origin of a data set: ``manifest.json``, which is written last.

    :func:`logodata.dataset.files.read_recipe` reads ``recipe``, which is the recipe as JSON. ``chat_template`` is the
    text of the template that the recipe names.
    """

    engine: str
    judge_engine: str | None = ABSENT
    source: SourceFile
    recipe: dict[str, Any]
    chat_template: str | None
    samples: int


PairFormat = Literal[
    "standard",
    "standard-implicit",
    "conversational",
    "conversational-implicit",
    "sharegpt",
    "alpaca",
    "context",
    "ratings",
    "text",
]
"""The forms of pairs that :mod:`logodata.pairs` reads."""

PromptForm = Literal["plain", "rendered", "message"]
"""What a prompt of one text is: text that is continued, a text with the chat template applied, or the message of a
user."""


class PairOrigin(Record):
    """How pairs were read: their form, what prompts of one text are (None where prompts are messages), the user's
    columns, whether rows of one prompt and preferred response were put together, the most tokens of a pair, and the
    tokens of a chunk (None: no chunks were cut)."""

    format: PairFormat
    prompt: PromptForm | None
    columns: dict[str, str]
    group: bool
    window: int
    chunk_tokens: int | None


class ImportManifest(_ManifestHead):
    """The origin of imported pairs: ``manifest.json``. ``model`` is the model whose tokenizer and chat template made
    the token ids, and ``chat_template`` the text of another template that was asked for."""

    model_fingerprint: str
    tokenizer_fingerprint: str
    source: SourceFile
    pairs: PairOrigin
    chat_template: str | None
    samples: int


AnyManifest = Manifest | ImportManifest


class ShardRecord(Record):
    """The shard of a build that a folder holds, or all from ``number`` to ``last``: ``shard.json``.

    ``in_turn`` says that contexts were dealt in their order, and not by the ids of their documents. ``places`` gives,
    for the id of each question that came to an end here, its number among all questions of the build, with the rejected
    ones of the source first.
    """

    number: int
    last: int | None = ABSENT
    total: int
    in_turn: bool | None = ABSENT
    places: dict[str, int]

    @property
    def numbers(self) -> range:
        """The numbers of the shards."""
        return range(self.number, (self.last or self.number) + 1)

    def __str__(self) -> str:
        return shard_name(self.number, self.last, self.total, in_turn=bool(self.in_turn))


def shard_name(number: int, last: int | None, total: int, *, in_turn: bool) -> str:
    """Return the name of shards of a build: ``2/8``, ``2-4/8``, ``2/8 in turn``."""
    several = "" if last is None else f"-{last}"
    return f"{number}{several}/{total}{' in turn' if in_turn else ''}"
