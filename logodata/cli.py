"""``logodata``: build, merge, questions, inspect, stats, export, push."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from logodata import __version__
from logodata.common.arguments import parse_arguments
from logodata.common.errors import UserError, run_command
from logodata.models import DType

if TYPE_CHECKING:
    from logodata.distributed import RayOptions
    from logodata.recipe import BuildRecipe

_EXPORT_FORMATS = ("trl", "trl-exploded", "llama-factory", "openrlhf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``logodata`` program."""
    options = parse_arguments(_parser(), arguments)
    return run_command("logodata", lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="logodata", description="Preference data from long documents.")
    parser.add_argument("--version", action="version", version=f"logo-align {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser(
        "build",
        help="make a data set from documents and questions",
        description="Make LOGO preference data. SOURCE is a recipe (.yaml) or documents with questions: a JSON or "
        "parquet file, a folder, a hub data set. An interrupted build goes on when the same command is run again.",
    )
    build.add_argument("source", metavar="SOURCE", nargs="?", help="recipe.yaml or documents.jsonl")
    build.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="recipe fields to override, e.g. contexts.num_chunks=8"
    )
    build.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the data set")
    build.add_argument("--model", help="the model that will be trained: a folder, a hub name, or 'embedded'")
    build.add_argument(
        "--recipe",
        type=Path,
        help="with documents.jsonl: the recipe (default: the paper's settings; embedded.yaml for --model embedded)",
    )
    build.add_argument(
        "--shard",
        metavar="I/N",
        help="build part I of N (documents dealt by their ids); logodata merge joins the parts",
    )
    build.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="local: this process. ray: an engine on every GPU of this machine, or of a cluster with --ray-address",
    )
    build.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a running cluster: auto, HOST:PORT or ray://HOST:PORT (default: Ray is started on this machine)",
    )
    build.add_argument("--workers", type=int, metavar="N", help="with --executor ray: engines (default: what fits)")
    build.add_argument("--dry-run", action="store_true", help="print the resolved recipe and touch nothing")
    build.add_argument("--json", action="store_true", help="print the statistics as JSON, and nothing else")
    build.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe's build section")
    build.set_defaults(command=_build)

    merge = commands.add_parser("merge", help="put the parts of a build (--shard i/n) together")
    merge.add_argument("parts", type=Path, nargs="+", metavar="DIR", help="folders of all parts, in any order")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the data set")
    merge.add_argument("--json", action="store_true", help="print the statistics as JSON, and nothing else")
    merge.set_defaults(command=_merge)

    questions = commands.add_parser(
        "questions",
        help="have a model write questions on raw documents",
        description="Have a model write questions on documents that have none, from groups of chunks. Writes documents "
        "with questions for logodata build; NAME.rejected.jsonl says why others were not kept. An interrupted command "
        "goes on when it is run again.",
    )
    questions.add_argument("corpus", metavar="CORPUS", help="folder of text files, JSON or parquet file, hub data set")
    questions.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings, e.g. questions_per_document=4 engine.kind=vllm"
    )
    questions.add_argument("-o", "--output", required=True, type=Path, metavar="NAME.jsonl", help="the file to write")
    questions.add_argument("--model", required=True, help="the model that writes: a folder, a hub name, or 'embedded'")
    questions.add_argument("--dry-run", action="store_true", help="print the resolved settings and touch nothing")
    questions.set_defaults(command=_questions)

    inspect = commands.add_parser("inspect", help="show samples as text, critical chunks marked")
    inspect.add_argument("data", type=Path, help="folder of a data set")
    inspect.add_argument("--id", help="id of the sample (default: the first ones)")
    inspect.add_argument("-n", type=int, help="how many samples (default 1; with --html 50, and 5 questions a reason)")
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write a page, also of what was not kept and why")
    inspect.set_defaults(command=_inspect)

    stats = commands.add_parser(
        "stats", help="yield and purity by source and kind; how likely the model finds the responses"
    )
    stats.add_argument(
        "data", type=Path, nargs="+", metavar="DIR", help="folder of a data set; of several: a table side by side"
    )
    stats.add_argument("--json", action="store_true", help="print stats.json, or the log-probabilities, as JSON")
    scoring = stats.add_argument_group(
        "log-probabilities",
        "How likely the model finds the responses before it is trained: preferred ones far below the others saturate "
        "the loss.",
    )
    scoring.add_argument("--log-probs", action="store_true", help="score responses with the model of the build")
    scoring.add_argument("--model", help="where that model is now (default: its name in manifest.json)")
    scoring.add_argument("-n", type=_positive, help="how many samples to score (default 50)")
    scoring.add_argument("--dtype", choices=get_args(DType), help="of the weights (default: as in the build)")
    scoring.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    stats.set_defaults(command=_stats)

    export = commands.add_parser("export", help="write the data in another trainer's format")
    export.add_argument("data", type=Path, help="folder of a data set")
    export.add_argument(
        "--format",
        choices=_EXPORT_FORMATS,
        required=True,
        help="trl: a row a sample, with its first dis-preferred response; the others: a row for each of them",
    )
    export.add_argument(
        "-o", "--output", required=True, type=Path, help="the .parquet or .jsonl file; llama-factory: a folder"
    )
    export.set_defaults(command=_export)

    push = commands.add_parser("push", help="upload a data set to the hub")
    push.add_argument("data", type=Path, help="folder of a data set")
    push.add_argument("repository", metavar="ORG/NAME", help="data set on the hub; made if there is none")
    push.add_argument("--private", action="store_true", help="make it private; refused if it is public already")
    push.add_argument("--revision", metavar="BRANCH", help="branch to upload to; made if there is none (default: main)")
    push.set_defaults(command=_push)
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _build(options: argparse.Namespace) -> None:
    from logodata.common.console import console
    from logodata.recipe import BuildRecipe

    if options.schema:
        from logodata.common.recipe_io import recipe_schema

        print(recipe_schema(BuildRecipe))
        return
    from logodata.parts import Part

    part = Part.parse(options.shard) if options.shard else None
    cluster = _ray_options(options)
    recipe = _load_recipe(options)
    if options.dry_run:
        import yaml

        section = {"build": recipe.model_dump(mode="json")}
        if options.json:
            print(json.dumps(section, indent=2))
        else:
            console.print(yaml.safe_dump(section, sort_keys=False), markup=False, end="")
        return
    if options.output is None:
        raise UserError("no folder for the data set", mend="give -o DIR")
    from logodata.build import build

    _say_built(build(recipe, options.output, part, cluster), options)


