"""Deduplication as steps over tables: what one process does for one part, one bucket or one shard, and how they chain.

sign_part (a part) -> edges_of_bucket (a bucket of keys) -> clusters (all rows) -> gather (a part) -> settle (a shard of
clusters) -> decide (a part). A storage between the steps makes them resumable and wider than memory; `deduplicate` chains
them over tables in memory. The decisions depend on neither buckets, shards nor the order of parts.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.schemas import DECISIONS
from dedup.config import DeduplicateConfig
from dedup.pairs import EDGES, KEYS, Clusters, clusters, edges_of_bucket
from dedup.shingles import count_chars, text_buffers
from dedup.signatures import band_keys, content_digests, sign
from dedup.verification import DROPPED, Comparisons, members_schema, settle

READS = ["id", "text", "domain", "source"]
KEYS_IN_BUCKET = 1 << 22  # about 100 MB of keys, and as much again while they are sorted
MOST_BUCKETS = 64  # every bucket reads the signatures of all parts once
SHARD_CHARS = 1 << 27  # texts that one process holds while it settles clusters
ROW_WEIGHT = 1 << 10  # what a row costs besides its text: signature, ids


def num_buckets(documents: int, config: DeduplicateConfig) -> int:
    """How many buckets the keys are spread over: a function of the number of documents and the banding."""
    return min(MOST_BUCKETS, max(1, -(-documents * (config.num_bands + 2) // KEYS_IN_BUCKET)))


def halves(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(n, 2) uint64 of a column of 16 bytes: its two halves, big-endian as they are written."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.frombuffer(array.buffers()[1], ">u8", 2 * len(array), 16 * array.offset).astype(np.uint64).reshape(-1, 2)


def sign_part(documents: pa.Table, first_row: int, buckets: int, config: DeduplicateConfig) -> tuple[pa.Table, list[pa.Table]]:
    """What later steps need of a part's documents (rank, chars, digest, signature), and their KEYS by bucket.

    first_row: the number of the part's first row among all rows.
    """
    texts = text_buffers(documents["text"])
    coded = content_digests(texts).dictionary_encode()
    copy_of = coded.indices.to_numpy()
    first = np.unique(copy_of, return_index=True)[1]  # a text that the part holds twice is signed once
    signatures = sign(texts, config, first)[copy_of]
    digests = coded.dictionary.take(coded.indices)
    signed = pa.table(
        {
            "rank": pa.array(_rank(documents, config), pa.int32()),
            "chars": pa.array(count_chars(*texts)),
            "digest": digests,
            "signature": _packed(signatures),
        }
    )
    return signed, _keys(documents["id"], digests, signatures, first_row, buckets, config)


def _rank(documents: pa.Table, config: DeduplicateConfig) -> np.ndarray:
    """The place in `prefer` of a document's source or domain, whichever comes first; after all of them when neither is there."""
    rank = np.full(documents.num_rows, len(config.prefer), np.int32)
    for place in reversed(range(len(config.prefer))):
        named = pc.or_(pc.equal(documents["source"], config.prefer[place]), pc.equal(documents["domain"], config.prefer[place]))
        rank[named.to_numpy()] = place
    return rank


def _packed(signatures: np.ndarray) -> pa.Array:
    whole = np.ascontiguousarray(signatures, "<u4")
    return pa.Array.from_buffers(pa.binary(4 * whole.shape[1]), whole.shape[0], [None, pa.py_buffer(whole)])


def unpacked(column: pa.ChunkedArray, config: DeduplicateConfig) -> np.ndarray:
    packed, count = column.combine_chunks(), config.num_permutations
    return np.frombuffer(packed.buffers()[1], "<u4", len(packed) * count, packed.offset * 4 * count).reshape(-1, count)


