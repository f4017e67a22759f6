"""What to read, and how much of it. Where a source lies is no part of its identity: `Placed` is what a stage's fingerprint sees."""

import codecs
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from contract.config import Frozen, Seed
from contract.schemas import DOMAINS
from sources.plug_in_reader import reader_of, resolved
from store.config import usable_uri

ENVIRONMENT = "environment:"
Domain = Literal["web", "books", "code", "academic", "reference", "conversation"]
Format = Literal["auto", "txt", "md", "jsonl", "parquet"]


class Source(Frozen):
    """Text of one domain in one place."""

    uri: str = Field(min_length=1)
    """A file, a folder (read with its subfolders) or a glob, as a path, file:// or s3://bucket/prefix; or environment:DOMAIN,
    the text of the running Python environment and machine."""
    domain: Domain
    """What kind of text it is; the mixture and the filters' rules go by it."""
    name: str = Field(default="", pattern=r"^[\w.+-]*$")
    """Unique among the sources; the domain when unset. Part of every document's id."""
    format: Format = "auto"
    """auto goes by each file's suffix (.txt .md .jsonl .json .parquet, each but the last also with .gz or .zst)."""
    reader: str | None = Field(default=None, min_length=1, exclude_if=lambda name: name is None)
    """A reader of your own in place of `format`: package.module:OBJECT, or an entry point in bessemer.readers
    (sources/plug_in_reader.py). Its suffixes say which files are read."""
    encoding: str | None = None
    """The encoding of text that is not UTF-8. Unset, whole files are detected, and lines that are not UTF-8 are quarantined."""
    text_field: str = Field(default="text", min_length=1)
    """The field or column of a record that holds its text."""
    id_field: str | None = Field(default=None, min_length=1)
    """A field that identifies the record within the source; unset, its file and byte offset do."""
    group_field: str | None = Field(default=None, min_length=1)
    """A field of what must stay on one side of a split (host, book, author); unset, near duplicates stay together."""
    license_field: str | None = Field(default=None, min_length=1)
    """A field that names the record's licence."""
    license: str | None = Field(default=None, min_length=1)
    """The licence of all of it, where no field says so."""
    language: str | None = Field(default=None, pattern="^[a-z]{2,3}$")
    """The declared language of all of it, as a code of two or three letters."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Read at most this many bytes. Which files, a hash of their locators decides. Records under a cap are read in one sequence."""
    max_documents: int | None = Field(default=None, ge=1)
    """Keep at most this many documents, chosen as for max_bytes."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        uri = str(value.get("uri", ""))
        if uri.startswith(ENVIRONMENT):
            kind = uri.removeprefix(ENVIRONMENT)
            if kind not in DOMAINS:
                raise ValueError(f"uri {uri}: the environment has no {kind!r}; write environment: and one of {', '.join(DOMAINS)}")
            if value.get("domain", kind) != kind:
                raise ValueError(f"uri {uri} holds {kind}, but domain says {value['domain']}; leave domain out")
            value = {"domain": kind, **value}
        return {**value, "name": value.get("name") or value.get("domain", "")}

    @field_validator("uri")
    @classmethod
    def _usable(cls, value: str) -> str:
        return usable_uri(value)

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            name = codecs.lookup(value).name
            "\n".encode(name).decode(name)  # refuses codecs from bytes to bytes, such as zlib
        except (LookupError, UnicodeError, AttributeError) as error:
            raise ValueError(f"encoding {value!r} is not known to Python; names are such as cp1252, shift_jis, utf-16-le") from error
        return name

    @model_validator(mode="after")
    def _reader_has_effect(self) -> "Source":
        if self.reader is not None:
            if self.is_environment:
                raise ValueError(f"reader {self.reader}: {self.uri} is read as the environment is; leave reader out")
            if self.format != "auto" or self.encoding is not None:
                raise ValueError(f"reader {self.reader} says how files are read and decoded; leave format and encoding out")
        return self

    @property
    def is_environment(self) -> bool:
        return self.uri.startswith(ENVIRONMENT)


def unique_names(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            uris = ", ".join(source.uri for source in sources if source.name == name)
            raise ValueError(f"{names.count(name)} sources are named {name!r} ({uris}); give each a `name` of its own")
    return sources


Sources = Annotated[tuple[Source, ...], AfterValidator(unique_names)]
"""The type of a `sources` key: names are unique."""

# 40 MB of code is what 2 cores parse in 10 s; man pages and /usr/share/doc stand at 30 and 17 MB (laptop trial, 2026-11-21).
ENVIRONMENT_SOURCES = (
    Source(uri="environment:web", domain="web"),
    Source(uri="environment:code", domain="code", max_bytes=40_000_000),
    Source(uri="environment:reference", domain="reference", max_bytes=60_000_000),
    Source(uri="environment:conversation", domain="conversation", max_bytes=40_000_000),
    Source(uri="environment:books", domain="books"),
    Source(uri="environment:academic", domain="academic"),
)


class IngestConfig(Frozen):
    part_bytes: int = Field(default=32 * 2**20, ge=1)
    """Source bytes a part. A part is what a killed run loses at most, and what a worker holds in memory."""
    max_record_bytes: int = Field(default=64 * 2**20, ge=1)
    """A longer line, row or whole file is quarantined: no natural document is as long, and memory stays bounded."""
    max_expansion: int = Field(default=500, ge=2)
    """A compressed file that grows by more than this factor (past 64 MiB) is taken for a bomb. Text compresses by 3 to 20."""


class Placed(Source):
    """A source as a stage sees it: `uri` opens it, and stays out of the fingerprint, which holds the files' digests instead."""

    uri: str = Field(exclude=True)
    kind: Literal["environment", "files"]
    reader_version: int | None = Field(default=None, exclude_if=lambda version: version is None)

    @classmethod
    def of(cls, source: Source) -> "Placed":
        """Raises ConfigError when the source's reader is not to be had."""
        given = source.model_dump() | {"kind": "environment" if source.is_environment else "files"}
        if source.reader is not None:
            version = reader_of(source.reader, source.name).version
            given |= {"reader": resolved(source.reader, source.name), "reader_version": version}
        return cls(**given)


