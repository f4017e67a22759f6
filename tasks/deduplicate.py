"""deduplicate: one decision a document, kept, or dropped in favour of a document that says the same."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from contract.ledger import Count, Ledger
from dedup.config import DeduplicateConfig
from dedup.pairs import EDGES, Clusters, clusters, edges_of_bucket
from dedup.steps import (
    READS,
    Gathering,
    decide,
    figures,
    gather,
    gatherings,
    num_buckets,
    rows_between,
    shards,
    sign_part,
    total,
    unpacked,
)
from dedup.verification import DROPPED, Comparisons, settle
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from store.artifact import Artifact, Files
from store.attempt import Reader


@stage(version=1, config=lambda c: c.dedup, counts="documents", rows="in")
def deduplicate(documents: Artifact, config: DeduplicateConfig, out: Output) -> Ledger:
    """DECISIONS parts beside the parts of `documents`, row for row: `select` joins them without a shuffle.

    Equal texts first, then MinHash candidates, of which those are joined whose exact Jaccard is at the threshold. The survivor
    of a component is the first by (place in `prefer`, longer text, id): the result does not depend on workers, the order of
    parts or restarts. Every step but the clustering is done by parts, each sealed when it is done. Memory: about 0.1 kB a
    document for the clustering; a bucket's keys, or a shard's texts, in each worker. Raises InputError if ids repeat.
    """
    names = documents.names()
    first_rows = np.concatenate([[0], np.cumsum([documents.rows(name) for name in names], dtype=np.int64)])
    count = int(first_rows[-1])
    buckets = num_buckets(count, config)

    parts = [{"name": name, "first_row": int(first)} for name, first in zip(names, first_rows, strict=False)]
    _map(out, "signatures", sign_one, parts, documents=documents, buckets=buckets, config=config)
    signed = out.reader
    _map(
        out,
        "pairs",
        pair_one,
        [{"bucket": bucket} for bucket in range(buckets)],
        signed=signed,
        names=names,
        first_rows=first_rows,
        config=config,
    )
    found = clusters(count, pa.concat_tables([EDGES.empty_table(), *(out.reader.table(_edges(bucket)) for bucket in range(buckets))]))

    dropped, comparisons = _settled(documents, names, first_rows, found, config, out)
    ends = zip(parts, first_rows.tolist(), first_rows[1:].tolist(), strict=False)
    decided = [part | {"dropped": rows_between(dropped, start, end)} for part, start, end in ends]
    results = _map(out, "decisions", decide_one, decided, documents=documents)
    out.figures |= figures(count, dropped, comparisons, config) | {"domains": _by_domain(results)}
    exact = out.figures["exact_duplicates"]
    reasons = {"exact_duplicate": exact, "near_duplicate": dropped.num_rows - exact}
    return Ledger(documents=Count(count, count - dropped.num_rows, dropped=reasons))


def _map(out: Output, step: str, work: Any, specs: Sequence[dict[str, Any]], **shared: Any) -> list[dict[str, Any]]:
    """map_parts over specs that have `shared` in common. Parts of one step are numbered in the order of specs."""
    return map_parts(out, work, [Part(f"{step}-{i:05d}", spec | shared) for i, spec in enumerate(specs)])


def _signed(name: str) -> str:
    return f"signatures/{name}"


def _keys(bucket: int, name: str) -> str:
    return f"keys/{bucket:03d}/{name}"


def _edges(bucket: int) -> str:
    return f"edges/{bucket:03d}.parquet"


def _members(shard: int, name: str) -> str:
    return f"members/{shard:05d}/{name}"


def _dropped(shard: int) -> str:
    return f"dropped/{shard:05d}.parquet"


def sign_one(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    documents = spec["documents"].table(spec["name"], READS)
    signed, keys = sign_part(documents, spec["first_row"], spec["buckets"], spec["config"])
    write.table(_signed(spec["name"]), signed, content=False)
    for bucket, table in enumerate(keys):
        write.table(_keys(bucket, spec["name"]), table, content=False)
    return {}


def pair_one(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    signed, names = spec["signed"], spec["names"]
    keys = pa.concat_tables(signed.table(_keys(spec["bucket"], name)) for name in names)
    signatures_of = partial(signatures_of_rows, signed, names, spec["first_rows"], spec["config"])
    write.table(_edges(spec["bucket"]), edges_of_bucket(keys, signatures_of, spec["config"]), content=False)
    return {}


def signatures_of_rows(signed: Files, names: list[str], first_rows: np.ndarray, config: DeduplicateConfig, rows: np.ndarray) -> np.ndarray:
    """The signatures of sorted rows, a part read at a time."""
    ends = np.searchsorted(rows, first_rows)
    found = [np.zeros((0, config.num_permutations), np.uint32)]
    for part, (start, end) in enumerate(itertools.pairwise(ends)):
        if start < end:
            table = signed.table(_signed(names[part]), ["signature"])
            found.append(unpacked(table["signature"].take(pa.array(rows[start:end] - first_rows[part])), config))
    return np.concatenate(found)


def _settled(
    documents: Artifact, names: list[str], first_rows: np.ndarray, found: Clusters, config: DeduplicateConfig, out: Output
) -> tuple[pa.Table, Comparisons]:
    """DROPPED of all clusters, sorted by row: members are gathered part by part into shards, and settled shard by shard."""
    signed = out.reader
    chars = np.concatenate([np.zeros(0, np.int64), *(signed.table(_signed(name), ["chars"])["chars"].to_numpy() for name in names)])
    plan = gatherings(found, shards(found, chars), first_rows)
    giving = [{"name": names[i], "first_row": int(first_rows[i]), "wanted": wanted} for i, wanted in enumerate(plan) if wanted]
    _map(out, "members", gather_one, giving, documents=documents, signed=signed, config=config)
    givers: dict[int, list[str]] = {}
    for name, wanted in zip(names, plan, strict=True):
        for each in wanted:
            givers.setdefault(each.shard, []).append(name)
    settling = [{"shard": shard, "names": givers[shard]} for shard in sorted(givers)]
    results = _map(out, "verification", settle_one, settling, members=out.reader, config=config)
    dropped = pa.concat_tables([DROPPED.empty_table(), *(out.reader.table(_dropped(shard)) for shard in sorted(givers))])
    return dropped.sort_by("row"), total([Comparisons(**result) for result in results])


def gather_one(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    wanted: list[Gathering] = spec["wanted"]
    documents = spec["documents"].table(spec["name"], ["id", "text"])
    signed = spec["signed"].table(_signed(spec["name"]))
    for each in wanted:
        write.table(_members(each.shard, spec["name"]), gather(documents, signed, spec["first_row"], each, spec["config"]), content=False)
    return {}


def settle_one(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    members: Reader = spec["members"]
    table = pa.concat_tables(members.table(_members(spec["shard"], name)) for name in spec["names"])
    dropped, comparisons = settle(table, spec["config"])
    write.table(_dropped(spec["shard"]), dropped, content=False)
    return asdict(comparisons)


def decide_one(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    documents = spec["documents"].table(spec["name"], ["id", "domain"])
    decisions = decide(documents["id"], spec["dropped"], spec["first_row"])
    write.table(spec["name"], decisions)
    counted = (
        pa.table({"domain": documents["domain"], "reason": decisions["reason"].fill_null("kept")})
        .group_by(["domain", "reason"])
        .aggregate([([], "count_all")])
    )
    return {"counts": [[row["domain"], row["reason"], row["count_all"]] for row in counted.to_pylist()]}


def _by_domain(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Documents kept and dropped, by domain."""
    sums: dict[str, dict[str, int]] = {}
    for domain, reason, number in (count for result in results for count in result["counts"]):
        cell = sums.setdefault(domain, {"kept": 0, "exact_duplicate": 0, "near_duplicate": 0})
        cell[reason] += number
    return dict(sorted(sums.items()))
