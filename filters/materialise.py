"""The one place where documents, decisions and spans become text: tokens and the curated Parquet both read it from here.

Offsets of redactions and cuts are code points of the text as ingested. It decides nothing: what is kept is in `selection`,
what is redacted or cut is in the signals.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import IntegrityError

Span = tuple[int, int, str | None]
"""Half-open range of code points and what stands in its place; None: nothing."""


def materialise(documents: pa.Table, selection: pa.Table, redactions: pa.Table | None, cuts: pa.Table | None) -> pa.Table:
    """The kept documents, with each redacted span replaced by its label (`<EMAIL>`) and each contaminated span removed.

    The four tables are parts of one number: the same ids in the same order. `redactions` and `cuts` hold a column `spans`
    (contract.schemas.SPANS), null or empty where there is nothing to do. Returns the columns of `documents`. Rows without
    spans are taken over by Arrow; only rows with spans become Python strings.
    Raises IntegrityError when the tables do not hold the same documents.
    """
    for name, table in (("selection", selection), ("redactions", redactions), ("cuts", cuts)):
        _check_rows(documents, name, table)
    kept = selection["kept"].combine_chunks()
    documents = documents.filter(kept)
    spans = [None if table is None else table["spans"].combine_chunks().filter(kept) for table in (redactions, cuts)]
    has_spans = _has_spans(spans, documents.num_rows)
    if not has_spans.any():
        return documents
    rows = np.flatnonzero(has_spans)
    texts = documents["text"].take(rows).to_pylist()
    redacted, cut = ([None] * len(rows) if column is None else column.take(rows).to_pylist() for column in spans)
    edited = [edit(text, plan(a or [], b or [])) for text, a, b in zip(texts, redacted, cut, strict=True)]
    column = documents.schema.get_field_index("text")
    text = pc.replace_with_mask(
        documents["text"].combine_chunks(), pa.array(has_spans), pa.array(edited, documents.schema.field(column).type)
    )
    return documents.set_column(column, documents.schema.field(column), text)


def plan(redactions: list[dict], cuts: list[dict]) -> list[Span]:
    """Redactions and cuts of one text as disjoint spans in order.

    A redaction inside a cut vanishes with it. One that sticks out of a cut takes the whole of both away and leaves its
    label, so that no half of a number stays behind.
    """
    spans: list[Span] = sorted(
        [(cut["start"], cut["end"], None) for cut in cuts] + [(span["start"], span["end"], f"<{span['label']}>") for span in redactions],
        key=lambda span: (span[0], -span[1], span[2] or ""),
    )
    joined: list[Span] = []
    for start, end, label in spans:
        if not joined or start >= joined[-1][1]:
            joined.append((start, end, label))
            continue
        first, last, standing = joined[-1]
        if end <= last and standing is None:
            continue  # inside a cut
        joined[-1] = (first, max(end, last), standing or label)
    return joined


def edit(text: str, spans: list[Span]) -> str:
    """`text` with each span replaced; spans are disjoint and in order."""
    pieces, place = [], 0
    for start, end, label in spans:
        pieces += [text[place:start], label or ""]
        place = end
    return "".join([*pieces, text[place:]])


def _check_rows(documents: pa.Table, name: str, table: pa.Table | None) -> None:
    if table is None or table["id"].combine_chunks().equals(documents["id"].combine_chunks()):
        return
    raise IntegrityError(
        f"materialise: {name} has {table.num_rows:,} rows whose ids are not those of the {documents.num_rows:,} documents, "
        "in their order. Give it the part of the same number of the same run."
    )


def _has_spans(columns: list[pa.Array | None], num_rows: int) -> np.ndarray:
    has_spans = np.zeros(num_rows, bool)
    for column in columns:
        if column is not None:
            has_spans |= np.asarray(pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0))
    return has_spans
