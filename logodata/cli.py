"""``logodata``: build, preview, merge, questions, import, inspect, stats, export, push."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logodata.common.command_line import Program, print_json, print_recipe, run_program
from logodata.common.errors import UserError
from logodata.common.options import (
    FILE,
    INPUT,
    OUTPUT,
    PATH_OR_NAME,
    POSITIVE,
    Choice,
    Function,
    RecipeName,
    TokenCount,
    dry_run_option,
    dtype_option,
    json_option,
    model_option,
    option,
    output_option,
    overrides_argument,
)

if TYPE_CHECKING:
    from logodata.build.ray_driver import RayOptions
    from logodata.contract import Stats
    from logodata.pairs.settings import ImportRecipe
    from logodata.questions.settings import QuestionsRecipe
    from logodata.recipe.settings import BuildRecipe

PAIR_FORMATS = (
    *("auto", "standard", "standard-implicit", "conversational", "conversational-implicit"),
    *("sharegpt", "alpaca", "context", "ratings", "text"),
)
PROMPT_FORMS = ("auto", "plain", "rendered", "message")
EXPORT_FORMATS = ("text", "trl", "trl-exploded", "llama-factory", "openrlhf")
_PROCESSES, _LOG_PROBS, _ESTIMATES = "Several processes", "Log-probabilities", "Estimates"
_PRICE, _RATE = click.FloatRange(min=0), click.FloatRange(min=0, min_open=True)

_data = click.argument("data", type=FILE, metavar="DIR", help="folder of a data set")
_folders = click.argument("folders", type=FILE, nargs=-1, required=True, metavar="DIR...", help="folders of data sets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process, and return the exit code."""
    return run_program(program, argv)


@click.group("logodata", cls=Program)
def program() -> None:
    """Preference data from long documents."""


def _build_recipe() -> type[BuildRecipe]:
    from logodata.recipe.settings import BuildRecipe

    return BuildRecipe


def _questions_recipe() -> type[QuestionsRecipe]:
    from logodata.questions.settings import QuestionsRecipe

    return QuestionsRecipe


def _build_inputs(function: Function) -> Function:
    """Add what says which build: SOURCE, KEY=VALUE, --model, --recipe."""
    for decorate in (
        option(
            "--recipe RECIPE",
            "with documents as SOURCE: the recipe (default: the paper's settings, with the best chunks instead of its "
            "threshold; with --model embedded the shipped embedded.yaml, without what it says of its own documents)",
            INPUT,
            type=RecipeName(path_type=Path),
        ),
        model_option("the model that will be trained: a folder, a hub name, or 'embedded'"),
        option(
            "--adapter DIR",
            "the adapter that writes the responses with it, such as RUN/final of the round before; same as adapter=DIR",
            INPUT,
            type=PATH_OR_NAME,
        ),
        option(
            "--questions-only",
            "keep every question with its context and its reference, and generate nothing: data for logoeval qa",
            INPUT,
        ),
        overrides_argument(_build_recipe, "contexts.num_chunks=8"),
        click.argument("source", type=RecipeName(), required=False, help="a recipe, or documents with questions"),
    ):
        function = decorate(function)
    return function


