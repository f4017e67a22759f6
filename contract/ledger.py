"""The ledger of a stage: everything that came in went out, was dropped for a reason, or was quarantined."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from contract.errors import IntegrityError


@dataclass(frozen=True)
class Count:
    """in + added = out + sum of dropped + quarantined, in one unit (documents or tokens)."""

    came_in: int = 0
    out: int = 0
    added: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0

    def balance(self) -> int:
        """How many more came in than the rest explains; 0 if the ledger balances."""
        return self.came_in + self.added - self.out - sum(self.dropped.values()) - self.quarantined

    def __add__(self, other: "Count") -> "Count":
        reasons = sorted({*self.dropped, *other.dropped})
        return Count(
            self.came_in + other.came_in,
            self.out + other.out,
            self.added + other.added,
            {reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0) for reason in reasons},
            self.quarantined + other.quarantined,
        )

    def to_json(self) -> dict:
        return {"in": self.came_in, "added": self.added, "out": self.out, "dropped": self.dropped, "quarantined": self.quarantined}

    @classmethod
    def from_json(cls, value: dict) -> "Count":
        return cls(value["in"], value["out"], value["added"], dict(value["dropped"]), value["quarantined"])


@dataclass(frozen=True)
class Ledger:
    """Counts by unit; a unit that a stage does not touch is None."""

    documents: Count | None = None
    tokens: Count | None = None

    def check(self, where: str) -> None:
        """Raise IntegrityError, with the figures, for a unit that does not balance."""
        for unit, count in (("documents", self.documents), ("tokens", self.tokens)):
            if count is not None and count.balance():
                raise IntegrityError(
                    f"{where}: {unit} do not add up: in {count.came_in:,} + added {count.added:,} is not "
                    f"out {count.out:,} + dropped {sum(count.dropped.values()):,} + quarantined {count.quarantined:,} "
                    f"({count.balance():+,}). Nothing was published; this is a fault in the stage, please report it."
                )

    def to_json(self) -> dict:
        counts = {"documents": self.documents, "tokens": self.tokens}
        return {unit: count.to_json() for unit, count in counts.items() if count is not None}

    @classmethod
    def from_json(cls, value: dict) -> "Ledger":
        return cls(**{unit: Count.from_json(count) for unit, count in value.items()})


def total(counts: Iterable[Count]) -> Count:
    """The sum of the counts of all parts."""
    return sum(counts, Count())
