"""Export a data set as text: to read, and in the formats of other trainers.

Those trainers tokenise again. So each prompt is tokenised here as the trainer will do it, and compared with the ids
that the model saw. What differs is counted and told, and a sample whose text would become control tokens is left out.
For LOGO itself, with all dis-preferred responses over one prompt and positions by chunk, use ``logotrain``.

| format | file | a row | prompt |
| --- | --- | --- | --- |
| ``text`` | one .parquet or .jsonl | a sample with question, context and all responses | text as the model read it |
| ``trl`` | one .parquet or .jsonl | a sample, its first dis-preferred response | text with the chat template applied |
| ``trl-exploded`` | the same | a pair: M rows a sample | the same |
| ``llama-factory`` | a folder | a pair | the user's message; LLaMA-Factory's ``template`` is applied by it |
| ``openrlhf`` | one .parquet or .jsonl | a pair | the user's message; OpenRLHF applies its template |

The three trainers end every response, even one that reached the length cap in the build.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logodata.common.chat_template import render_chat
from logodata.common.errors import UserError
from logodata.common.files import check_apart, check_place, make_folder_of, read_json, replacing, write_json
from logodata.common.json_files import strict_dumps
from logodata.contract import PreferenceSample, Response
from logodata.dataset.samples import check_pairs, iterate_samples, read_build_manifest, read_manifest
from logodata.models.facts import tokenizer_fingerprint
from logodata.models.loading import load_tokenizer
from logodata.prompts import ANSWER_TEMPLATES, CHUNK_SEPARATOR, PromptFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ExportFormat = Literal["text", "trl", "trl-exploded", "llama-factory", "openrlhf"]

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Export:
    """The number of rows that were written, and notes on what the text does not carry."""

    rows: int
    notes: tuple[str, ...]


def export(data: Path, form: ExportFormat, output: Path, *, model: str | None = None) -> Export:
    """Write a data set as text, or in the format of another trainer.

    Args:
        form: A format of this module's table.
        output: The ``.parquet`` or ``.jsonl`` file to write. For ``llama-factory`` it is a folder, which may hold a
            ``dataset_info.json`` already.
        model: The model of the build, where it is now; by default the name in ``manifest.json``.

    Raises:
        UserError: There is no data set, its tokenizer cannot be loaded or has changed, the wording of prompts has
            changed, every sample would forge control tokens, or ``output`` cannot be written.
    """
    _check_output(form, output)
    check_apart(output, ("the data set", data))
    manifest = read_manifest(data)
    chat = form in ("llama-factory", "openrlhf")
    tokenizer = load_tokenizer(model or manifest.model, manifest.chat_template, needs_template=False)
    if chat and not tokenizer.chat_template:
        mend = "give --format text, trl or trl-exploded"
        raise UserError(f"{form} has messages, and the tokenizer no chat template", where=str(data), mend=mend)
    if tokenizer_fingerprint(tokenizer) != manifest.tokenizer_fingerprint:
        raise UserError(
            "the data hold token ids of another tokenizer",
            where=str(data),
            mend=f"give the model of the build with --model, it was {manifest.model}",
        )
    render = partial(_user_message, _template_of(data, tokenizer)) if chat else _prompt_text
    if form == "text":
        return Export(_write_rows(output, (_text_row(tokenizer, sample) for sample in iterate_samples(data))), ())
    counts = Counter[str]()
    moved: list[int] = []  # for each prompt that tokenises otherwise, the number of its tokens that are gone

    def rows() -> Iterator[_Row]:
        for sample in iterate_samples(data):
            counts["samples"] += 1
            check_pairs([sample], str(data), mend="give --format text, or build without generation.rejected=none")
            prompt, token_ids = render(tokenizer, sample)
            if _forges(tokenizer, sample, token_ids):
                counts["forged"] += 1
                continue
            if token_ids != sample.prompt_ids:
                moved.append((Counter(sample.prompt_ids) - Counter(token_ids)).total())
                counts["reworded"] += _decode(tokenizer, token_ids) != _decode(tokenizer, sample.prompt_ids)
            taken = sample.rejected[:1] if form == "trl" else sample.rejected
            counts["left"] += len(sample.rejected) - len(taken)
            counts["cut"] += sum(not response.ended for response in (sample.chosen, *taken))
            yield from (_ROWS[form](tokenizer, prompt, sample.chosen, response) for response in taken)
        if counts["forged"] == counts["samples"]:
            raise UserError(
                "every sample holds control tokens as text: none can be exported",
                where=str(data),
                mend="take the control tokens out of the documents",
            )

    if form == "llama-factory":
        num_rows = _write_llama_factory(output, f"logo_{data.resolve().name}", rows())
    else:
        num_rows = _write_rows(output, rows())
    return Export(num_rows, tuple(_notes(counts, sorted(moved))))


def _text_row(tokenizer: PreTrainedTokenizerBase, sample: PreferenceSample) -> _Row:
    """Return the whole sample as text, with the control tokens of the prompt's frame."""
    return {
        "id": sample.id,
        "doc_id": sample.doc_id,
        "kind": sample.kind,
        "question": sample.question,
        "answers": sample.answers,
        "context": CHUNK_SEPARATOR.join(chunk.text for chunk in sample.chunks),
        "prompt": _decode(tokenizer, sample.prompt_ids),
        "chosen": sample.chosen.text,
        "rejected": [response.text for response in sample.rejected],
        "rejected_strategies": [response.strategy for response in sample.rejected],
        "chosen_ended": sample.chosen.ended,
        "rejected_ended": [response.ended for response in sample.rejected],
    }


