"""LongBench's ROUGE-L against the package whose values it reproduces, on summaries of 512 tokens.

    python benchmarks/rouge_l.py [--pairs 20] [--rounds 5] [-o results/rouge_l-HARDWARE-DATE.json]

Both score the same pairs in turn, round by round; values must be equal to the last bit. The package is timed on ROUGE-L
alone, too: LongBench's script has it compute ROUGE-1 and ROUGE-2 besides, which nobody reads.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from logoeval.tasks.longbench.rouge import rouge_l

Pair = tuple[str, str]


def summaries(count: int, num_words: int, seed: int = 0) -> list[Pair]:
    """Pairs of texts with Zipf's word frequencies and sentences of about 20 words."""
    rng = random.Random(seed)
    words = [f"word{number}" for number in range(2000)]
    weights = [1 / (number + 1) for number in range(2000)]

    def text() -> str:
        return " ".join(word + "." * (rng.random() < 0.05) for word in rng.choices(words, weights, k=num_words))

    return [(text(), text()) for _ in range(count)]


def measure(pairs: list[Pair], rounds: int) -> dict[str, list[float]]:
    """Seconds a pair, a list of rounds for each contender."""
    from rouge import Rouge

    script, alone = Rouge(), Rouge(metrics=["rouge-l"])
    contenders: dict[str, Callable[[str, str], float]] = {
        "package, as the script calls it": lambda p, g: script.get_scores([p], [g], avg=True)["rouge-l"]["f"],
        "package, ROUGE-L alone": lambda p, g: alone.get_scores([p], [g], avg=True)["rouge-l"]["f"],
        "ours": lambda p, g: rouge_l(p, g).f,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        values = []
        for name, contender in contenders.items():
            start = time.process_time()
            values.append([contender(prediction, gold) for prediction, gold in pairs])
            seconds[name].append((time.process_time() - start) / len(pairs))
        if values[0] != values[2] or values[1] != values[2]:
            raise SystemExit("the values differ")
    return seconds


def main() -> None:
    """Print medians and ratios; write every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    seconds = measure(summaries(arguments.pairs, arguments.words), arguments.rounds)
    ours = statistics.median(seconds["ours"])
    for name, rounds in seconds.items():
        median = statistics.median(rounds)
        print(f"{name:34} {1000 * median:8.2f} ms a pair, {median / ours:5.1f} x ours")
    if arguments.out:
        record = {"words": arguments.words, "machine": platform.machine(), "seconds_per_pair": seconds}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
