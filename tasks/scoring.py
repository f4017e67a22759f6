"""What the score stages share: the documents that dedup kept, and their signals put back beside all documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from contract.errors import IntegrityError
from contract.ledger import Count, Ledger
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output
from store.artifact import Artifact


@dataclass(frozen=True)
class Alive:
    """One part: all ids, the mask of the rows to be scored, and those rows' text."""

    name: str
    ids: pa.ChunkedArray
    mask: np.ndarray
    text: pa.ChunkedArray

    def write(self, signals: pa.Table, write: PartWriter) -> None:
        """Signals of the scored rows as one row a document, null where it was not scored."""
        rows = pa.array(np.cumsum(self.mask) - 1, mask=~self.mask)
        write.table(self.name, signals.take(rows).add_column(0, pa.field("id", pa.binary(16), nullable=False), self.ids))


def read_alive(spec: dict[str, Any], spared: Callable[[str], np.ndarray] | None = None) -> Alive:
    """The part named in `spec`; `spared` says which rows are left out beside those that dedup dropped."""
    name = spec["name"]
    table = spec["documents"].table(name, ["id", "text"])
    mask = same_documents(table, spec["duplicates"].table(name, ["id", "kept"]), name)["kept"].to_numpy()
    if spared is not None:
        mask = mask & ~spared(name)
    return Alive(name, table["id"], mask, table["text"].filter(pa.array(mask)))


def same_documents(documents: pa.Table, other: pa.Table, name: str) -> pa.Table:
    """`other`, when it holds the same documents in the same order; else IntegrityError."""
    if not other["id"].combine_chunks().equals(documents["id"].combine_chunks()):
        raise IntegrityError(f"{name}: two inputs hold other documents or another order ({len(documents):,} and {len(other):,} rows)")
    return other


def score_parts(out: Output, work: Callable[[dict[str, Any], PartWriter], dict[str, Any]], **spec: Any) -> list[dict[str, Any]]:
    """Map `work` over the parts of spec["documents"]; its results, in their order."""
    return map_parts(out, work, [Part(name.removesuffix(".parquet"), {**spec, "name": name}) for name in spec["documents"].names()])


def tagging(documents: Artifact) -> Ledger:
    """The ledger of a stage that tags every document and drops none."""
    count = documents.ledger.documents
    assert count is not None
    return Ledger(documents=Count(came_in=count.out, out=count.out))


def summed(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The sums of counts by name over all parts."""
    names = sorted({name for result in results for name in result})
    return {name: sum(result.get(name, 0) for result in results) for name in names}
