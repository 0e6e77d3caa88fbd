"""What a build says of itself: statistics, the line in the terminal, the dataset card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample, Response
from logodata.judge import RIGHT_AT, ErrorPattern, error_pattern


def statistics(
    samples: Sequence[PreferenceSample], rejected: Sequence[dict[str, Any]], right_at: float = RIGHT_AT
) -> dict[str, Any]:
    """Yield and make-up of a data set; the same for the same data, however it was built.

    Args:
        samples: the pairs kept.
        rejected: rows of ``rejected.jsonl``.
        right_at: share of the reference's words that makes a response right (``judge.right_at``).
    """
    total = len(samples) + len(rejected)
    dispreferred = [response for sample in samples for response in sample.rejected]
    return {
        "questions": total,
        "kept": len(samples),
        "yield": len(samples) / total if total else None,
        "rejected_by_reason": dict(Counter(row["reason"] for row in rejected).most_common()),
        "kept_by_kind": dict(Counter(sample.kind for sample in samples).most_common()),
        "kept_by_origin": dict(Counter(sample.origin for sample in samples).most_common()),
        "dispreferred_per_sample": len(samples[0].rejected) if samples else None,
        "prompt_tokens": _spread(len(sample.prompt_ids) for sample in samples),
        "preferred_tokens": _spread(len(sample.chosen.token_ids) for sample in samples),
        "dispreferred_tokens": _spread(len(response.token_ids) for response in dispreferred),
        "preferred_ended": _mean(sample.chosen.ended for sample in samples),
        "dispreferred_ended": _mean(response.ended for response in dispreferred),
        "preferred_word_share": _mean(sample.chosen.word_share for sample in samples),
        "dispreferred_word_share": _mean(response.word_share for response in dispreferred),
        "preferred_token_f1": _mean(sample.chosen.token_f1 for sample in samples),
        "dispreferred_token_f1": _mean(response.token_f1 for response in dispreferred),
        "dispreferred_error_patterns": _error_patterns(samples, right_at),
        "answer_in_critical": _mean(sample.answer_in_critical for sample in samples),
    }


def _error_patterns(samples: Sequence[PreferenceSample], right_at: float) -> dict[str, int]:
    """Dis-preferred responses by :func:`logodata.judge.error_pattern`; ``right`` are those that a judge which was
    switched off let through."""
    counts = Counter[str](instruction_unfollowing=0, hallucination=0)
    for sample in samples:
        for response in sample.rejected:
            counts[verdict(response, sample.question, right_at)] += 1
    return dict(counts)


def verdict(response: Response, question: str, right_at: float) -> ErrorPattern | Literal["right"]:
    """``right``, or how the response goes wrong."""
    return "right" if response.word_share >= right_at else error_pattern(response.text, question)


def _mean(values: Iterable[float]) -> float | None:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else None


def _spread(values: Iterable[int]) -> dict[str, int] | None:
    numbers = sorted(values)
    return {"min": numbers[0], "median": numbers[len(numbers) // 2], "max": numbers[-1]} if numbers else None


def read_rejected(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``rejected.jsonl``: questions of a build that gave no sample, with their reasons.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    path = folder / "rejected.jsonl"
    try:
        with open(path, encoding="utf-8") as file:  # not splitlines: texts may hold other line separators, unescaped
            return [json.loads(line) for line in file]
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
- **Judge**: {"on" if recipe["judge"]["enabled"] else "OFF"}; a response is right if it holds {recipe["judge"]["right_at"]:.0%} of the reference's content words.
- **Model**: `{manifest["model"]}` ({manifest["model_fingerprint"]}), engine {manifest["engine"]}, logo-align {manifest["logo_align"]}, seed {recipe["seed"]}.

Preferred responses end by themselves {_percent([stats["preferred_ended"]])} of the time, dis-preferred ones {_percent([stats["dispreferred_ended"]])}: a gap
here teaches the model to end its answers, whatever they say.

| statistic | value |
| --- | --- |
{rows}

Each row of `rejected.jsonl` is a question that gave no sample, with its reason.
"""


def _percent(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.0%}" for value in values)


def show_value(value: Any) -> str:
    """A statistic as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
