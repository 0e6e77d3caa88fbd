"""What a build says of itself: statistics, the line in the terminal, the dataset card."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample, Response
from logodata.judge import ErrorPattern, error_pattern
from logodata.verdicts import ModelVerdict, describe_verdicts, verdict_statistics


class Statistics:
    """Yield and make-up of a data set, gathered row by row; the same for the same data, however it was built."""

    def __init__(self) -> None:
        self._kept: dict[str, Counter[str]] = {"kind": Counter(), "origin": Counter()}
        self._reasons: Counter[str] = Counter()
        self._verdicts: Counter[tuple[ModelVerdict, ModelVerdict | None]] = Counter()
        self._patterns = Counter[str](instruction_unfollowing=0, hallucination=0)
        self._lengths: dict[str, Counter[int]] = defaultdict(Counter)
        self._sums: Counter[str] = Counter()
        self._num_kept = self._num_dispreferred = 0
        self._dispreferred_per_sample: int | None = None

    def keep(self, samples: Iterable[PreferenceSample]) -> Iterator[PreferenceSample]:
        """Count samples on their way through."""
        for sample in samples:
            self._num_kept += 1
            self._dispreferred_per_sample = self._dispreferred_per_sample or len(sample.rejected)
            self._kept["kind"][sample.kind] += 1
            self._kept["origin"][sample.origin] += 1
            self._lengths["prompt"][len(sample.prompt_ids)] += 1
            self._sums["answer_in_critical"] += sample.answer_in_critical
            self._count("preferred", sample.chosen)
            for response in sample.rejected:
                self._num_dispreferred += 1
                self._count("dispreferred", response)
                # ``right`` are those that a judge which was switched off let through.
                self._patterns[error_kind(response, sample.question)] += 1
            yield sample

    def reject(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Count rows of ``rejected.jsonl`` on their way through."""
        for row in rows:
            self._reasons[row["reason"]] += 1
            yield row

    def decide(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Count rows of ``decisions.jsonl`` on their way through."""
        for row in rows:
            if row["model_verdict"] is not None:
                self._verdicts[row["model_verdict"], row["second_model_verdict"]] += 1
            yield row

    def result(self) -> dict[str, Any]:
        """As in ``stats.json``."""
        total = self._num_kept + self._reasons.total()
        return {
            "questions": total,
            "kept": self._num_kept,
            "yield": self._num_kept / total if total else None,
            "rejected_by_reason": dict(self._reasons.most_common()),
            "kept_by_kind": dict(self._kept["kind"].most_common()),
            "kept_by_origin": dict(self._kept["origin"].most_common()),
            "dispreferred_per_sample": self._dispreferred_per_sample,
            "prompt_tokens": self._spread("prompt"),
            "preferred_tokens": self._spread("preferred"),
            "dispreferred_tokens": self._spread("dispreferred"),
            **{
                f"{which}_{measure}": self._mean(f"{which}_{measure}", count)
                for measure in ("ended", "word_share", "token_f1")
                for which, count in (("preferred", self._num_kept), ("dispreferred", self._num_dispreferred))
            },
            "dispreferred_error_patterns": dict(self._patterns),
            "answer_in_critical": self._mean("answer_in_critical", self._num_kept),
            **({"model_judge": verdict_statistics(self._verdicts)} if self._verdicts else {}),
        }

    def _count(self, which: str, response: Response) -> None:
        self._lengths[which][len(response.token_ids)] += 1
        for measure in ("ended", "word_share", "token_f1"):
            self._sums[f"{which}_{measure}"] += getattr(response, measure)

    def _mean(self, name: str, count: int) -> float | None:
        return self._sums[name] / count if count else None

    def _spread(self, which: str) -> dict[str, int] | None:
        counts = self._lengths[which]
        if not counts:
            return None
        numbers = sorted(counts)
        upto = list(accumulate(counts[number] for number in numbers))
        return {"min": numbers[0], "median": numbers[bisect_right(upto, upto[-1] // 2)], "max": numbers[-1]}


def statistics(samples: Iterable[PreferenceSample], rejected: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """:class:`Statistics` of a data set that is at hand."""
    gathered = Statistics()
    deque(gathered.keep(samples), maxlen=0)
    deque(gathered.reject(rejected), maxlen=0)
    return gathered.result()


def error_kind(response: Response, question: str) -> ErrorPattern | Literal["right"]:
    """``right`` (or half right), or how the response goes wrong."""
    return "right" if response.verdict in ("right", "half_right") else error_pattern(response.text, question)


def read_rejected(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``rejected.jsonl``; see :func:`iterate_rejected`."""
    return list(iterate_rejected(folder))


def iterate_rejected(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``rejected.jsonl``: questions of a build that gave no sample, with their reasons.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return _rows(folder / "rejected.jsonl")


def iterate_decisions(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``decisions.jsonl``: what was decided on each response that was judged.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return _rows(folder / "decisions.jsonl")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:  # not splitlines: texts may hold other line separators, unescaped
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="build the data set again") from error


def describe(stats: dict[str, Any]) -> str:
    """One line: how many were kept, where they came from, why the others were not."""
    origins = stats["kept_by_origin"]
    cached = origins.get("cache", 0)
    source = f" ({origins.get('live', 0)} built live, {cached} from the shipped cache)" if cached else ""
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats["rejected_by_reason"].items())
    return f"kept {stats['kept']} of {stats['questions']} questions{source}" + (
        f"; not kept: {reasons}" if reasons else ""
    )


def describe_patterns(stats: dict[str, Any]) -> str:
    """One line: how the dis-preferred responses go wrong."""
    meanings = {
        "hallucination": "speak of the question's entities and are wrong (hallucination)",
        "instruction_unfollowing": "share no entity with the question (instruction unfollowing)",
        "right": "are right: the judge was off",
    }
    patterns: dict[str, int] = stats["dispreferred_error_patterns"]
    total = sum(patterns.values())
    parts = (f"{patterns[name]} {meaning}" for name, meaning in meanings.items() if patterns.get(name))
    return f"of {total} dis-preferred responses {', '.join(parts)}"


def dataset_card(manifest: dict[str, Any], stats: dict[str, Any]) -> str:
    """README.md of the data set, with the header that ``datasets.load_dataset`` reads."""
    recipe = manifest["recipe"]
    generation, contexts = recipe["generation"], recipe["contexts"]
    critical = (
        f"more than {contexts['critical_threshold']:g} shared entities"
        if contexts["critical_top"] is None
        else f"the {contexts['critical_top']} best-scored chunks"
    )
    preferred = {
        "model": "the model's own greedy answer from the critical chunks (as in the paper)",
        "best_of_n": f"the first right one of {generation['num_candidates']} answers of the model from the critical chunks",
        "guided": "the reference answer in the model's own words: it saw the critical chunks, the question and the reference. "
        "This departs from the paper, where the model answers unaided",
        "reference": "the reference answer itself, not in the model's words. This departs from the paper",
    }[generation["preferred"]]
    summary = describe(stats)
    rows = "\n".join(f"| {name.replace('_', ' ')} | {show_value(value)} |" for name, value in stats.items())
    return f"""---
configs:
- config_name: default
  data_files: data/*.parquet
tags:
- preference
- long-context
- LOGO
---

# LOGO preference data from `{manifest["source"]["path"]}`

{summary[0].upper()}{summary[1:]}.

A row is one prompt with a preferred response and {stats["dispreferred_per_sample"]} dis-preferred ones (LOGO, arXiv 2410.18533, section 3).

- **Documents**: `{manifest["source"]["path"]}` (sha256 {manifest["source"]["sha256"]}), in chunks of {recipe["chunking"]["chunk_tokens"]} tokens.
- **Critical chunks**: {critical}, by the `{recipe["evaluator"]["name"]}` evaluator, compared with the {recipe["evaluator"]["query"].replace("_", " ")}.
- **Context**: {contexts["num_chunks"]} chunks in document order; all critical ones, filled up with irrelevant ones.
- **Preferred**: {preferred}.
- **Dis-preferred**: the model's greedy answers from irrelevant chunks alone, and from contexts that keep {_percent(contexts["mixed_ratios"])} of the critical chunks.
- **Error patterns** (paper, Appendix C): {describe_patterns(stats)}.
- **Judge**: {_describe_judge(recipe["judge"])}.{_model_judge(manifest, stats)}
- **Model**: `{manifest["model"]}` ({manifest["model_fingerprint"]}), engine {manifest["engine"]}, logo-align {manifest["logo_align"]}, seed {recipe["seed"]}.

Preferred responses end by themselves {_percent([stats["preferred_ended"]])} of the time, dis-preferred ones {_percent([stats["dispreferred_ended"]])}: a gap
here teaches the model to end its answers, whatever they say.

| statistic | value |
| --- | --- |
{rows}

Each row of `rejected.jsonl` is a question that gave no sample, with its reason; each row of `decisions.jsonl` a response that was judged.
"""


def _model_judge(manifest: dict[str, Any], stats: dict[str, Any]) -> str:
    if "judge_model" not in manifest:
        return ""
    judge = f"`{manifest['judge_model']}` ({manifest['judge_model_fingerprint']}), engine {manifest['judge_engine']}"
    said = describe_verdicts(stats["model_judge"]) if "model_judge" in stats else "it was never asked"
    return f"\n- **Model judge**, after these rules: {judge}; {said}."


def _describe_judge(judge: dict[str, Any]) -> str:
    by_words = f"a response is right if it holds {judge['right_at']:.0%} of the reference's content words"
    by_similarity = (
        f"if its embedding's cosine with the reference is {judge['similar_at']:g} or more, and wrong below "
        f"{judge['dissimilar_below']:g}"
    )
    rule = {
        "auto": f"{by_words}; beside references of more than {judge['long_answer_words']} content words, {by_similarity}",
        "word_share": by_words,
        "token_f1": f"a response is right from a token F1 of {judge['right_at']:g} on",
        "containment": "a response is right if the reference stands in it word for word",
        "similarity": f"a response is right {by_similarity}",
    }[judge["measure"]]
    most = judge["max_added_words"]
    added = "" if most is None else f"; a preferred one adds at most {most} content words to question and reference"
    return f"{'on' if judge['enabled'] else 'OFF'}; {rule}{added}"


def _percent(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.0%}" for value in values)


def show_value(value: Any) -> str:
    """A statistic as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_value(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return f"[{', '.join(map(show_value, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
