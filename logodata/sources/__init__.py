"""Documents with questions, from files, folders and hub data sets; faults name their line.

``settings`` what a recipe says; ``opening`` which format; ``json_rows``, ``csv_rows``, ``tables``, ``text_files`` the
containers; ``shapes`` rows of other projects; ``fields`` names, forms and types; ``reading`` the checks;
``documents`` the texts, read as they are needed.
"""

from logodata.sources.fields import SourceFormat, SourceSettings
from logodata.sources.formats import check_outside, source_file, source_fingerprint
from logodata.sources.reading import Documents, Source, read_source

__all__ = [
    "Documents",
    "Source",
    "SourceFormat",
    "SourceSettings",
    "check_outside",
    "read_source",
    "source_file",
    "source_fingerprint",
]
