"""What was taken down: rules that lie in the root, beside the artifacts, and are outside bytes of every stage that reads sources.

removals/<digest of the rule>.json, each written once and only if absent: two people who record at the same moment lose nothing, and
a clean-up never touches them.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from contract.config import Frozen, canonical_json
from contract.errors import IntegrityError
from contract.schemas import document_id
from sources.rows import Document
from store.checked import dump_checked, load_checked
from store.storage import Storage

FOLDER = "removals/"
URL_FIELDS = ("url", "uri", "source_url")
"""Fields of a record that name where its text was found."""
EXTERNAL = "removed documents"
"""The name of the rules' digest in a fingerprint; a source's name holds no space."""


class Removal(Frozen):
    """One rule, with what it found when it was recorded."""

    kind: Literal["id", "url", "license"]
    value: str
    """A document's id in hexadecimal, a locator or URL, or a licence's name."""
    sources: tuple[str, ...] = ()
    """The sources it holds for; empty: all. A licence is a policy and holds for all."""
    texts: tuple[str, ...] = ()
    """Digests of the texts found: a copy under another locator does not take a removed document's place."""


@dataclass(frozen=True)
class Removals:
    """The rules that concern some sources, ready to be asked for every document."""

    rules: tuple[Removal, ...] = ()
    _texts: frozenset[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_texts", frozenset(text for rule in self.rules for text in rule.texts))

    @classmethod
    def load(cls, storage: Storage, sources: Iterable[str]) -> "Removals":
        """Of the rules in the root, those that concern one of `sources`. Raises IntegrityError for one that was changed."""
        names, rules = set(sources), []
        for entry in storage.list(FOLDER):
            try:
                rule = Removal.model_validate(load_checked(storage.read(entry.path)))
            except ValueError as error:
                raise IntegrityError(
                    f"{storage.uri}/{entry.path} is not the rule that was recorded ({str(error).splitlines()[0]}); what it takes down is "
                    "not known. Delete it and record it anew by `bessemer remove`."
                ) from error
            if not rule.sources or names & {*rule.sources}:
                rules.append(rule)
        return cls(tuple(rules))

    def external(self) -> dict[str, str]:
        """What enters the fingerprint: nothing where nothing was taken down."""
        rules = sorted(canonical_json(rule).decode() for rule in self.rules)
        return {EXTERNAL: hashlib.sha256(canonical_json(rules)).hexdigest()} if rules else {}

    def hit(self, source: str, license: str | None, document: Document) -> bool:
        """Whether a document as it is read, under its source's name, is taken down."""
        if not self.rules:
            return False
        if self._texts and text_digest(document.text) in self._texts:
            return True
        return any(_hits(rule, source, license, document) for rule in self.rules)


def _hits(rule: Removal, source: str, license: str | None, document: Document) -> bool:
    if rule.sources and source not in rule.sources:
        return False
    if rule.kind == "id":
        return document_id(source, document.locator).hex() == rule.value
    if rule.kind == "license":
        return (document.license or license) == rule.value
    return document.locator == rule.value or is_url(document.extra or {}, rule.value)


def is_url(extra: dict[str, Any], url: str) -> bool:
    return any(extra.get(name) == url for name in URL_FIELDS)


def text_digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def record(storage: Storage, rule: Removal) -> str:
    """Put a rule into the root; its path. RecordingJournal the same rule again changes nothing."""
    path = f"{FOLDER}{rule.kind}-{hashlib.sha256(canonical_json(rule)).hexdigest()[:16]}.json"
    storage.create(path, dump_checked(rule.model_dump(mode="json")))
    return path
