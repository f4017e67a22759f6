"""Read every source into documents, part by part; what cannot be read is quarantined with file, offset and reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import InputError
from contract.ledger import Count, Ledger, total
from contract.schemas import QUARANTINE
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from sources.config import IngestIdentity, Source
from sources.environment import Environment
from sources.files import holds
from sources.opener import Opener
from sources.pieces import rows_of
from sources.plan import Piece, Selection, digest_of_selection, plan_parts, select
from sources.removals import Removals
from sources.rows import EXTRA_BYTES, Batch, Document, Unreadable, quarantine_table
from store.digests import digests_of_files
from store.storage import Storage
from tasks.gating import warm_up

MOST_NAMED = 8


def selections(config: IngestIdentity, storage: Storage) -> list[Selection]:
    """The files that the sources have now, with their digests. Raises InputError naming a source that is absent or empty."""
    return select(config.sources, digests_of_files, Environment.here(), config.endpoint_url, storage.uri)


def source_digests(config: IngestIdentity, storage: Storage) -> dict[str, str]:
    """A digest a source, of the bytes that will be read, and one of what was taken down of these sources."""
    names = [source.name for source in config.sources]
    return {s.source.name: digest_of_selection(s) for s in selections(config, storage)} | Removals.load(storage, names).external()


@stage(
    version=3,
    config=lambda c: IngestIdentity.of(c.sources, c.ingest, c.storage.endpoint_url),
    rows="out",
    external=source_digests,
)
def ingest(config: IngestIdentity, out: Output) -> Ledger:
    """Documents as part-NNNNN.parquet, and quarantine.parquet. A record seen is a document, blank, or a row of the quarantine.

    Parts follow from names, sizes and ingest.part_bytes alone; one whose text outgrows twice that (a compressed stream) goes on in
    part-NNNNN-001.parquet. Memory: about four times part_bytes a worker, or the longest record.
    Raises InputError when a source, or everything, gives no document, and when ids repeat.
    """
    chosen = selections(config, out.attempt.storage)
    opener = Opener(config.endpoint_url, str(out.scratch / "fetched"))
    plan = plan_parts(chosen, config.ingest.part_bytes, opener)
    removals = Removals.load(out.attempt.storage, [source.name for source in config.sources])
    shared = {"config": config, "opener": opener, "removals": removals}
    parts = [Part(f"part-{i:05d}", {**shared, "pieces": pieces, "number": i}) for i, pieces in enumerate(plan)]
    results = map_parts(out, read_part, parts, meanwhile=warm_up)
    bad = [out.reader.table(name) for name in out.reader.names("quarantine-")]
    quarantine = pa.concat_tables([QUARANTINE.empty_table(), *bad])
    out.table("quarantine.parquet", quarantine)
    count = total(Count.from_json(result["count"]) for result in results)
    _report(chosen, results, quarantine, out)
    _refuse_empty(chosen, results, quarantine)
    _refuse_misspelt_fields(chosen, results, out)
    _refuse_repeated_ids(out)
    return Ledger(documents=count)


def read_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """Read the pieces of one part into tables of at most twice part_bytes of text."""
    pieces: Sequence[Piece] = spec["pieces"]
    config: IngestIdentity = spec["config"]
    number, batch, files = spec["number"], Batch(), 0
    bad: list[tuple[str, Unreadable]] = []
    documents, size = Counter[str](), Counter[str]()
    removals: Removals = spec["removals"]
    blank, removed, omitted, lacking = 0, Counter[str](), Counter[str](), Lacking()
    for source, _, row in rows_of(pieces, config.sources, config.ingest, spec["opener"]):
        if isinstance(row, Document) and removals.hit(source.name, source.license, row):
            removed[source.name] += 1
        elif isinstance(row, Document):
            if batch.text_bytes > 2 * config.ingest.part_bytes:
                write.table(_name(number, files), batch.table())
                omitted += batch.omitted
                batch, files = Batch(), files + 1
            lacking.note(source, row)
            size[source.name] += batch.add(source, row)
            documents[source.name] += 1
        elif isinstance(row, Unreadable):
            bad.append((source.name, row))
        else:
            blank += 1
    if batch.text_bytes:
        write.table(_name(number, files), batch.table())
    write.table(f"quarantine-{number:05d}.parquet", quarantine_table(bad), content=False)
    out = documents.total()
    dropped = {"blank": blank} | ({"removed": removed.total()} if removals.rules else {})
    count = Count(came_in=out + len(bad) + sum(dropped.values()), out=out, dropped=dropped, quarantined=len(bad))
    sums = {"documents": documents, "bytes": size, "removed": removed, "omitted": omitted + batch.omitted, "lacking": lacking.counts}
    return {"count": count.to_json(), "names": lacking.names, **{name: dict(counts) for name, counts in sums.items()}}


@dataclass
class Lacking:
    """Documents without a field that their source names (`source setting`), and the fields that the first of them has."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def note(self, source: Source, document: Document) -> None:
        for setting, is_there in (
            ("id_field", document.locator.startswith("#")),
            ("group_field", document.group is not None),
            ("license_field", document.license is not None),
        ):
            if getattr(source, setting) is not None and not is_there:
                self.counts[f"{source.name} {setting}"] += 1
                self.names.setdefault(f"{source.name} {setting}", sorted({*(document.extra or ())} - {"file", "offset"})[:MOST_NAMED])


