"""Read preference pairs that were made elsewhere, and write them as a data set: ``logodata import``.

``settings`` holds what a user may say. ``rows`` finds the file and reads its rows, ``formats`` recognises their form
from the columns of all rows, ``messages`` checks a conversation, ``reading`` makes a row into a pair, ``encoding``
makes a pair into token ids, and ``importing`` writes the data set.
"""
