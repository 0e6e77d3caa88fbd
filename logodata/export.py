"""The same data in other trainers' formats."""

from __future__ import annotations

from pathlib import Path

from logodata.common.run_dir import write_atomic
from logodata.contract import read_manifest, read_samples
from logodata.models import load_tokenizer


def export_trl(data: Path, output: Path) -> int:
    """TRL's columns ``prompt``, ``chosen``, ``rejected`` (text): one row for each dis-preferred response. Returns the
    rows.

    The prompt carries the chat template already, so TRL must be given it as text. TRL tokenises again, which can
    differ from ``prompt_ids`` at chunk borders: for LOGO itself use logotrain.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = read_manifest(data)
    template = manifest["recipe"]["chat_template"]
    tokenizer = load_tokenizer(manifest["model"], Path(template) if template else None)
    rows = [
        {
            "prompt": tokenizer.decode(sample.prompt_ids),
            "chosen": tokenizer.decode(sample.chosen.token_ids),
            "rejected": tokenizer.decode(response.token_ids),
        }
        for sample in read_samples(data)
        for response in sample.rejected
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, sink.getvalue().to_pybytes())
    return len(rows)
