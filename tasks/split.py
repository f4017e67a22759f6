"""split: train, validation or test for every document, by what must stay together, once for all later stages."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import IntegrityError
from contract.ledger import Count, Ledger
from contract.schemas import SPLIT
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from filters.config_split import SplitConfig
from filters.group_split import SIDES, add_counts, assign, count_groups, exceptions, group_names, sides_of, trusted_rows
from store.artifact import Artifact


@stage(version=1, config=lambda c: c.split, counts="documents", rows="in")
def split(documents: Artifact, duplicates: Artifact, config: SplitConfig, out: Output) -> Ledger:
    """SPLIT parts beside the parts of `documents`, and groups.parquet (group, split) of every group there is.

    A group is on one side, whatever the order of rows. Documents without a group stay with their duplicates. Those that
    deduplication dropped have a side too, but only kept ones count towards the least number of documents of a domain.
    Memory: the names of the groups, a few hundred bytes each.
    """
    names = documents.names()
    shared = {"documents": documents, "duplicates": duplicates, "config": config}
    map_parts(out, count_one, [Part(f"groups-{i:05d}", {"name": name} | shared) for i, name in enumerate(names)])
    groups = assign(add_counts(out.reader.table(_counts(name)) for name in names), config)
    out.table("groups.parquet", groups)

    moved = exceptions(groups, config)
    results = map_parts(out, split_one, [Part(f"sides-{i:05d}", {"name": name, "moved": moved} | shared) for i, name in enumerate(names)])
    out.figures |= {"groups": {side: pc.sum(pc.equal(groups["split"], side)).as_py() or 0 for side in SIDES}}
    out.figures |= {"moved_groups": len(moved), "domains": _by_domain(results)}
    _warn(out, config)
    rows = sum(result["rows"] for result in results)
    return Ledger(documents=Count(rows, rows))


def _counts(name: str) -> str:
    return f"counts/{name}"


def _read(spec: dict[str, Any]) -> tuple[pa.Table, pa.Table, pa.Array]:
    """A part's documents, their decisions, and the names of their groups."""
    documents = spec["documents"].table(spec["name"], ["id", "domain", "source", "group"])
    decisions = spec["duplicates"].table(spec["name"], ["id", "kept", "survivor"])
    if not documents["id"].equals(decisions["id"]):
        raise IntegrityError(
            f"split: the rows of {spec['name']} in {spec['duplicates'].where()} are not those of {spec['documents'].where()}. "
            "Run deduplicate again with --force deduplicate."
        )
    return documents, decisions, group_names(documents["id"], documents["group"], decisions["survivor"])


def count_one(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    documents, decisions, names = _read(spec)
    write.table(_counts(spec["name"]), count_groups(names, documents["domain"], decisions["kept"]), content=False)
    return {}


def split_one(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    documents, decisions, names = _read(spec)
    config: SplitConfig = spec["config"]
    sides = sides_of(names, spec["moved"], config)
    trusted = trusted_rows(documents["source"], documents["domain"], config)
    write.table(spec["name"], pa.table([documents["id"], sides, trusted, names], schema=SPLIT))
    kept = pa.table({"domain": documents["domain"], "side": sides, "trusted": trusted}).filter(decisions["kept"])
    counts = kept.group_by(["domain", "side", "trusted"]).aggregate([([], "count_all")]).to_pylist()
    return {"rows": documents.num_rows, "counts": [[row["domain"], row["side"], row["trusted"], row["count_all"]] for row in counts]}


def _by_domain(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Kept documents by domain and side, and the trusted ones among them, whatever their side."""
    sums: dict[str, dict[str, int]] = {}
    for domain, side, trusted, number in (count for result in results for count in result["counts"]):
        cell = sums.setdefault(domain, dict.fromkeys([*SIDES, "trusted"], 0))
        cell[side] += number
        cell["trusted"] += number if trusted else 0
    return dict(sorted(sums.items()))


def _warn(out: Output, config: SplitConfig) -> None:
    """Say which settings could not be met, and which had no effect."""
    domains: dict[str, dict[str, int]] = out.figures["domains"]
    for held_out, share in (("validation", config.validation), ("test", config.test)):
        without = [domain for domain, cell in domains.items() if cell[held_out] == 0]
        if without and (share or config.least_documents):
            out.warn(f"no {held_out} documents of {', '.join(without)}: too few groups to hold any out; their figures will be missing")
    if (config.trusted_sources or config.trusted_domains) and not any(cell["trusted"] for cell in domains.values()):
        named = ", ".join([*config.trusted_sources, *config.trusted_domains])
        out.warn(f"nothing is trusted: no document comes from {named} (split.trusted_sources, split.trusted_domains)")
