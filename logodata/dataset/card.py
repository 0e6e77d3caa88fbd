"""Describe a build in words: the line in the terminal, and the dataset card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from logodata.common.printable import markdown_cell, markdown_code, markdown_text
from logodata.contract import ErrorPattern, GroupStats, ImportManifest, Manifest, PairFormat, PromptForm, Stats
from logodata.engines.settings import asked_model
from logodata.judge.agreement import describe_verdicts
from logodata.judge.grade_agreement import describe_grades
from logodata.judge.settings import JudgeSettings
from logodata.recipe.settings import BuildRecipe

PURITY = (
    "Purity: the share of kept pairs that no verdict contradicts, neither the rules' nor a model judge's in either "
    "wording. It is the judge's word, not the truth: read some pairs yourself."
)

_MOST_GROUPS = 20

_THRESHOLDS = {"entity": "more than {:g} shared entities", "embedding": "a cosine above {:g}"}
"""The meaning of a threshold, for each evaluator that takes one."""


def describe(stats: Stats) -> str:
    """Return a line with the questions (of an import: the pairs) that were kept, where their responses came from, and why
    the others were not."""
    origins = stats.kept_by_origin
    cached = origins.get("cache", 0)
    source = f" ({origins.get('live', 0)} built live, {cached} with responses from the cache)" if cached else ""
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats.rejected_by_reason.items())
    what = "questions" if stats.evaluator else "pairs"
    return f"kept {stats.kept} of {stats.questions} {what}{source}" + (f"; not kept: {reasons}" if reasons else "")


def describe_patterns(stats: Stats) -> str:
    """Return a line on how the dis-preferred responses go wrong."""
    meanings: dict[ErrorPattern | Literal["right"], str] = {
        "hallucination": "speak of the question's entities and are wrong (hallucination)",
        "instruction_unfollowing": "share no entity with the question (instruction unfollowing)",
        "right": "are right: the judge was off",
    }
    patterns = stats.dispreferred_error_patterns
    total = sum(patterns.values())
    if not total:
        return "without references nothing tells them"
    parts = (f"{patterns[name]} {meaning}" for name, meaning in meanings.items() if patterns.get(name))
    return f"of {total} dis-preferred responses {', '.join(parts)}"


def dataset_card(manifest: Manifest, recipe: BuildRecipe, stats: Stats) -> str:
    """Return README.md of the data set, with the header that ``datasets.load_dataset`` reads."""
    generation, contexts, evaluator = recipe.generation, recipe.contexts, recipe.evaluator
    critical = (
        _THRESHOLDS[evaluator.name].format(contexts.critical_threshold)
        if contexts.critical_top is None
        else f"the {contexts.critical_top} best-scored chunks"
    )
    preferred = {
        "model": "the model's own greedy answer from the critical chunks (as in the paper)",
        "best_of_n": f"the first right one of {generation.num_candidates} answers of the model from the critical chunks",
        "guided": "the reference answer in the model's own words: it saw the critical chunks, the question and the reference. "
        "This departs from the paper, where the model answers unaided",
        "reference": "the reference answer itself, not in the model's words. This departs from the paper",
        "best_versus_worst": f"the best one by its grade of {generation.num_candidates} answers that the model samples from the "
        "whole context. This departs from the paper",
    }[generation.preferred]
    others = {
        "contexts": f"the model's greedy answers from irrelevant chunks alone{_mixed(contexts.mixed_ratios, stats)}",
        "training": "the model's greedy answer from the whole context. This departs from the paper",
        "critical_wrong": "the first wrong one of the same answers. This departs from the paper",
        "none": "none: the rows are right answers for instruct tuning, or questions to ask. This departs from the paper",
    }[generation.rejected]
    if generation.grades_answers:
        others = "the worst one of the same answers"
    if recipe.adapter is not None and generation.rejected_by == "base":
        others += ". Here the model answers without its adapter"
    summary = describe(stats)
    return f"""{_HEADER}
# LOGO preference data from {markdown_code(manifest.source.path)}

{summary[0].upper()}{summary[1:]}.

