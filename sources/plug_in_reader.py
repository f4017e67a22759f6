"""Readers of the user's own: what one is, and how it is found. What is made of its records is in sources/plug_in_records.py."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from contract.plug_ins import load_plug_in, resolve_plug_in

GROUP = "bessemer.readers"
"""The group of entry points in which a package offers its readers."""


@dataclass(frozen=True)
class Reader:
    """How to read files of one kind. A source names it: `reader: my_package.readers:ARTICLES`, or an entry point in bessemer.readers.

        def articles(handle, locator):
            for line in handle:
                yield {"text": line.decode(), "id": line.split()[0].decode()}

        ARTICLES = Reader(version=1, suffixes=(".art",), read=articles)

    version: raised when `read` gives other records for the same bytes. It is part of the fingerprint: what was read is read again.

    suffixes: files with other suffixes are passed over and counted. Under a further .gz or .zst the file is decompressed first.

    read: gets an open binary file and its name within the source, and gives the records in order, best by `yield`. A plain file can
    seek; a decompressed one cannot, and ends with an error where it is damaged or a bomb (ingest.max_expansion). A file is never
    split, so read it as a stream, or it is in memory as a whole.

    A record is a mapping with a string in `text`. The source's text_field, id_field, group_field and license_field name its fields, as
    they do for JSON lines; all others, which must be such that JSON can hold them, become the document's `extra`. Its locator is
    file:number, counted from 0, or #id where the source has an id_field.

    What is no such record, or longer than ingest.max_record_bytes, is quarantined alone. To have a record quarantined, yield an
    exception in its place: `yield ValueError("no body")`. An exception that is raised quarantines the rest of the file; the records
    before it stay, and the run goes on.
    """

    version: int
    suffixes: tuple[str, ...]
    read: Callable[[BinaryIO, str], Iterable[object]]

    def __post_init__(self) -> None:
        if type(self.version) is not int or self.version < 1:
            raise ValueError(f"the version {self.version!r} is no whole number from 1 up")
        if not isinstance(self.suffixes, tuple) or not self.suffixes or not all(isinstance(s, str) and s.strip(".") for s in self.suffixes):
            raise ValueError(f"the suffixes {self.suffixes!r} are no tuple of strings, such as ('.xml',)")
        if not callable(self.read):
            raise ValueError(f"read is {self.read!r}, which cannot be called")

    def takes(self, name: str) -> bool:
        """Whether a file's name has one of the suffixes, in capitals or not."""
        return name.lower().endswith(tuple(f".{suffix.lower().lstrip('.')}" for suffix in self.suffixes))


@lru_cache(maxsize=64)
def reader_of(name: str, source: str) -> Reader:
    """The reader that a source names. Raises ConfigError that names the source."""
    return load_plug_in(name, GROUP, Reader, f"the reader of source {source}")


def resolved(name: str, source: str) -> str:
    """Its package.module:OBJECT."""
    return resolve_plug_in(name, GROUP, f"the reader of source {source}")
