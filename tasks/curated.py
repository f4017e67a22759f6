"""What the stages after `select` read: a part of the documents with its decisions beside it, as curated text."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.materialise import materialise
from store.artifact import Artifact


@dataclass(frozen=True)
class Curated:
    """The artifacts that make text, whose parts of one number hold the same documents in the same order."""

    documents: Artifact
    selection: Artifact
    splits: Artifact
    pii: Artifact
    contamination: Artifact | None

    def names(self) -> list[str]:
        return self.documents.names()

    def kept(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Masks over the rows of a part: the kept ones, and of these the ones to train on."""
        kept = self.selection.table(name, ["kept"])["kept"].to_numpy()
        return kept, kept & pc.equal(self.splits.table(name, ["split"])["split"], "train").to_numpy()

    def text(self, name: str, rows: np.ndarray | None = None) -> pa.Table:
        """Kept documents of a part, redacted and cut, with a column `split`; only those of `rows` (a mask) when given."""
        mask = None if rows is None else pa.array(rows)

        def read(artifact: Artifact, columns: list[str] | None = None) -> pa.Table:
            table = artifact.table(name, columns)
            return table if mask is None else table.filter(mask)

        selection = read(self.selection)
        pii = read(self.pii, ["id", "spans"])
        cuts = None if self.contamination is None else read(self.contamination, ["id", "spans"])
        text = materialise(read(self.documents), selection, pii, cuts)
        return text.append_column("split", read(self.splits, ["split"])["split"].filter(selection["kept"]))


def sums_by(table: pa.Table, keys: list[str], values: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """{first key: {second key: {"documents": rows, value: sum, …}}}, keys sorted."""
    grouped = table.group_by(keys).aggregate([([], "count_all")] + [(value, "sum") for value in values])
    found: dict[str, dict[str, dict[str, int]]] = {}
    for row in sorted(grouped.to_pylist(), key=lambda row: [row[key] for key in keys]):
        cell = {"documents": row["count_all"], **{value: row[f"{value}_sum"] for value in values}}
        found.setdefault(row[keys[0]], {})[row[keys[1]]] = cell
    return found


def utf8_bytes(text: pa.ChunkedArray) -> np.ndarray:
    return pc.binary_length(text).to_numpy().astype(np.int64)
