"""The judge's rules against a reader: of the pairs it keeps, how many are good?

    python benchmarks/judge.py [--labels FILE] [--json FILE] [KEY=VALUE ...]

``benchmarks/labels/embedded.jsonl`` holds answers of the embedded model to questions on the embedded documents,
labelled by hand: guided preferred ones as ``recipes/embedded.yaml`` makes them, that the rules called right without
``max_added_words``, each with its dis-preferred ones. A response is right if somebody who asks the question learns the
answer from it, and nothing false about it. A pair is a preferred response with one of the dis-preferred ones; it is
good if the first is right and the second is not. Overrides are fields of the recipe's ``judge`` section:
``max_added_words=0``.

Precision is the share of kept pairs that are good. Recall is the share of good pairs among the labelled ones that are
kept; good answers that those rules called wrong are not among them. Both with Wilson's 95 % interval over pairs; two
pairs share a preferred response, so the true interval is wider: ``samples`` counts them as one, as the trainer does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence import environment
from logodata.common.errors import run_command
from logodata.common.recipes.reading import load_recipe
from logodata.contract import Response
from logodata.judge.agreement import wilson_interval
from logodata.judge.rules import Measurer, preferred_fault, rejected_fault
from logodata.judge.settings import JudgeSettings

LABELS = Path(__file__).with_name("labels") / "embedded.jsonl"


@dataclass
class Tally:
    """Kept and good ones of some pairs."""

    kept: int = 0
    good: int = 0
    both: int = 0

    def add(self, kept: bool, good: bool) -> None:
        """Count one."""
        self.kept, self.good, self.both = self.kept + kept, self.good + good, self.both + (kept and good)

    def result(self) -> dict[str, Any]:
        """Shares with intervals."""
        return {
            "kept": self.kept,
            "good": self.good,
            "kept_and_good": self.both,
            "precision": share(self.both, self.kept),
            "recall": share(self.both, self.good),
        }


def share(part: int, whole: int) -> dict[str, float] | None:
    """A share with Wilson's 95 % interval; None of nothing."""
    if not whole:
        return None
    low, high = wilson_interval(part, whole)
    return {"value": part / whole, "low": low, "high": high}


def judge(rows: list[dict[str, Any]], settings: JudgeSettings) -> dict[str, Any]:
    """What the rules make of labelled rows."""
    measurer = Measurer(settings)
    pairs, samples = Tally(), Tally()
    by_documents: dict[str, Tally] = {}
    reasons: Counter[str] = Counter()
    wrongly_kept = []
    for row in rows:
        preferred = _judged(measurer, row["preferred"], row["answers"])
        fault = preferred_fault(preferred, row["question"], row["answers"], settings, guided=True)
        all_kept, all_good = True, True
        for response in row["dispreferred"]:
            beside = fault or rejected_fault(_judged(measurer, response, row["answers"]), preferred, settings)
            good = row["preferred"]["right"] and not response["right"]
            pairs.add(beside is None, good)
            by_documents.setdefault(row["documents"], Tally()).add(beside is None, good)
            all_kept, all_good = all_kept and beside is None, all_good and good
            if beside is not None:
                reasons[f"{beside}, {'good' if good else 'bad'}"] += 1
        samples.add(all_kept, all_good)
        if all_kept and not all_good:
            wrongly_kept.append(
                {"id": row["id"], "text": row["preferred"]["text"], "why": row["preferred"].get("note")}
            )
    return {
        "pairs": pairs.result(),
        "samples": samples.result(),
        "pairs_by_documents": {name: tally.result() for name, tally in by_documents.items()},
        "rejected_by_reason": dict(reasons.most_common()),
        "wrongly_kept": wrongly_kept,
    }


def _judged(measurer: Measurer, response: dict[str, Any], answers: list[str]) -> Response:
    text, ended = response["text"], response["ended"]
    return Response(strategy="", text=text, token_ids=[], ended=ended, **dict(measurer.measure(text, answers)))


def main() -> None:
    """Print and write the shares."""
    parser = argparse.ArgumentParser(description="The judge's rules against labels given by hand.")
    parser.add_argument("--labels", type=Path, default=LABELS)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe's judge section")
    arguments = parser.parse_args()
    settings = load_recipe(JudgeSettings, "judge", None, arguments.overrides)
    rows = [json.loads(line) for line in arguments.labels.read_text(encoding="utf-8").splitlines()]
    results = judge(rows, settings)
    for name in ("pairs", "samples"):
        for measure in ("precision", "recall"):
            found = results[name][measure]
            shown = "none" if found is None else f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
            print(f"{measure} of {name}: {shown}")
    for wrong in results["wrongly_kept"]:
        print(f"kept, but {wrong['why'] or 'a dis-preferred one is right'}: {wrong['id']}: {wrong['text']}")
    if arguments.json:
        record = {"settings": settings.model_dump(mode="json"), **results, "environment": environment()}
        arguments.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command("judge.py", main, resume_hint="nothing was written"))
