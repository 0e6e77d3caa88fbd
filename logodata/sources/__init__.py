"""Read documents with questions from files, folders and hub data sets. Errors name the file and the line.

``fields`` holds the recipe's settings and the names, forms and types of fields. ``formats`` detects the format.
``json_rows``, ``csv_rows``, ``tables`` and ``text_files`` read the containers. ``conversations`` converts rows of other
projects. ``reading`` checks every row and provides the documents, whose texts are read when they are needed.
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
