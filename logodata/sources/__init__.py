"""Read documents with questions from files, folders and hub data sets. Errors name the file and the line.

``fields`` holds the recipe's settings and the names, forms and types of fields. ``discovery`` finds the files and their
format, and ``formats`` opens them. ``json_rows``, ``csv_rows``, ``tables`` and ``document_files`` read the containers.
``converters`` turns PDF, HTML, Word and EPUB files into text. ``conversations`` converts rows of other projects.
``reading`` checks every row and provides the documents, whose texts are read when they are needed.
"""

from logodata.sources.discovery import check_outside as check_outside
from logodata.sources.discovery import source_file as source_file
from logodata.sources.discovery import source_fingerprint as source_fingerprint
from logodata.sources.fields import SourceFormat as SourceFormat
from logodata.sources.fields import SourceSettings as SourceSettings
from logodata.sources.reading import Documents as Documents
from logodata.sources.reading import Source as Source
from logodata.sources.reading import read_source as read_source
