"""The file beside a file that its rows are read with: ids, or metadata."""

from __future__ import annotations

from pipeline.formats import ARRAYS, Format
from pipeline.storage.array_files import ids_file
from pipeline.storage.clip_retrieval import metadata_file
from pipeline.storage.corpus import Corpus


def companion_file(corpus: Corpus, found: Format, url: str) -> str | None:
    """Return the file that is read with another of a format, None if there is none.

    Raises:
        ValueError: if one has to be there that is not.
    """
    if found in ARRAYS:
        return ids_file(corpus, url)
    if found == "clip-retrieval":
        return metadata_file(url)
    return None
