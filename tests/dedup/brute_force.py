"""Deduplication by its definition: sets of Python strings, all pairs, no hashing. What the room is held against."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    id: bytes
    text: str
    domain: str = "web"
    source: str = "s"


def shingles(text: str, ngram: int = 5) -> set[str]:
    return {text[i : i + ngram] for i in range(len(text) - ngram + 1)} or {text}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def components(documents: list[Document], threshold: float) -> list[set[bytes]]:
    """Ids of documents that are connected by pairs whose exact Jaccard is at the threshold or above."""
    sets = [shingles(document.text) for document in documents]
    found: list[set[int]] = []
    for i in range(len(documents)):
        touched = [group for group in found if any(jaccard(sets[i], sets[j]) >= threshold for j in group)]
        found = [group for group in found if group not in touched] + [set().union({i}, *touched)]
    return [{documents[i].id for i in group} for group in found]


def decisions(documents: list[Document], threshold: float, prefer: tuple[str, ...] = ()) -> dict[bytes, tuple[str | None, bytes | None]]:
    """For each id, why it is dropped and for which other document; (None, None) when it is kept."""

    def order(document: Document) -> tuple:
        rank = min((i for i, name in enumerate(prefer) if name in (document.source, document.domain)), default=len(prefer))
        return rank, -len(document.text), document.id

    result: dict[bytes, tuple[str | None, bytes | None]] = {}
    for component in components(documents, threshold):
        survivor, *others = sorted((document for document in documents if document.id in component), key=order)
        seen = {survivor.text}
        result[survivor.id] = (None, None)
        for document in others:
            result[document.id] = ("exact_duplicate" if document.text in seen else "near_duplicate", survivor.id)
            seen.add(document.text)
    return result