@program.command(
    examples="""
    logodata build documents.jsonl --model org/model -o runs/data
    logodata build documents.jsonl --model org/model -o runs/data contexts.num_chunks=8 evaluator.name=lexical
    logodata build heldout.jsonl --model org/model -o runs/questions --questions-only
    logodata build llama3-80k --dry-run
    logodata build my.yaml -o runs/shard-1 --shard 1/4
    """
)
@_build_inputs
@output_option("folder of the data set")
@json_option()
@dry_run_option("print the resolved recipe and touch nothing (logodata preview reads the documents, too)")
@option(
    "--shard I/N",
    "build shard I of N, or I to J (I-J/N); documents are dealt by their ids, and logodata merge joins the shards",
    _PROCESSES,
)
@option("--deal-in-turn", "with --shard: deal the documents in their order; few come out more even", _PROCESSES)
@option(
    "--executor",
    "local: this process. ray: an engine on every GPU of this machine, or of a cluster with --ray-address",
    _PROCESSES,
    type=Choice(("local", "ray")),
    default="local",
)
@option(
    "--ray-address ADDRESS",
    "a running cluster: auto, HOST:PORT or ray://HOST:PORT (default: Ray is started on this machine)",
    _PROCESSES,
)
@option("--workers N", "with --executor ray: how many engines (default: what fits)", _PROCESSES, type=POSITIVE)
def build(
    source: str | None,
    overrides: Sequence[str],
    model: str | None,
    adapter: str | None,
    recipe: Path | None,
    questions_only: bool,
    output: Path | None,
    as_json: bool,
    dry_run: bool,
    shard: str | None,
    deal_in_turn: bool,
    **ray: Any,
) -> None:
    """Make a data set from documents and questions.

    SOURCE is a recipe (a .yaml file, or the name of one that comes with the project), or documents with questions: a
    JSON, CSV or parquet file, a folder (also of PDF, HTML, Word and EPUB files beside a table of questions), or a data
    set on the hub. An interrupted build goes on when the same command is run again.
    """
    from logodata.build.shards import BuildShard
    from logodata.recipe.settings import load_build_recipe

    if deal_in_turn and not shard:
        raise UserError("--deal-in-turn deals documents to shards", mend="give --shard I/N too, or leave it out")
    build_shard = BuildShard.parse(shard, in_turn=deal_in_turn) if shard else None
    cluster = _ray_options(**ray)
    settings = load_build_recipe(source, recipe, model, overrides, adapter=adapter, questions_only=questions_only)
    if dry_run:
        (print_json if as_json else print_recipe)({"build": settings.model_dump(mode="json")})
        return
    if output is None:
        raise UserError("no folder for the data set", mend="give -o DIR")
    from logodata.build.build import build

    _say_built(build(settings, output, build_shard, cluster), output, as_json)


@program.command(
    examples="""
    logodata preview documents.jsonl --model org/model
    logodata preview books/ --model org/model --tokens-per-s 1500 source.max_documents=100
    logodata preview llama3-80k --prompt-price 0.2 --response-price 0.6 engine.kind=openai 'engine.base_urls=[...]'
    """
)
@_build_inputs
@json_option("print the numbers and contexts as JSON, and nothing else")
@option("--prompt-price X", "a server's price for a million prompt tokens, in any currency", _ESTIMATES, type=_PRICE)
@option("--response-price X", "its price for a million response tokens", _ESTIMATES, type=_PRICE)
@option(
    "--tokens-per-s X",
    "how many tokens, read and written, the engine takes in a second: the progress of a build shows it",
    _ESTIMATES,
    type=_RATE,
)
def preview(
    source: str | None,
    overrides: Sequence[str],
    model: str | None,
    adapter: str | None,
    recipe: Path | None,
    questions_only: bool,
    as_json: bool,
    prompt_price: float | None,
    response_price: float | None,
    tokens_per_s: float | None,
) -> None:
    """Show what a build would do, before anything is generated.

    It reads SOURCE as build does, and shows documents, chunks, questions, five contexts, and the prompts, tokens, time
    and cost of the build. It loads the model's tokenizer and no weights.
    """
    from logodata.recipe.settings import load_build_recipe

    if (prompt_price is None) != (response_price is None):
        raise UserError("one price of two", mend="give --prompt-price and --response-price")
    prices = None if prompt_price is None or response_price is None else (prompt_price, response_price)
    settings = load_build_recipe(source, recipe, model, overrides, adapter=adapter, questions_only=questions_only)
    from logodata.build.preview import preview

    found = preview(settings, prices=prices, tokens_per_s=tokens_per_s)
    if as_json:
        print_json(found.to_json())
        return
    from logodata.build.preview_text import print_preview

    print_preview(found)


def _ray_options(executor: str, ray_address: str | None, workers: int | None) -> RayOptions | None:
    if executor == "ray":
        from logodata.build.ray_driver import RayOptions

        return RayOptions(ray_address, workers)
    if ray_address is not None or workers is not None:
        raise UserError("--ray-address and --workers belong to Ray", mend="add --executor ray")
    return None


@program.command(examples="logodata merge runs/shard-1 runs/shard-2 runs/shard-3 runs/shard-4 -o runs/data")
@_folders
@output_option("folder of the data set", required=True)
@json_option()
def merge(folders: Sequence[Path], output: Path, as_json: bool) -> None:
    """Put the shards of a build (--shard i/n) together, in any order."""
    from logodata.build.join_shards import merge

    _say_built(merge(folders, output), output, as_json)