class IngestIdentity(Frozen):
    """What decides the documents, besides the bytes of the source files."""

    sources: tuple[Placed, ...]
    ingest: IngestConfig
    endpoint_url: str | None = Field(default=None, exclude=True)

    @classmethod
    def of(cls, sources: tuple[Source, ...], ingest: IngestConfig, endpoint_url: str | None = None) -> "IngestIdentity":
        return cls(sources=tuple(Placed.of(source) for source in sources), ingest=ingest, endpoint_url=endpoint_url)


class AlignDataConfig(Frozen):
    """Questions and answers, preferences made from them or given, and the gold judge's text."""

    sources: Sources = (Source(uri="environment:conversation", domain="conversation", max_bytes=40_000_000),)
    """Where they come from: environment:conversation (signatures and docstrings), or JSON lines with chosen and rejected
    (as HH-RLHF has them) or prompt and response."""
    max_train: int = Field(default=4000, ge=1)
    """Questions and answers to train on at most; 2,600 were enough for the laptop's reward model (trial of 2026-11-21)."""
    max_held_out: int = Field(default=512, ge=1)
    """Prompts of the validation side, and of the test side, at most; an interval of ±0.015 on gold needs 256."""
    gold_docstrings: int = Field(default=4000, ge=20)
    """Answers held out for the gold judge's language model; whole groups, at most a third of the train side."""
    negatives_per_pair: int = Field(default=3, ge=1, le=3)
    """Kinds of negatives made of each answer: another's docstring, shuffled words, a repetitive or cut one."""
    max_prompt_chars: int = Field(default=200, ge=40)
    """Longer questions are left out: about 64 tokens of a 4096 vocabulary."""
    min_response_chars: int = Field(default=20, ge=1)
    max_response_chars: int = Field(default=200, ge=40)
    """Longer answers are left out, never cut: about 56 tokens of a 4096 vocabulary."""
    seed: Seed = 1

    @field_validator("sources")
    @classmethod
    def _shaped(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        for source in sources:
            if source.is_environment and source.domain != "conversation":
                raise ValueError(f"align_data.sources: {source.uri} holds no questions and answers; environment:conversation does")
        return sources

    @model_validator(mode="after")
    def _answers_can_be(self) -> "AlignDataConfig":
        if self.min_response_chars > self.max_response_chars:
            raise ValueError(
                f"min_response_chars is {self.min_response_chars} and max_response_chars {self.max_response_chars}, "
                "so that no answer can be; lower the one, or raise the other"
            )
        return self
