"""``logodata``: build, merge, questions, inspect, stats, export, push."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from logodata import __version__, commands
from logodata.common.arguments import parse_arguments
from logodata.common.errors import run_command
from logodata.models.loading import DType

_EXPORT_FORMATS = ("text", "trl", "trl-exploded", "llama-factory", "openrlhf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``logodata`` program."""
    options = parse_arguments(_parser(), arguments)
    return run_command("logodata", lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="logodata", description="Preference data from long documents.")
    parser.add_argument("--version", action="version", version=f"logo-align {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    build = subparsers.add_parser(
        "build",
        help="make a data set from documents and questions",
        description="Make LOGO preference data. SOURCE is a recipe (a .yaml, or a shipped one's name), or documents "
        "with questions: a JSON, CSV or parquet file, a folder, a hub data set. An interrupted build goes on when the "
        "same command is run again.",
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
        help="with documents.jsonl: the recipe (default: the paper's settings, with the best chunks instead of its "
        "threshold; for --model embedded the shipped embedded.yaml, without what it says of its own documents)",
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
    build.set_defaults(command=commands.build_command)

    merge = subparsers.add_parser("merge", help="put the parts of a build (--shard i/n) together")
    merge.add_argument("parts", type=Path, nargs="+", metavar="DIR", help="folders of all parts, in any order")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the data set")
    merge.add_argument("--json", action="store_true", help="print the statistics as JSON, and nothing else")
    merge.set_defaults(command=commands.merge_command)

    questions = subparsers.add_parser(
        "questions",
        help="have a model write questions on raw documents",
        description="Have a model write questions on documents that have none, from groups of chunks. Writes documents "
        "with questions for logodata build; NAME.rejected.jsonl says why others were not kept. An interrupted command "
        "goes on when it is run again.",
    )
    questions.add_argument(
        "corpus", metavar="CORPUS", help="folder of text files, JSON, CSV or parquet file, hub data set"
    )
    questions.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings, e.g. questions_per_document=4 engine.kind=vllm"
    )
    questions.add_argument("-o", "--output", required=True, type=Path, metavar="NAME.jsonl", help="the file to write")
    questions.add_argument("--model", required=True, help="the model that writes: a folder, a hub name, or 'embedded'")
    questions.add_argument("--dry-run", action="store_true", help="print the resolved settings and touch nothing")
    questions.add_argument("--schema", action=_PrintSchema, nargs=0, help="print the JSON schema of the settings")
    questions.set_defaults(command=commands.questions_command)

    inspect = subparsers.add_parser("inspect", help="show samples as text, critical chunks marked")
    inspect.add_argument("data", type=Path, help="folder of a data set")
    inspect.add_argument("--id", help="id of the sample (default: the first ones)")
    inspect.add_argument(
        "-n", type=_positive, help="how many samples (default 1; with --html 50, and 5 questions a reason)"
    )
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write a page, also of what was not kept and why")
    inspect.set_defaults(command=commands.inspect_command)

    stats = subparsers.add_parser(
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
    scoring.add_argument(
        "--dtype", choices=get_args(DType), help="of the weights (default: as in the build; on a CPU float32)"
    )
    scoring.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    stats.set_defaults(command=commands.stats_command)

    export = subparsers.add_parser("export", help="write the data as text, or in another trainer's format")
    export.add_argument("data", type=Path, help="folder of a data set")
    export.add_argument(
        "--format",
        choices=_EXPORT_FORMATS,
        required=True,
        help="text: a row a sample, with prompt and all responses as text; trl: a row a sample, with its first "
        "dis-preferred response; the others: a row for each of them",
    )
    export.add_argument(
        "-o", "--output", required=True, type=Path, help="the .parquet or .jsonl file; llama-factory: a folder"
    )
    export.add_argument("--model", help="where the model of the build is now (default: its name in manifest.json)")
    export.set_defaults(command=commands.export_command)

    push = subparsers.add_parser("push", help="upload a data set to the hub")
    push.add_argument("data", type=Path, help="folder of a data set")
    push.add_argument("repository", metavar="ORG/NAME", help="data set on the hub; made if there is none")
    push.add_argument("--private", action="store_true", help="make it private; refused if it is public already")
    push.add_argument("--revision", metavar="BRANCH", help="branch to upload to; made if there is none (default: main)")
    push.set_defaults(command=commands.push_command)
    return parser


class _PrintSchema(argparse.Action):
    """Prints and ends, as ``--help`` does: what the command needs otherwise is not asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the schema of ``logodata questions``."""
        commands.print_questions_schema()
        parser.exit()


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)
