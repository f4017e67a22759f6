"""Puts each group on one side, train, validation or test, for all later stages.

A group's side is drawn by a hash of its name, so it depends on no order and stays when other documents come. Two exceptions,
both functions of the counts of kept documents by (group, domain) alone: a group too large for a held-out side stays in train, and
a domain with too few held-out documents is given further groups, in the order of their hashes.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.config_split import SplitConfig

SIDES = ("train", "validation", "test")
COUNTS = pa.schema([("group", pa.string()), ("domain", pa.string()), ("kept", pa.int64())])
"""Kept documents by group and domain; a group whose documents were all dropped has zeros."""
GROUPS = pa.schema([("group", pa.string()), ("split", pa.string())])


def draw(group: str, config: SplitConfig) -> float:
    """The group's place in [0, 1): BLAKE2b of seed and name."""
    digest = hashlib.blake2b(f"{config.seed}\n{group}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def side(group: str, config: SplitConfig) -> str:
    """The side that the hash alone gives. For groups that a split artifact lists, its groups.parquet has the last word."""
    place = draw(group, config)
    return "test" if place < config.test else "validation" if place < config.test + config.validation else "train"


def group_names(ids: pa.ChunkedArray, groups: pa.ChunkedArray, survivors: pa.ChunkedArray) -> pa.Array:
    """The name of each document's group. Without one: the component that deduplication put it in, by the survivor's id."""
    unnamed = groups.is_null()
    component = pc.coalesce(survivors, ids).filter(unnamed)
    names = pa.array([f"component:{id.hex()}" for id in component.to_pylist()], pa.string())
    return pc.replace_with_mask(groups.combine_chunks().cast(pa.string()), unnamed.combine_chunks(), names)


def trusted_rows(sources: pa.ChunkedArray, domains: pa.ChunkedArray, config: SplitConfig) -> pa.Array:
    """Whether each document comes from a trusted source or domain."""
    from_source = pc.is_in(sources, pa.array(config.trusted_sources, pa.string()))
    return pc.or_(from_source, pc.is_in(domains, pa.array(config.trusted_domains, pa.string()))).combine_chunks()


def count_groups(names: pa.Array, domains: pa.ChunkedArray, kept: pa.ChunkedArray) -> pa.Table:
    """COUNTS of one part."""
    rows = pa.table({"group": names, "domain": domains, "kept": pc.cast(kept, pa.int64())})
    return add_counts([rows])


def add_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """The sum of COUNTS, sorted by group and domain."""
    whole = pa.concat_tables([COUNTS.empty_table(), *(table.cast(COUNTS) for table in tables)])
    summed = whole.group_by(["group", "domain"]).aggregate([("kept", "sum")]).rename_columns(["group", "domain", "kept"])
    return summed.select(COUNTS.names).sort_by([("group", "ascending"), ("domain", "ascending")])


def assign(counts: pa.Table, config: SplitConfig) -> pa.Table:
    """GROUPS: the side of every group in COUNTS, sorted by group. Memory: a few hundred bytes a group."""
    counts = add_counts([counts])
    coded = counts["group"].combine_chunks().dictionary_encode()
    names: list[str] = coded.dictionary.to_pylist()
    board = _Board(names, coded.indices.to_numpy(), counts, config)
    for domain in range(len(board.domains)):
        for held_out in (2, 1):  # test first: it is what is reported
            board.fill(domain, held_out)
    return pa.table([pa.array(names), pa.array(SIDES, pa.string()).take(pa.array(board.sides))], schema=GROUPS)


class _Board:
    """The sides of groups while they are being assigned, and the kept documents of each domain on each side."""

    def __init__(self, names: list[str], group: np.ndarray, counts: pa.Table, config: SplitConfig) -> None:
        coded = counts["domain"].combine_chunks().dictionary_encode()
        self.domains = sorted(coded.dictionary.to_pylist())
        place = np.array([self.domains.index(name) for name in coded.dictionary.to_pylist()], np.int64)
        self.config, self.group, self.domain, self.kept = config, group, place[coded.indices.to_numpy()], counts["kept"].to_numpy()
        self.draws = np.array([draw(name, config) for name in names])
        self.sides = np.where(self.draws < config.test, 2, np.where(self.draws < config.test + config.validation, 1, 0))
        self.totals = np.bincount(self.domain, self.kept, len(self.domains)).astype(np.int64)
        self.most = np.floor(self.totals * config.max_held_out).astype(np.int64)
        self.sides[self.group[self.kept > self.most[self.domain]]] = 0

    def on_side(self, held_out: int) -> np.ndarray:
        """Kept documents of each domain on one side."""
        here = self.sides[self.group] == held_out
        return np.bincount(self.domain[here], self.kept[here], len(self.domains)).astype(np.int64)

    def fill(self, domain: int, held_out: int) -> None:
        """Move groups from train, in the order of their draws, until the side holds the least count of the domain.

        A group that would take the side past max_held_out in any of its domains is passed over. If every group would, the
        smallest is moved: a domain of three books has one on each side. A third of each domain touched stays in train.
        """
        on_side, in_train = self.on_side(held_out), self.on_side(0)
        rows = np.flatnonzero((self.domain == domain) & (self.kept > 0) & (self.sides[self.group] == 0))
        rows = rows[np.lexsort((self.group[rows], self.draws[self.group[rows]]))]
        smallest = rows[np.argsort(self.kept[rows], kind="stable")][:1]
        for most, candidates, enough in ((self.most, rows, int(self.most[domain])), (self.totals, smallest, 1)):
            for row in candidates:
                if on_side[domain] >= min(self.config.least_documents, enough):
                    break
                domains, kept = self.of_group(row)
                if np.all(on_side[domains] + kept <= most[domains]) and np.all(3 * (in_train[domains] - kept) >= self.totals[domains]):
                    on_side[domains] += kept
                    in_train[domains] -= kept
                    self.sides[self.group[row]] = held_out

    def of_group(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The domains of the group that `row` of the counts is about, and its kept documents in each."""
        first, last = np.searchsorted(self.group, [self.group[row], self.group[row] + 1])
        return self.domain[first:last], self.kept[first:last]


def exceptions(groups: pa.Table, config: SplitConfig) -> dict[str, str]:
    """The groups whose side is not what their hash alone gives: few, so a part needs no table of all groups."""
    pairs = zip(groups["group"].to_pylist(), groups["split"].to_pylist(), strict=True)
    return {group: given for group, given in pairs if given != side(group, config)}


def sides_of(names: pa.Array, moved: dict[str, str], config: SplitConfig) -> pa.Array:
    """The side of each document by the name of its group."""
    coded = names.dictionary_encode()
    sides = [moved.get(name) or side(name, config) for name in coded.dictionary.to_pylist()]
    return pa.array(sides, pa.string()).take(coded.indices)