{_row(stats)}
Prompts are token ids (`prompt_ids`, of the model's tokenizer), responses token ids with their text; texts of the chunks are in `chunks`. All
as text: `logodata export DIR --format text -o FILE.parquet`, then `load_dataset("parquet", data_files="FILE.parquet")`.

- **Documents**: {markdown_code(manifest.source.path)} (sha256 {manifest.source.sha256}), in chunks of {recipe.chunking.chunk_tokens} tokens.
- **Critical chunks**: {critical}, by the `{evaluator.name}` evaluator, compared with the {evaluator.query.replace("_", " ")}.
- **Context**: {contexts.num_chunks} chunks in document order; all critical ones, filled up with irrelevant ones.
- **Preferred**: {preferred}.
- **Dis-preferred**: {others}.
{_patterns(stats)}- **Judge**: {_describe_judge(recipe.judge)}.{_model_judge(manifest, stats)}{_solve(recipe, stats)}
- **Model**: {_model(manifest, recipe)}, engine {markdown_text(manifest.engine)}, logo-align {manifest.logo_align}, seed {recipe.seed}.{_of_chat(manifest, recipe)}

{_endings(stats)}

{_statistics(stats)}

{_grouped(stats)}

{PURITY}

Each row of `rejected.jsonl` is a question that gave no sample, with its reason; each row of `decisions.jsonl` a response that was judged.
"""


FORMAT_NAMES: dict[PairFormat, str] = {
    "standard": "TRL's pairs of plain text with an explicit prompt",
    "standard-implicit": "TRL's pairs of plain text with an implicit prompt",
    "conversational": "TRL's conversational pairs with an explicit prompt",
    "conversational-implicit": "TRL's conversational pairs with an implicit prompt",
    "sharegpt": "LLaMA-Factory's pairs in sharegpt format",
    "alpaca": "LLaMA-Factory's pairs in alpaca format",
    "context": "pairs of answers to a question about a document",
    "ratings": "rated responses to a prompt",
    "text": "the text that logodata export --format text writes",
}

PROMPT_NAMES: dict[PromptForm, str] = {
    "plain": "prompts are text without a chat template",
    "rendered": "prompts are text with the chat template applied, control tokens in it are recognised",
    "message": "each prompt is the message of a user",
}


def import_card(manifest: ImportManifest, stats: Stats) -> str:
    """Return README.md of imported pairs."""
    pairs, summary = manifest.pairs, describe(stats)
    prompts = "conversations under the model's chat template"
    if pairs.prompt is not None:
        prompts = PROMPT_NAMES[pairs.prompt]
    chunks = f"of {pairs.chunk_tokens} tokens" if pairs.chunk_tokens else "none were cut"
    left_out = "\n".join(
        f"| {markdown_cell(reason.replace('_', ' '))} | {count} |" for reason, count in stats.rejected_by_reason.items()
    )
    reasons = f"\n| pairs not kept | |\n| --- | --- |\n{left_out}\n" if left_out else ""
    return f"""{_HEADER}
# Preference pairs from {markdown_code(manifest.source.path)}

{summary[0].upper()}{summary[1:]}.

A row is one prompt with a preferred response and one or more dis-preferred ones. Prompts (`prompt_ids`) and responses are token ids of the
model's tokenizer. The pairs were made elsewhere and imported; nothing was generated or judged here. As text: `logodata export DIR --format text
-o FILE.parquet`.

- **Pairs**: {markdown_code(manifest.source.path)} (sha256 {manifest.source.sha256}), read as {FORMAT_NAMES[pairs.format]}.
- **Prompts**: {prompts}. **Chunks**, between which positions may have gaps: {chunks}.
- **Tokenizer and template**: {markdown_code(manifest.model)} ({manifest.tokenizer_fingerprint}), logo-align {manifest.logo_align}.

{_statistics(stats)}
{reasons}
Each row of `rejected.jsonl` is a pair that was not kept, with its reason.
"""


_HEADER = """---
configs:
- config_name: default
  data_files: data/*.parquet
tags:
- preference
- long-context
- LOGO
---
"""


def _statistics(stats: Stats) -> str:
    """Return the statistics of all questions together, as a table in Markdown."""
    lines = ["| statistic | value |", "| --- | --- |"]
    lines += [f"| {markdown_cell(name)} | {markdown_cell(show_value(value))} |" for name, value in named_values(stats)]
    return "\n".join(lines)


_ONLY_BUILT = (
    *("yield", "purity", "evaluator", "preferred_judged", "dispreferred_judged", "answer_in_critical"),
    *("single_critical_chunk", "dispreferred_error_patterns", "kept_by_kind", "kept_by_origin"),
    *("preferred_word_share", "dispreferred_word_share", "preferred_token_f1", "dispreferred_token_f1"),
)
"""Statistics that mean nothing of imported pairs."""


def named_values(stats: Stats) -> Iterator[tuple[str, Any]]:
    """Yield the statistics of all questions together, as JSON, each after its name in words; of imported pairs those
    that they have."""
    left_out = [f"by_{name}" for name in stats.groups] + ([] if stats.evaluator else list(_ONLY_BUILT))
    for name, value in stats.to_json().items():
        if name not in left_out and value is not None:
            yield name.replace("_", " "), value


def _model(manifest: Manifest, recipe: BuildRecipe) -> str:
    name = markdown_code(asked_model(recipe.engine, manifest.model))
    adapter = "" if recipe.adapter is None else f" with the adapter {markdown_code(str(recipe.adapter))}"
    return f"{name}{adapter} ({markdown_text(manifest.model_fingerprint)})"


def _of_chat(manifest: Manifest, recipe: BuildRecipe) -> str:
    """Say how a chat server gives responses: as texts, which another model's tokenizer puts into tokens."""
    if recipe.engine.kind != "chat":
        return ""
    greedy = "" if recipe.engine.decodes_as_told else " It decoded by its own settings: no response is greedy."
    return (
        f" A chat server gave its responses as texts, and the tokenizer of {markdown_code(manifest.model)} put them into tokens. "
        f"Responses whose tokens do not give back their text are in no pair (`tokens_lose_text`).{greedy}"
    )


def _mixed(ratios: Sequence[float], stats: Stats) -> str:
    if not ratios:
        return ""
    shares = " and ".join(f"{ratio:.0%}" for ratio in ratios)
    return (
        f", and from contexts that keep {shares} of the critical chunks, one at least: in the "
        f"{stats.single_critical_chunk} samples with a single critical chunk such a context is the prompt's own"
    )


def _grouped(stats: Stats) -> str:
    """Return yield and purity by source file and kind of question, as a table in Markdown."""
    lines = ["| questions | asked | kept | purity | not kept |", "| --- | --- | --- | --- | --- |"]
    for name, all_groups in stats.groups.items():
        groups, num_more = largest_groups(all_groups)
        for key, group in groups:
            asked = f"{group.questions} | {show_share(group.kept, group.yield_)}"
            reasons = markdown_cell(show_value(group.rejected_by_reason))
            cell = markdown_cell(f"{name}: {key}")
            lines.append(f"| {cell} | {asked} | {show_percent(group.purity)} | {reasons} |")
        if num_more:
            lines.append(f"| {name}: {num_more} more in `stats.json` | | | | |")
    return "\n".join(lines)


def largest_groups(groups: Mapping[str, GroupStats]) -> tuple[list[tuple[str, GroupStats]], int]:
    """Return the groups with the most questions, in their order, and the number of the others."""
    largest = set(sorted(groups, key=lambda key: -groups[key].questions)[:_MOST_GROUPS])
    return [(key, group) for key, group in groups.items() if key in largest], len(groups) - len(largest)


def _model_judge(manifest: Manifest, stats: Stats) -> str:
    if manifest.judge_model is None:
        return ""
    judge = (
        f"{markdown_code(manifest.judge_model)} ({manifest.judge_model_fingerprint}), "
        f"engine {markdown_text(str(manifest.judge_engine))}"
    )
    said = describe_verdicts(stats.model_judge) if stats.model_judge else "it was never asked"
    if stats.grades is not None:
        said = describe_grades(stats.grades)
    return f"\n- **Model judge**, after these rules: {judge}; {said}."


def _solve(recipe: BuildRecipe, stats: Stats) -> str:
    if recipe.solve is None or stats.solve is None:
        return ""
    least, most = recipe.solve.keep
    counts = ", ".join(f"{n}: {count}" for n, count in enumerate(stats.solve.histogram) if count)
    return (
        f"\n- **Questions** that the model answers right {least} to {most} times of {stats.solve.tries} from the whole context were "
        f"asked; questions by the number of right answers: {counts}."
    )


def _row(stats: Stats) -> str:
    others = f"{stats.dispreferred_per_sample} dis-preferred ones (LOGO, arXiv 2410.18533, section 3)"
    return f"A row is one prompt with a preferred response and {others if stats.dispreferred_tokens else 'no other'}."


def _patterns(stats: Stats) -> str:
    if not stats.dispreferred_tokens:
        return ""
    return f"- **Error patterns** (paper, Appendix C): {describe_patterns(stats)}.\n"


def _endings(stats: Stats) -> str:
    text = f"Preferred responses end by themselves {stats.preferred_ended:.0%} of the time"
    if stats.dispreferred_ended is None:
        return f"{text}."
    gap = "a gap\nhere teaches the model to end its answers, whatever they say."
    return f"{text}, dis-preferred ones {stats.dispreferred_ended:.0%}: {gap}"


def _describe_judge(judge: JudgeSettings) -> str:
    by_words = f"a response is right if it holds {judge.right_at:.0%} of the reference's content words"
    by_similarity = (
        f"if its embedding's cosine with the reference is {judge.similar_at:g} or more, and wrong below "
        f"{judge.dissimilar_below:g}"
    )
    rule = {
        "auto": f"{by_words}; beside references of more than {judge.long_answer_words} content words, {by_similarity}",
        "word_share": by_words,
        "token_f1": f"a response is right from a token F1 of {judge.right_at:g} on",
        "containment": "a response is right if the reference stands in it word for word",
        "similarity": f"a response is right {by_similarity}",
    }[judge.measure]
    most = judge.max_added_words
    added = "" if most is None else f"; a preferred one adds at most {most} content words to question and reference"
    return f"{'on' if judge.enabled else 'OFF'}; {rule}{added}"


def show_value(value: Any) -> str:
    """Return a statistic for people to read."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_value(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return f"[{', '.join(map(show_value, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_percent(share: float | None) -> str:
    """Return a share in percent, or a dash if it is None."""
    return "-" if share is None else f"{100 * share:.3g}%"


def show_share(count: int, share: float | None) -> str:
    """Return a count with its share in percent."""
    return f"{count} ({show_percent(share)})"
