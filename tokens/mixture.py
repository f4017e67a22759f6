"""The plan of the mixture: how much of each domain is wanted, how much there is, and so how much is taken.

Amounts are whole numbers of any unit: tokens for the blocks, bytes for the tokenizer's sample.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction

import numpy as np

from tokens.config import MixConfig
from tokens.order import ranks


@dataclass(frozen=True)
class Row:
    """One domain of the plan. `asked` is its share of the total, by weight among the domains that have text; `got` is what it gives
    after caps and sharing."""

    available: int
    weight: float
    asked: int
    got: int

    @property
    def epochs(self) -> float:
        return self.got / self.available if self.available else 0.0


@dataclass(frozen=True)
class Plan:
    asked: int
    domains: dict[str, Row]

    @property
    def got(self) -> int:
        return sum(row.got for row in self.domains.values())

    def to_json(self) -> dict:
        rows = {name: {**asdict(row), "epochs": row.epochs} for name, row in self.domains.items()}
        return {"asked": self.asked, "got": self.got, "domains": rows}


def plan(available: Mapping[str, int], config: MixConfig) -> Plan:
    """What is taken of each domain, given the tokens that its train split holds."""
    total = config.total_tokens if config.total_tokens is not None else sum(available.values())
    weights = shares(available, config.weights, config.temperature)
    names = sorted({*available, *weights})
    stock = {name: available.get(name, 0) for name in names}
    asked = allocate({name: total for name in names if stock[name]}, weights, total)
    got = allocate({name: int(Fraction(config.max_epochs) * amount) for name, amount in stock.items()}, weights, total)
    return Plan(total, {name: Row(stock[name], weights.get(name, 0.0), asked.get(name, 0), got[name]) for name in names})


def shares(available: Mapping[str, int], weights: Mapping[str, float], temperature: float | None) -> dict[str, float]:
    """Weights that sum to 1, by the temperature when there is one. Empty when nothing weighs anything."""
    raw = dict(weights) if temperature is None else {name: amount ** (1 / temperature) for name, amount in available.items() if amount}
    total = sum(raw.values())
    return {name: weight / total for name, weight in sorted(raw.items())} if total else {}


def allocate(caps: Mapping[str, int], weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Share `total` by weight; what a name cannot take (above its cap) is shared among the others, and capped again until stable.

    The sum is `total`, or all that the caps of the weighted names allow. Exact arithmetic: no order of names and no rounding
    can move a whole unit; the odd units go to the largest fractions, ties by name.
    """
    open_ = {name: Fraction(weights[name]) for name in sorted(caps) if weights.get(name, 0) > 0}
    got = dict.fromkeys(caps, 0)
    left = total
    while open_:
        unit = Fraction(left) / sum(open_.values())
        full = [name for name, weight in open_.items() if weight * unit >= caps[name]]
        if not full:
            break
        for name in full:
            got[name] = caps[name]
            left -= caps[name]
            del open_[name]
    exact = {name: weight * Fraction(left) / sum(open_.values()) for name, weight in open_.items()}
    for name, share in exact.items():
        got[name] = int(share)
    odd = left - sum(int(share) for share in exact.values()) if exact else 0
    for name in sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))[:odd]:
        got[name] += 1
    return got


@dataclass(frozen=True)
class Draw:
    """Which documents of a domain make up an amount: `passes` times all of them, then those before a limit in a seeded order.

    limit: (key, first and second half of the id) of the last one taken, of which only `cut` units are; None: no partial pass.
    """

    passes: int = 0
    limit: tuple[int, int, int] | None = None
    cut: int = 0

    def taken(self, keys: np.ndarray, words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Units taken of each document in the partial pass: its size, the cut, or 0."""
        if self.limit is None:
            return np.zeros_like(sizes)
        key, first, second = (np.uint64(part) for part in self.limit)
        high, low = words[:, 0], words[:, 1]
        before = (keys < key) | ((keys == key) & ((high < first) | ((high == first) & (low < second))))
        last = (keys == key) & (high == first) & (low == second)
        return np.where(before, sizes, np.where(last, self.cut, 0))


def draw(keys: np.ndarray, words: np.ndarray, sizes: np.ndarray, wanted: int) -> Draw:
    """The draw that gives exactly `wanted` units of documents with these keys, ids and sizes (each at least 1)."""
    stock = int(sizes.sum())
    passes, rest = divmod(wanted, stock) if stock else (0, 0)
    return replace(prefix(keys, words, sizes, rest), passes=passes)


def prefix(keys: np.ndarray, words: np.ndarray, sizes: np.ndarray, wanted: int) -> Draw:
    """The first documents in the seeded order that hold `wanted` units together, 0 to all of what there is."""
    if not wanted:
        return Draw()
    order = ranks(keys, words)
    reached = np.cumsum(sizes[order])
    last = int(np.searchsorted(reached, wanted))
    row = order[last]
    before = int(reached[last - 1]) if last else 0
    return Draw(0, (int(keys[row]), int(words[row, 0]), int(words[row, 1])), wanted - before)