def _ray_options(options: argparse.Namespace) -> RayOptions | None:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: no engine", mend="give 1 or more, or leave it out")
    if options.executor == "ray":
        from logodata.distributed import RayOptions

        return RayOptions(options.ray_address, options.workers)
    if options.ray_address is not None or options.workers is not None:
        raise UserError("--ray-address and --workers belong to Ray", mend="add --executor ray")
    return None


def _merge(options: argparse.Namespace) -> None:
    from logodata.merge import merge

    _say_built(merge(options.parts, options.output), options)


def _say_built(stats: dict[str, Any], options: argparse.Namespace) -> None:
    from logodata.common.console import console
    from logodata.report import describe

    output: Path = options.output
    if options.json:
        print(json.dumps({"output": str(output), **stats}, indent=2))
        return
    files = ", ".join(
        name
        for name in ("data/", "stats.json", "rejected.jsonl", "decisions.jsonl", "README.md")
        if (output / name).exists()
    )
    console.print(f"{describe(stats)}\nwrote {output}: {files}", markup=False, soft_wrap=True)


def _load_recipe(options: argparse.Namespace) -> BuildRecipe:
    from logodata.common.recipe_io import load_recipe, shipped_recipes
    from logodata.recipe import BuildRecipe

    if options.source is None:
        raise UserError("no source given", mend="give a recipe.yaml or a file documents.jsonl")
    overrides = list(options.overrides)
    if options.model:
        overrides.insert(0, f"model={json.dumps(options.model)}")
    if options.source.endswith((".yaml", ".yml")):
        if options.recipe:
            raise UserError(
                "two recipes given",
                where=f"{options.source}, {options.recipe}",
                mend="with --recipe, SOURCE is a .jsonl file",
            )
        path: Path | None = Path(options.source)
    else:
        overrides.insert(0, f"source.path={json.dumps(options.source)}")
        path = options.recipe
        if path is None and options.model == "embedded":
            path = shipped_recipes() / "embedded.yaml"
        if path is None and not options.model:
            raise UserError("no model given", mend="add --model NAME, a folder, or 'embedded'")
        if path is not None:
            # Those choices of a recipe belong to its own documents.
            overrides = [
                "source.max_documents=null",
                "source.max_questions_per_document=null",
                "source.kinds=null",
                "generation.cache=null",
                "judge.keep_bare_reference=true",
                *overrides,
            ]
    return load_recipe(BuildRecipe, "build", path, overrides)


def _questions(options: argparse.Namespace) -> None:
    from logodata.common.console import console
    from logodata.common.recipe_io import load_recipe
    from logodata.drafts import QuestionsRecipe
    from logodata.questions import describe_questions, write_questions

    given = [f"source.path={json.dumps(options.corpus)}", f"model={json.dumps(options.model)}"]
    recipe = load_recipe(QuestionsRecipe, "build", None, [*given, *options.overrides])
    if options.dry_run:
        import yaml

        console.print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), markup=False, end="")
        return
    stats = write_questions(recipe, options.output)
    if stats:
        line = f"{describe_questions(stats)}\nwrote {options.output}: logodata build {options.output} -o DIR"
        console.print(line, markup=False, soft_wrap=True)


def _inspect(options: argparse.Namespace) -> None:
    if options.html:
        from logodata.common.console import console
        from logodata.sample_page import write_page

        shown = write_page(options.data, options.html, options.id, options.n)
        console.print(f"wrote {shown} to {options.html}", markup=False, soft_wrap=True)
        return
    from logodata.sample_text import print_samples

    print_samples(options.data, options.id, 1 if options.n is None else options.n)


def _stats(options: argparse.Namespace) -> None:
    if options.log_probs:
        _log_probs(options)
        return
    for option in ("--model", "-n", "--dtype", "--device"):
        if getattr(options, option.lstrip("-")) is not None:
            raise UserError(f"{option} says how to score responses", mend="add --log-probs, or leave it out")
    from logodata.stats_table import print_stats

    print_stats(options.data, as_json=options.json)


def _log_probs(options: argparse.Namespace) -> None:
    from logodata import likelihood

    if len(options.data) > 1:
        raise UserError("--log-probs scores one data set", mend="run it for each folder")
    scoring = {"num_samples": options.n or 50, "dtype": options.dtype, "device": options.device or "auto"}
    report = likelihood.measure(options.data[0], model=options.model, **scoring)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        likelihood.show(report)


def _push(options: argparse.Namespace) -> None:
    from logodata.push import push

    print(push(options.data, options.repository, private=options.private, revision=options.revision))


def _export(options: argparse.Namespace) -> None:
    from logodata.common.console import console, note
    from logodata.export import export

    written = export(options.data, options.format, options.output)
    for text in written.notes:
        note(text)
    console.print(f"wrote {written.rows} rows to {options.output}", markup=False, soft_wrap=True)