def _prompt_text(tokenizer: PreTrainedTokenizerBase, sample: PreferenceSample) -> tuple[str, list[int]]:
    """Return the prompt as text, and its ids. What the tokenizer puts before every text, such as BOS, is left out."""
    automatic = list(tokenizer("")["input_ids"])
    ids = sample.prompt_ids[len(automatic) :] if sample.prompt_ids[: len(automatic)] == automatic else sample.prompt_ids
    text = _decode(tokenizer, ids)
    return text, list(tokenizer(text)["input_ids"])


def _template_of(data: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the wording of the prompts of a build."""
    built = read_build_manifest(data, "question and chunks to make messages of").prompt_fingerprints.answer
    for template in ANSWER_TEMPLATES:
        if PromptFormat(tokenizer, template).fingerprint == built:
            return template
    raise UserError(
        "the prompts were made with another instruction or chat template than today's",
        where=str(data),
        mend="use --format trl-exploded, which exports the prompt as it was, or build the data set again",
    )


def _user_message(template: str, tokenizer: PreTrainedTokenizerBase, sample: PreferenceSample) -> tuple[str, list[int]]:
    """Return the user's message, and the ids that the tokenizer's own chat template makes of it."""
    context = "".join(chunk.text + CHUNK_SEPARATOR for chunk in sample.chunks)
    content = template.format(context=context, question=sample.question)
    text = render_chat(tokenizer, content)
    return content, list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _forges(tokenizer: PreTrainedTokenizerBase, sample: PreferenceSample, token_ids: Sequence[int]) -> bool:
    """Whether text would become control tokens, with which a document could end the user's turn."""
    control = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))

    def controls(ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in control]

    if controls(token_ids) != controls(sample.prompt_ids):
        return True
    return any(
        controls(tokenizer(_decode(tokenizer, response.token_ids), add_special_tokens=False)["input_ids"])
        != controls(response.token_ids)
        for response in (sample.chosen, *sample.rejected)
    )


def _trl_row(tokenizer: PreTrainedTokenizerBase, prompt: str, chosen: Response, rejected: Response) -> _Row:
    """Return a row for ``DPOTrainer`` of TRL 1.16: an explicit prompt and standard (not conversational) text."""
    # It tokenises the prompt and prompt + response as they are, and appends the eos token to a response that does not
    # end with it (trl/trainer/dpo_trainer.py, ``_prepare_dataset``).
    return {
        "prompt": prompt,
        "chosen": _decode(tokenizer, chosen.token_ids),
        "rejected": _decode(tokenizer, rejected.token_ids),
    }


