"""Who sits where: train, validation and test, and which text is trusted."""

from typing import Annotated

from pydantic import Field, model_validator

from contract.config import Fraction, Frozen, Seed, one_of
from contract.schemas import DOMAINS

Domain = Annotated[str, one_of(DOMAINS)]


class SplitConfig(Frozen):
    """Sides are drawn by group (book, host, repository, distribution), so that no group is on two sides."""

    validation: Fraction = 0.03
    """Share of groups that stopping and choosing are judged on. At 3% a corpus of 10M tokens leaves 300,000 to measure bits per
    byte with, a standard error well under 1%."""
    test: Fraction = 0.03
    """Share of groups that reported figures are measured on."""
    least_documents: int = Field(default=20, ge=0)
    """Kept documents of each domain that validation and test have at least, as long as max_held_out allows it: with fewer, one
    long document decides a domain's figure."""
    max_held_out: float = Field(default=0.2, gt=0, le=0.5)
    """The most of a domain's kept documents that one group may take to validation or test, or that reaching least_documents may
    take. A group above it stays in train, as a domain loses much by it and gains a figure that one group decides. Where every
    group of a domain is above it, the smallest goes to test, the next to validation, while a third stays in train."""
    trusted_sources: tuple[str, ...] = ()
    """Sources whose text is trusted: the perplexity model learns from its train rows, and it skips that rule."""
    trusted_domains: tuple[Domain, ...] = ("books", "reference")
    """Domains whose text is trusted. Edited prose by default; empty, with no trusted_sources, leaves the perplexity rule out."""
    seed: Seed = 1
    """Draws the sides."""

    @model_validator(mode="after")
    def _leaves_a_majority_to_train(self) -> "SplitConfig":
        if self.validation + self.test > 0.5:
            raise ValueError(
                f"validation {self.validation:g} and test {self.test:g} leave {1 - self.validation - self.test:.0%} to train; "
                "keep their sum at 0.5 or below"
            )
        return self
