"""The report: one self-contained HTML page; its tables as Markdown and its numbers as JSON lie beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from logodata.common.files import make_folder_of, write_atomic, write_json
from logodata.common.markup import page, tag
from logoeval.compare.compare import Comparison
from logoeval.records import Curve
from logoeval.report.headline import headline, provenance_section, title
from logoeval.report.markdown_json import markdown, record
from logoeval.report.sections.curves import curve_sections, read_curves
from logoeval.report.sections.longbench import longbench_section
from logoeval.report.sections.longbench2 import longbench2_section
from logoeval.report.sections.needles import niah_section
from logoeval.report.sections.pairs import pairs_section
from logoeval.report.sections.perplexity import perplexity_section
from logoeval.report.sections.ruler import ruler_section
from logoeval.report.sections.saw_said import retrieval_section
from logoeval.report.sections.short import short_section
from logoeval.report.sections.tradeoff import tradeoff_section
from logoeval.report.sections.training import training_section
from logoeval.report.sections.training_data import data_section
from logoeval.report.sections.wrong_answers import errors_section
from logoeval.report.tables import Section

_FEWEST_LISTED = 4  # sections, below which a page needs no list of them


def write_report(
    comparison: Comparison,
    path: Path,
    *,
    data: Path | None = None,
    run: Path | None = None,
    curves: Sequence[Path] | Mapping[str, Path] = (),
) -> None:
    """Write ``path`` (HTML), and beside it the same with ``.md`` and ``.json``. ``data`` is the folder of the training
    data, ``run`` that of the training run; ``curves`` are those of tasks over checkpoints, perhaps by label.

    Raises:
        UserError: a folder does not hold what it should, or a file cannot be written.
    """
    found = read_curves(curves)
    sections = report_sections(comparison, data=data, run=run, curves=found)
    make_folder_of(path)
    write_atomic(path, report_page(comparison, sections))
    write_atomic(path.with_suffix(".md"), markdown(comparison, sections))
    write_json(path.with_suffix(".json"), record(comparison, sections, found).to_json())


def report_sections(
    comparison: Comparison, *, data: Path | None, run: Path | None, curves: Mapping[str, Curve]
) -> list[Section]:
    """Return what follows the headline, in order. A section whose numbers are not there is left out."""
    tasks = comparison.tasks
    sections = [
        longbench_section(comparison) if "longbench" in tasks else None,
        longbench2_section(comparison) if "longbench2" in tasks else None,
        tradeoff_section(comparison),
        pairs_section(comparison, data) if "pairs" in tasks else None,
        errors_section(comparison),
        niah_section(comparison) if "niah" in tasks else None,
        retrieval_section(comparison) if "niah" in tasks else None,
        *curve_sections(curves),
        ruler_section(comparison) if "ruler" in tasks else None,
        perplexity_section(comparison) if "ppl" in tasks else None,
        short_section(comparison) if "short" in tasks else None,
        data_section(data) if data else None,
        training_section(run) if run else None,
        provenance_section(comparison),
    ]
    return [section for section in sections if section is not None]


def report_page(comparison: Comparison, sections: Sequence[Section]) -> str:
    """Return the HTML page. All text from data is escaped; nothing is loaded from elsewhere."""
    style = resources.files("logoeval.report").joinpath("page.css").read_text(encoding="utf-8")
    links = (tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in sections)
    contents = tag("nav", tag("p", "In this report"), tag("ol", *links), aria_label="In this report")
    listed = [contents] if len(sections) >= _FEWEST_LISTED else []
    return page(title(comparison), style, headline(comparison), *listed, *(section.html() for section in sections))
