"""Settle clusters of candidates: compare texts exactly, join those that are alike, and choose the one that stays.

A cluster is settled whole in one process, so that pairs already connected are skipped, and its result depends on its
documents alone: neither on the order of parts nor on which other clusters are settled beside it.
"""

from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.components import find, roots, union
from dedup.config import DeduplicateConfig
from dedup.pairs import changes, estimate, first_shared_band, group
from dedup.shingles import jaccard, jaccard_of_pairs, leading_power, new_table, text_buffers
from dedup.signatures import DIGEST_BYTES, band_keys


def members_schema(config: DeduplicateConfig) -> pa.Schema:
    """A row of a cluster. One row of each distinct text that has candidates holds the text and its signature; the rest null."""
    return pa.schema(
        [
            ("row", pa.int64()),
            ("cluster", pa.int64()),
            ("id", pa.binary(16)),
            ("rank", pa.int32()),
            ("chars", pa.int64()),
            ("digest", pa.binary(DIGEST_BYTES)),
            ("signature", pa.binary(4 * config.num_permutations)),
            ("text", pa.large_string()),
        ]
    )


DROPPED = pa.schema([("row", pa.int64()), ("survivor", pa.binary(16)), ("exact", pa.bool_()), ("jaccard", pa.float64())])
"""A document that is dropped. exact: a copy of it comes before it in the order of survival. jaccard: to the survivor."""


@dataclass(frozen=True)
class Comparisons:
    """What became of the candidate pairs of distinct texts."""

    skipped: int = 0  # connected by then
    unlike: int = 0  # by their signatures
    rejected: int = 0  # by exact Jaccard
    verified: int = 0


@numba.njit(nogil=True, cache=True)
def _compare(
    data: np.ndarray,
    offsets: np.ndarray,
    signatures: np.ndarray,
    members: np.ndarray,
    starts: np.ndarray,
    bands: np.ndarray,
    rows_per_band: int,
    ngram: int,
    power: np.uint64,
    least: float,
    threshold: float,
    parent: np.ndarray,
) -> np.ndarray:
    """Join in `parent` the texts that are alike, of all pairs that share a group. Returns the counts of Comparisons."""
    counts, table = np.zeros(4, np.int64), new_table()
    for g in range(bands.size):
        for i in range(starts[g], starts[g + 1]):
            a = members[i]
            for j in range(i + 1, starts[g + 1]):
                b = members[j]
                if first_shared_band(signatures[a], signatures[b], rows_per_band) != bands[g]:
                    continue
                if find(parent, a) == find(parent, b):
                    counts[0] += 1
                elif estimate(signatures[a], signatures[b]) < least:
                    counts[1] += 1
                else:
                    similarity, table = jaccard(data, offsets, a, b, ngram, power, table)
                    if similarity < threshold:
                        counts[2] += 1
                    else:
                        counts[3] += 1
                        union(parent, a, b)
    return counts


def settle(members: pa.Table, config: DeduplicateConfig) -> tuple[pa.Table, Comparisons]:
    """DROPPED rows of whole clusters (members_schema), and what their comparisons came to.

    The survivor of a component is the first by (rank of `prefer`, longer text, id). Memory: the texts of the clusters.
    """
    members = members.combine_chunks().sort_by([("cluster", "ascending"), ("digest", "ascending"), ("text", "ascending")])
    cluster = members["cluster"].to_numpy()
    new_text = changes(cluster, members["digest"].combine_chunks().dictionary_encode().indices.to_numpy())
    text_of = np.cumsum(new_text) - 1  # nulls sort last, so the first row of a text holds it, if any does
    texts = members.filter(pa.array(new_text))
    component, comparisons = _components(texts, config)

    ids = members["id"].combine_chunks().dictionary_encode()
    id_rank = np.empty(len(ids.dictionary), np.int64)
    id_rank[pc.sort_indices(ids.dictionary).to_numpy()] = np.arange(id_rank.size)
    order = np.lexsort((id_rank[ids.indices.to_numpy()], -members["chars"].to_numpy(), members["rank"].to_numpy(), component[text_of]))
    first = np.flatnonzero(changes(component[text_of][order]))
    survivor = np.empty(order.size, np.int64)
    survivor[order] = order[np.repeat(first, np.diff(np.append(first, order.size)))]

    seen_before = np.ones(order.size, bool)  # the first row of each text, in the order of survival, is no copy
    seen_before[order[np.unique(text_of[order], return_index=True)[1]]] = False
    gone = np.flatnonzero(survivor != np.arange(order.size))
    similarity = _to_survivor(texts, text_of[gone], text_of[survivor[gone]], config)
    rows = members["row"].to_numpy()[gone]
    kept_ids = members["id"].combine_chunks().take(pa.array(survivor[gone]))
    return pa.table([rows, kept_ids, seen_before[gone], similarity], schema=DROPPED), comparisons


def _components(texts: pa.Table, config: DeduplicateConfig) -> tuple[np.ndarray, Comparisons]:
    """The component of each distinct text, after comparison of the candidates within each cluster."""
    parent = np.arange(texts.num_rows, dtype=np.int64)
    near = np.flatnonzero(texts["text"].is_valid().to_numpy())
    if near.size == 0:
        return parent, Comparisons()
    compared = texts.take(pa.array(near))
    packed = compared["signature"].combine_chunks()
    signatures = np.frombuffer(packed.buffers()[1], "<u4", near.size * config.num_permutations, packed.offset * 4 * config.num_permutations)
    signatures = signatures.reshape(near.size, -1)
    bands = np.tile(np.arange(config.num_bands), near.size)
    keys = band_keys(signatures, config.num_bands).ravel()
    cluster = np.repeat(compared["cluster"].to_numpy(), config.num_bands)
    order = np.lexsort((keys, bands, cluster))
    groups = group(bands[order], order // config.num_bands, cluster[order], bands[order], keys[order])
    local = np.arange(near.size, dtype=np.int64)
    counts = _compare(
        *text_buffers(compared["text"]),
        signatures,
        groups.members,
        groups.starts,
        groups.bands,
        config.rows_per_band,
        config.ngram_chars,
        leading_power(config.ngram_chars),
        config.least_estimate,
        config.threshold,
        local,
    )
    parent[near] = near[roots(local)]
    return parent, Comparisons(*counts.tolist())


def _to_survivor(texts: pa.Table, dropped: np.ndarray, survivor: np.ndarray, config: DeduplicateConfig) -> np.ndarray:
    """Exact Jaccard of dropped texts to the text kept in their place; each distinct text is compared once."""
    similarity = np.ones(dropped.size)
    other = np.flatnonzero(dropped != survivor)
    distinct, first, back = np.unique(dropped[other], return_index=True, return_inverse=True)
    involved, places = np.unique(np.concatenate([distinct, survivor[other][first]]), return_inverse=True)
    if distinct.size:
        data, offsets = text_buffers(texts["text"].take(pa.array(involved)))
        left, right = places[: distinct.size], places[distinct.size :]
        exact = jaccard_of_pairs(data, offsets, left, right, config.ngram_chars, leading_power(config.ngram_chars))
        similarity[other] = exact[back]
    return similarity
