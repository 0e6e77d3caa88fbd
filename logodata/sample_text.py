"""Samples as text in the terminal: ``logodata inspect``."""

from __future__ import annotations

from pathlib import Path

from rich.panel import Panel
from rich.text import Text

from logodata.common.console import console
from logodata.common.errors import UserError
from logodata.contract import read_samples


def print_samples(folder: Path, sample_id: str | None, count: int) -> None:
    """Print the sample of this id, or the first ``count``: context with critical chunks marked, question, responses.

    Raises:
        UserError: no data set there, or no such sample.
    """
    samples = read_samples(folder)
    if sample_id:
        samples = [sample for sample in samples if sample.id == sample_id]
        if not samples:
            raise UserError(
                f"no sample {sample_id!r}",
                where=str(folder),
                mend="ids are in data/*.parquet and rejected.jsonl",
            )
    for sample in samples[:count]:
        context = Text()
        for chunk in sample.chunks:
            context.append(
                f"[{chunk.doc_id} #{chunk.index}, score {chunk.score:g}{', critical' if chunk.critical else ''}]\n",
                style="dim",
            )
            context.append(chunk.text.strip() + "\n\n", style="bold green" if chunk.critical else "")
        console.print(Panel(context, title=f"{sample.id}: {len(sample.prompt_ids)} prompt tokens"))
        console.print(f"question   {sample.question}\nreference  {' | '.join(sample.answers)}", markup=False)
        for name, response in [("preferred", sample.chosen), *(("rejected", response) for response in sample.rejected)]:
            end = "" if response.ended else " [not ended]"
            console.print(
                f"{name:10} {response.text.strip()}{end}   ({response.strategy}, word share {response.word_share:.2f})",
                markup=False,
            )