def _name(part: int, file: int) -> str:
    return f"part-{part:05d}-{file:03d}.parquet" if file else f"part-{part:05d}.parquet"


def _report(chosen: list[Selection], results: list[dict[str, Any]], quarantine: pa.Table, out: Output) -> None:
    """Figures by domain and source, and a sentence for what a person should know of."""
    documents, size = _sums(results, "documents"), _sums(results, "bytes")
    domains: dict[str, dict[str, int]] = {}
    for selection in chosen:
        name, figures = selection.source.name, domains.setdefault(selection.source.domain, {"documents": 0, "bytes": 0, "files": 0})
        figures["documents"] += documents[name]
        figures["bytes"] += size[name]
        figures["files"] += len(selection.files)
        if holds(selection.source, out.attempt.storage.uri):
            out.warn(f"source {name}: storage.root lies in {selection.source.uri}, and is not read")
        if selection.skipped:
            out.warn(f"source {name}: {selection.skipped:,} files of {selection.source.uri} were passed over for their suffix")
    absent = [selection.source.domain for selection in chosen if not selection.files]
    if absent:
        out.warn(f"the environment holds no text of {', '.join(absent)}; give a source of your own for it")
    if omitted := _sums(results, "omitted"):
        most = ", ".join(f"{name} ({count:,})" for name, count in omitted.most_common(MOST_NAMED))
        out.warn(f"{omitted.total():,} values of metadata could not be kept, or are over {EXTRA_BYTES:,} bytes; their texts are. {most}")
        out.figures["omitted_metadata"] = dict(sorted(omitted.items()))
    if len(quarantine):
        out.warn(f"{len(quarantine):,} records could not be read; `quarantine.parquet` says which and why ({_first(quarantine)})")
    out.figures["domains"] = domains
    out.figures["sources"] = {s.source.name: {"documents": documents[s.source.name], "bytes": size[s.source.name]} for s in chosen}
    out.figures["absent"] = absent


def _sums(results: list[dict[str, Any]], key: str) -> Counter[str]:
    sums = Counter[str]()
    for result in results:
        sums.update(result[key])
    return sums


def _first(quarantine: pa.Table) -> str:
    row = quarantine.slice(0, 1).to_pylist()[0]
    return f"first: {row['uri']} at {row['offset']:,}: {row['reason']}"


def _refuse_empty(chosen: list[Selection], results: list[dict[str, Any]], quarantine: pa.Table) -> None:
    documents, removed = _sums(results, "documents"), _sums(results, "removed")
    for selection in chosen:
        source: Source = selection.source
        if selection.files and not documents[source.name] and not removed[source.name]:
            own = quarantine.filter(pc.starts_with(quarantine["uri"], f"{source.name}:"))
            why = f"{len(own):,} records are unreadable, {_first(own)}" if len(own) else "its files hold no text"
            raise InputError(f"source {source.name}: no document in {source.uri}: {why}. Correct the source, or leave it out.")
    if not documents.total():
        names = ", ".join(selection.source.uri for selection in chosen)
        raise InputError(f"nothing to read: no source has a document ({names}); give `sources` that have text")


def _refuse_misspelt_fields(chosen: list[Selection], results: list[dict[str, Any]], out: Output) -> None:
    """Raise InputError for a field that no record of its source has: hosts would leak across the split, or ids be lost. Count some."""
    documents, lacking = _sums(results, "documents"), _sums(results, "lacking")
    for source in (selection.source for selection in chosen):
        for setting in ("id_field", "group_field", "license_field"):
            key, named = f"{source.name} {setting}", getattr(source, setting)
            if not lacking[key]:
                continue
            if lacking[key] == documents[source.name]:
                names = next(result["names"][key] for result in results if key in result["names"])
                raise InputError(
                    f"source {source.name}: no record has a value in the field {named!r} ({setting}); the first has "
                    f"{', '.join(names) or 'no field but its text'}. Correct {setting}, or leave it out."
                )
            out.warn(f"source {source.name}: {lacking[key]:,} of {documents[source.name]:,} records have no {named!r} ({setting})")
            out.figures.setdefault("lacking", {})[key] = lacking[key]


def _refuse_repeated_ids(out: Output) -> None:
    """Stop for an id that two documents have, and name one: a split or a join by id would lose a document silently."""
    names = out.reader.names("part-")
    ids = pa.concat_tables([out.reader.table(name, ["id"]) for name in names])["id"]
    if len(pc.unique(ids)) == len(ids):
        return
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    where = [
        f"{row['source']}:{row['locator']} {row['extra'] or ''}".strip()
        for name in names
        for row in _with_id(out.reader.table(name, ["id", "source", "locator", "extra"]), repeated[0]).to_pylist()
    ]
    raise InputError(
        f"{len(repeated):,} ids repeat, such as that of {' and '.join(where[:2])}. Ids must be unique in a source: "
        "set id_field to a field whose values are, or leave it out."
    )


def _with_id(table: pa.Table, value: pa.Scalar) -> pa.Table:
    return table.filter(pc.equal(table["id"], value))