def _keys(
    ids: pa.ChunkedArray, digests: pa.Array, signatures: np.ndarray, first_row: int, buckets: int, config: DeduplicateConfig
) -> list[pa.Table]:
    digest, identity, bands = halves(digests), halves(ids), config.num_bands
    key = np.column_stack([band_keys(signatures, bands), digest[:, 0], identity[:, 0]]).ravel()
    other = np.column_stack([np.repeat(digest[:, :1], bands, axis=1), digest[:, 1], identity[:, 1]]).ravel()
    kind = np.tile(np.arange(bands + 2, dtype=np.uint16), len(ids))
    row = np.repeat(np.arange(first_row, first_row + len(ids)), bands + 2)
    bucket = (key % np.uint64(buckets)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(buckets + 1))
    whole = pa.table([kind[order], key[order], other[order], row[order]], schema=KEYS)
    return [whole.slice(start, end - start) for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Gathering:
    """The rows of one part that go to one shard: place in the part, cluster, and whether the text goes too."""

    shard: int
    places: np.ndarray
    cluster: np.ndarray
    near: np.ndarray


def shards(found: Clusters, chars: np.ndarray, most_chars: int = SHARD_CHARS) -> np.ndarray:
    """The shard of each row of `found`: clusters in order of their roots, a shard's texts bounded, a cluster never divided."""
    weight = np.where(found.near, chars[found.rows], 0) + ROW_WEIGHT
    _, cluster = np.unique(found.root, return_inverse=True)
    size = np.bincount(cluster, weight).astype(np.int64)
    start = np.cumsum(size) - size
    return np.unique(start // most_chars, return_inverse=True)[1][cluster]


def gatherings(found: Clusters, shard: np.ndarray, first_rows: np.ndarray) -> list[list[Gathering]]:
    """For each part, what it hands to which shard. first_rows: (parts + 1) numbers of the parts' first rows."""
    ends = np.searchsorted(found.rows, first_rows)
    plan = []
    for part, (start, end) in enumerate(itertools.pairwise(ends)):
        here = shard[start:end]
        chosen = [start + np.flatnonzero(here == number) for number in np.unique(here)]
        plan.append(
            [Gathering(int(shard[rows[0]]), found.rows[rows] - first_rows[part], found.root[rows], found.near[rows]) for rows in chosen]
        )
    return plan


def gather(documents: pa.Table, signed: pa.Table, first_row: int, wanted: Gathering, config: DeduplicateConfig) -> pa.Table:
    """The members (members_schema) that a part hands to a shard."""
    places = pa.array(wanted.places)
    columns = {name: signed[name].take(places) for name in ("rank", "chars", "digest", "signature")}
    columns |= {"row": pa.array(wanted.places + first_row), "cluster": pa.array(wanted.cluster), "id": documents["id"].take(places)}
    text_places = pa.array(wanted.places, mask=~wanted.near)
    columns |= {"text": documents["text"].take(text_places), "signature": signed["signature"].take(text_places)}
    schema = members_schema(config)
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


def decide(ids: pa.ChunkedArray, dropped: pa.Table, first_row: int) -> pa.Table:
    """DECISIONS of one part. dropped: the DROPPED rows of this part."""
    places = dropped["row"].to_numpy() - first_row
    drop = np.full(len(ids), -1, np.int64)
    drop[places] = np.arange(places.size)
    at = pa.array(drop, mask=drop < 0)
    reason = pc.if_else(dropped["exact"], "exact_duplicate", "near_duplicate")
    return pa.table([ids, drop < 0, reason.take(at), dropped["survivor"].take(at)], schema=DECISIONS)


def rows_between(dropped: pa.Table, start: int, end: int) -> pa.Table:
    """The DROPPED rows from number `start` to `end` of a table sorted by row: a copy, as a slice takes all rows along when pickled."""
    return dropped.take(pa.array(np.arange(*np.searchsorted(dropped["row"].to_numpy(), [start, end]))))


def figures(documents: int, dropped: pa.Table, comparisons: Comparisons, config: DeduplicateConfig) -> dict[str, int | float]:
    """What deduplication came to, in numbers that depend on the documents alone."""
    exact = pc.sum(dropped["exact"]).as_py() or 0
    similarity = dropped["jaccard"].to_numpy()
    chains = int((similarity < config.threshold).sum())
    copies = np.bincount(dropped["survivor"].combine_chunks().dictionary_encode().indices.to_numpy(), minlength=1)
    return {
        "documents": documents,
        "kept": documents - dropped.num_rows,
        "exact_duplicates": exact,
        "near_duplicates": dropped.num_rows - exact,
        "components": len(dropped["survivor"].unique()),
        "largest_component": int(copies.max()) + 1 if dropped.num_rows else 0,
        "chain_documents": chains,
        "chain_share": round(chains / dropped.num_rows, 6) if dropped.num_rows else 0.0,
        "least_jaccard_to_survivor": round(float(similarity.min()), 6) if dropped.num_rows else 1.0,
    } | {f"pairs_{name}": count for name, count in asdict(comparisons).items()}


def total(comparisons: Sequence[Comparisons]) -> Comparisons:
    return Comparisons(*(sum(getattr(one, field.name) for one in comparisons) for field in fields(Comparisons)))


def deduplicate(
    parts: Sequence[pa.Table], config: DeduplicateConfig, buckets: int | None = None, shard_chars: int = SHARD_CHARS
) -> tuple[list[pa.Table], dict[str, int | float]]:
    """DECISIONS for each part (columns READS), and the figures: all steps, one after the other, in memory."""
    first_rows = np.concatenate([[0], np.cumsum([part.num_rows for part in parts], dtype=np.int64)])
    documents = int(first_rows[-1])
    count = buckets or num_buckets(documents, config)
    signed, keys = zip(*(sign_part(part, int(first), count, config) for part, first in zip(parts, first_rows, strict=False)), strict=True)
    signatures = pa.concat_tables(part.select(["signature"]) for part in signed)

    def signatures_of(rows: np.ndarray) -> np.ndarray:
        return unpacked(signatures["signature"].take(pa.array(rows)), config)

    edges = [edges_of_bucket(pa.concat_tables(part[bucket] for part in keys), signatures_of, config) for bucket in range(count)]
    found = clusters(documents, pa.concat_tables([EDGES.empty_table(), *edges]))
    shard = shards(found, np.concatenate([part["chars"].to_numpy() for part in signed]), shard_chars)
    members: dict[int, list[pa.Table]] = {}
    for part, wanted in enumerate(gatherings(found, shard, first_rows)):
        for each in wanted:
            members.setdefault(each.shard, []).append(gather(parts[part], signed[part], int(first_rows[part]), each, config))
    settled = [settle(pa.concat_tables(members[number]), config) for number in sorted(members)]
    dropped = pa.concat_tables([DROPPED.empty_table(), *(table for table, _ in settled)]).sort_by("row")
    decisions = [
        decide(part["id"], rows_between(dropped, start, end), start)
        for part, start, end in zip(parts, first_rows.tolist(), first_rows[1:].tolist(), strict=False)
    ]
    return decisions, figures(documents, dropped, total([comparisons for _, comparisons in settled]), config)