def _say_built(stats: Stats, output: Path, as_json: bool) -> None:
    from logodata.common.console import console
    from logodata.dataset.card import describe

    if as_json:
        print_json({"output": str(output), **stats.to_json()})
        return
    names = ("data/", "stats.json", "rejected.jsonl", "decisions.jsonl", "README.md")
    files = ", ".join(name for name in names if (output / name).exists())
    console.print(f"{describe(stats)}\nwrote {output}: {files}", markup=False, soft_wrap=True)


@program.command(
    examples="""
    logodata questions books/ --model org/model -o questions.jsonl
    logodata questions papers/ --model org/model -o questions.jsonl
    logodata questions books/ --model org/model -o questions.jsonl questions_per_document=4 engine.kind=vllm
    """
)
@click.argument("corpus", type=PATH_OR_NAME, help="folder or file of documents, or hub data set")
@overrides_argument(_questions_recipe, "questions_per_document=4")
@model_option("the model that writes: a folder, a hub name, or 'embedded'", required=True)
@output_option("the file to write", "NAME.jsonl", required=True)
@dry_run_option("print the resolved settings and touch nothing")
def questions(corpus: str, overrides: Sequence[str], model: str, output: Path, dry_run: bool) -> None:
    """Have a model write questions on raw documents.

    It writes them from groups of chunks. The result is documents with questions for logodata build; NAME.rejected.jsonl
    says why others were not kept. An interrupted command goes on when it is run again.
    """
    from logodata.common.console import console
    from logodata.common.recipes.reading import as_overrides, load_recipe
    from logodata.questions.settings import QuestionsRecipe
    from logodata.questions.writing import describe_questions, write_questions

    given = as_overrides({"source.path": corpus, "model": model})
    recipe = load_recipe(QuestionsRecipe, "build", None, [*given, *overrides])
    if dry_run:
        print_recipe(recipe.model_dump(mode="json"))
        return
    stats = write_questions(recipe, output)
    if stats:
        line = f"{describe_questions(stats)}\nwrote {output}: logodata build {output} -o DIR"
        console.print(line, markup=False, soft_wrap=True)


def _import_recipe() -> type[ImportRecipe]:
    from logodata.pairs.settings import ImportRecipe

    return ImportRecipe


@program.command(
    "import",
    examples="""
    logodata import pairs.jsonl --model org/model -o runs/data
    logodata import org/name:train_prefs --model org/model -o runs/data
    logodata import pairs.csv --model org/model -o runs/data columns.chosen=better columns.rejected=worse
    """,
)
@click.argument(
    "pairs", type=PATH_OR_NAME, help="JSON, CSV or parquet file, folder, or hub data set; PATH:NAME is a split"
)
@overrides_argument(_import_recipe, "columns.chosen=better")
@model_option("the model that will be trained: a folder, a hub name, or 'embedded'", required=True)
@option("--format FORMAT", "form of the rows (default: recognised from their columns)", type=Choice(PAIR_FORMATS))
@option("--prompt FORM", "what a prompt of one text is (default: recognised)", type=Choice(PROMPT_FORMS))
@option("--group", "rows with the same prompt and preferred response are one sample")
@option("--chunk-tokens N", "cut documents or prompts into chunks, for the paper's positions", type=TokenCount())
@output_option("folder of the data set")
@json_option()
@dry_run_option("print the resolved settings and touch nothing")
def import_(
    pairs: str,
    overrides: Sequence[str],
    model: str,
    output: Path | None,
    as_json: bool,
    dry_run: bool,
    group: bool,
    **options: Any,
) -> None:
    """Make a data set from preference pairs that you have.

    It reads the formats of TRL, OpenRLHF and LLaMA-Factory, rated completions, answers on documents, and what logodata
    export writes. What it understood is said in one line; rejected.jsonl says why pairs were left out.
    """
    from logodata.common.recipes.reading import as_overrides, load_recipe
    from logodata.pairs.settings import ImportRecipe

    given = as_overrides({"path": pairs, "model": model, "group": group or None, **options})
    recipe = load_recipe(ImportRecipe, "build", None, [*given, *overrides])
    if dry_run:
        (print_json if as_json else print_recipe)(recipe.model_dump(mode="json"))
        return
    if output is None:
        raise UserError("no folder for the data set", mend="give -o DIR")
    from logodata.pairs.importing import import_pairs

    _say_built(import_pairs(recipe, output), output, as_json)


