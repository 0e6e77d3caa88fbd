"""What was decided on a response, in words: the verdict, the measure it rests on, the rule, a model's verdict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.contract import Measures, PreferenceSample
from logodata.dataset.files import iterate_decisions
from logodata.judge.rules import error_pattern
from logodata.judge.settings import JudgeSettings

Row = dict[str, Any]
"""Of ``decisions.jsonl``. ``rule`` and the model's verdicts are absent where that file is."""


def read_judge(folder: Path) -> JudgeSettings:
    """The judge's settings of a build, also of one in which no pair was kept.

    Raises:
        UserError: nothing there says them.
    """
    path = folder / "manifest.json"
    path = path if path.is_file() else folder / "work" / "settings.json"
    try:
        return JudgeSettings.model_validate(read_json(path)["recipe"]["judge"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(
            "holds no settings of a judge that this version knows", where=str(path), mend="build the data set again"
        ) from error


def read_decisions(folder: Path, question_ids: Collection[str]) -> dict[str, list[Row]]:
    """The decisions on these questions; none where the data set has no ``decisions.jsonl``."""
    found: dict[str, list[Row]] = defaultdict(list)
    if (folder / "decisions.jsonl").is_file():
        for row in iterate_decisions(folder):
            if row["id"] in question_ids:
                found[row["id"]].append(row)
    return found


def response_rows(sample: PreferenceSample, decisions: Sequence[Row]) -> list[Row]:
    """A row for each response of a sample, the preferred one first, with ``num_tokens``; from the sample itself if
    there are no decisions."""
    responses = (sample.chosen, *sample.rejected)
    kept = [row for row in decisions if row["kept"]] or [
        {"role": role, **response.model_dump(exclude={"token_ids"})}
        for role, response in zip(("preferred", *("rejected" for _ in sample.rejected)), responses, strict=True)
    ]
    if len(kept) != len(responses):
        raise UserError(
            f"decisions.jsonl keeps {len(kept)} responses, the data {len(responses)}",
            where=f"question {sample.id!r}",
            mend="build the data set again",
        )
    return [{**row, "num_tokens": len(response.token_ids)} for row, response in zip(kept, responses, strict=True)]


def ruling(row: Mapping[str, Any], question: str, judge: JudgeSettings) -> str:
    """``wrong: 20 % of the reference's words (right from 60 %); hallucination; no rule against it``, and what a model
    judge said."""
    parts = [f"{_in_words(row['verdict'])}: {_grounds(row, judge)}"]
    if row["verdict"] == "wrong":
        parts.append(_in_words(error_pattern(row["text"], question)))
    if "rule" in row:
        parts.append(f"rule: {_in_words(row['rule'])}" if row["rule"] else "no rule against it")
    if not judge.enabled:
        parts.append("the judge was off")
    if row.get("model_verdict") is not None:
        second = row["second_model_verdict"]
        again = "" if second is None else f", in another wording {_in_words(second)}"
        parts.append(f"model judge: {_in_words(row['model_verdict'])}{again}")
    return "; ".join(parts)


def make_up(row: Mapping[str, Any]) -> str:
    """How long a response is, how it ended and where it came from."""
    parts = [f"{row['num_tokens']} tokens"] if "num_tokens" in row else []
    parts.append("ended by itself" if row["ended"] else "cut at the length cap")
    parts += ["from the cache"] if row["origin"] == "cache" else []
    return ", ".join(parts)


def _grounds(row: Mapping[str, Any], judge: JudgeSettings) -> str:
    """The measure that decided (:class:`logodata.judge.rules.Measurer`), its value and from where on a response is
    right."""
    measured = Measures(**{name: row[name] for name in Measures.model_fields})
    if measured.similarity is not None:
        limits = f"right from {judge.similar_at:g}, wrong below {judge.dissimilar_below:g}"
        return f"similarity to the reference {measured.similarity:.2f} ({limits})"
    limit = f"(right from {_percent(judge.right_at)})"
    if judge.measure == "containment":
        text = "holds the reference word for word" if measured.contains_reference else "does not hold the reference"
    elif judge.measure == "token_f1":
        text = f"token F1 {_percent(measured.token_f1)} {limit}"
    else:
        text = f"{_percent(measured.word_share)} of the reference's words {limit}"
    if measured.verdict == "half_right" and measured.number_share is not None:
        text += f", but {_percent(measured.number_share)} of its numbers"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _in_words(name: str) -> str:
    return name.replace("_", " ")