def _llama_factory_row(_: PreTrainedTokenizerBase, prompt: str, chosen: Response, rejected: Response) -> _Row:
    """Return LLaMA-Factory's preference data in sharegpt format (github.com/hiyouga/LLaMA-Factory, data/README.md)."""
    return {
        "conversations": [{"from": "human", "value": prompt}],
        "chosen": {"from": "gpt", "value": chosen.text},
        "rejected": {"from": "gpt", "value": rejected.text},
    }


def _openrlhf_row(_: PreTrainedTokenizerBase, prompt: str, chosen: Response, rejected: Response) -> _Row:
    """Return a row for OpenRLHF (github.com/OpenRLHF/OpenRLHF, openrlhf/datasets/reward_dataset.py)."""
    # For --data.apply_chat_template --data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected:
    # ``RewardDataset`` concatenates lists of messages, renders them, and tokenises the text without special tokens.
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
    }


_ROWS: dict[str, Callable[[PreTrainedTokenizerBase, str, Response, Response], _Row]] = {
    "trl": _trl_row,
    "trl-exploded": _trl_row,
    "llama-factory": _llama_factory_row,
    "openrlhf": _openrlhf_row,
}


def _notes(counts: Counter[str], moved: Sequence[int]) -> Iterator[str]:
    total = counts["samples"]
    if counts["forged"]:
        yield (
            f"left out {counts['forged']} of {total} samples: their text holds control tokens, which other trainers "
            "would take for real ones"
        )
    if moved:
        text = "the text is the same"
        if counts["reworded"]:
            text = f"of {counts['reworded']} the text differs too: the chat template changes it"
        yield (
            f"{len(moved)} of {total - counts['forged']} prompts tokenise to other ids than the model saw, in "
            f"{moved[len(moved) // 2]} tokens each (median), where pieces of the prompt meet; {text}"
        )
    if counts["left"]:
        yield f"left out {counts['left']} further dis-preferred responses: --format trl-exploded writes a row for each"
    if counts["cut"]:
        yield f"{counts['cut']} responses met the length cap and did not end; the trainer will end them"


def _write_llama_factory(folder: Path, name: str, rows: Iterable[_Row]) -> int:
    """Write ``NAME.jsonl``, add its entry to ``dataset_info.json``, and return the number of rows."""
    info_file = folder / "dataset_info.json"
    info = read_json(info_file) if info_file.exists() else {}
    if not isinstance(info, dict):
        raise UserError("not LLaMA-Factory's list of data sets", where=str(info_file), mend="choose another -o")
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": f"{name}.jsonl", "formatting": "sharegpt", "ranking": True, "columns": columns}
    num_rows = _write_rows(folder / f"{name}.jsonl", rows)
    write_json(info_file, {**info, name: entry})
    return num_rows


def _write_rows(path: Path, rows: Iterable[_Row]) -> int:
    """Write rows to a file, atomically, and return their number. Lines go to disk as they come; of a parquet file
    memory holds all rows, as text, because they decide the types of its columns."""
    make_folder_of(path)
    count = 0
    with replacing(path) as file:
        if path.suffix == ".jsonl":
            for row in rows:
                file.write((strict_dumps(row) + "\n").encode("utf-8"))
                count += 1
            return count
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = [pa.table({}), *(pa.Table.from_pylist([row]) for row in rows)]
        whole = pa.concat_tables(tables, promote_options="permissive")
        pq.write_table(whole.combine_chunks(), file)
        return int(whole.num_rows)


def _check_output(form: ExportFormat, output: Path) -> None:
    check_place(output)
    if form == "llama-factory":
        if output.is_file() or output.suffix in (".json", ".jsonl", ".parquet"):
            raise UserError("a file, not a folder", where=str(output), mend="give -o FOLDER")
    elif output.suffix not in (".parquet", ".jsonl") or output.is_dir():
        raise UserError("not a .parquet or .jsonl file", where=str(output), mend="give -o FILE.parquet or FILE.jsonl")