@program.command(
    examples="""
    logodata inspect runs/data
    logodata inspect runs/data --html samples.html
    """
)
@_data
@option("--id ID", "id of the sample (default: the first ones)", name="sample_id")
@option("-n, --num N", "how many samples (default 1; with --html 50, and 5 questions a reason)", type=POSITIVE)
@option("--html FILE", "write a page, also of what was not kept and why", type=FILE)
def inspect(data: Path, sample_id: str | None, num: int | None, html: Path | None) -> None:
    """Show samples as text, with the critical chunks marked."""
    if html:
        from logodata.common.console import console
        from logodata.dataset.inspect_page import write_page

        shown = write_page(data, html, sample_id, num)
        console.print(f"wrote {shown} to {html}", markup=False, soft_wrap=True)
        return
    from logodata.dataset.inspect_text import print_samples

    print_samples(data, sample_id, 1 if num is None else num)


@program.command(
    examples="""
    logodata stats runs/data
    logodata stats runs/entity runs/lexical
    logodata stats runs/data --log-probs -n 200
    """
)
@_folders
@json_option("print stats.json, or the log-probabilities, as JSON")
@option("--log-probs", "score the responses with the model of the build, before it is trained", _LOG_PROBS)
@option("--model NAME", "where that model is now (default: as in manifest.json)", _LOG_PROBS, type=PATH_OR_NAME)
@option("-n, --num N", "how many samples to score (default 50)", _LOG_PROBS, type=POSITIVE)
@dtype_option("of the weights (default: as in the build; on a CPU float32)", _LOG_PROBS)
@option("--device DEVICE", "cpu, cuda, cuda:1 (default: CUDA where there is one)", _LOG_PROBS)
def stats(folders: Sequence[Path], as_json: bool, log_probs: bool, **scoring: Any) -> None:
    """Show yield and purity by source and kind, or how likely the model finds the responses.

    Several folders make a table side by side. With --log-probs preferred responses that are much less likely than the
    others are a warning: they saturate the loss.
    """
    if log_probs:
        _log_probs(folders, as_json, **scoring)
        return
    for name, value in scoring.items():
        if value is not None:
            raise UserError(f"--{name} says how to score responses", mend="add --log-probs, or leave it out")
    from logodata.dataset.stats_table import print_stats

    print_stats(folders, as_json=as_json)


def _log_probs(
    folders: Sequence[Path], as_json: bool, model: str | None, num: int | None, dtype: Any, device: str | None
) -> None:
    from logodata.dataset.samples import read_manifest, sample_files
    from logodata.models.loading import check_model

    if len(folders) > 1:
        raise UserError("--log-probs scores one data set", mend="run it for each folder")
    # Before torch is imported, which takes seconds.
    sample_files(folders[0])
    check_model(model or read_manifest(folders[0]).model)
    from logodata.dataset import log_probs

    report = log_probs.measure(folders[0], model=model, num_samples=num or 50, dtype=dtype, device=device or "auto")
    if as_json:
        print_json(report.to_json())
    else:
        log_probs.show(report)


@program.command(
    examples="""
    logodata export runs/data --format trl -o trl.parquet
    logodata export runs/data --format llama-factory -o llama-factory/
    """
)
@_data
@option(
    "--format",
    "text: a row a sample, with prompt and all responses as text; trl: a row a sample, with its first dis-preferred "
    "response; the others: a row for each of them",
    OUTPUT,
    name="format_",
    type=Choice(EXPORT_FORMATS),
    required=True,
)
@output_option("the .parquet or .jsonl file; llama-factory: a folder", "FILE", required=True)
@model_option("where the model of the build is now (default: its name in manifest.json)")
def export(data: Path, format_: Any, output: Path, model: str | None) -> None:
    """Write the data as text, or in another trainer's format."""
    from logodata.common.console import console, note
    from logodata.dataset.export import export

    written = export(data, format_, output, model=model)
    for text in written.notes:
        note(text)
    console.print(f"wrote {written.rows} rows to {output}", markup=False, soft_wrap=True)


@program.command(examples="logodata push runs/data org/name --private")
@_data
@click.argument("repository", metavar="ORG/NAME", help="data set on the hub; made if there is none")
@option("--private", "make it private; refused if it is public already")
@option("--revision BRANCH", "branch to upload to; made if there is none (default: main)")
def push(data: Path, repository: str, private: bool, revision: str | None) -> None:
    """Upload a data set to the hub."""
    from logodata.dataset.push import push

    print(push(data, repository, private=private, revision=revision))
