"""What makes two documents one, and which of them stays."""

from pydantic import Field, model_validator

from contract.config import Fraction, Frozen


class DeduplicateConfig(Frozen):
    """Pairs with Jaccard s become candidates with probability 1 - (1 - s**rows_per_band)**num_bands."""

    ngram_chars: int = Field(default=5, ge=1, le=1000)
    """Code points in a shingle. Five is the usual choice for character shingles; a shorter text is one shingle, itself."""
    num_bands: int = Field(default=16, ge=1, le=4096)
    """Bands of a signature. 16 x 8 makes 0.947 of the pairs at Jaccard 0.80 candidates and 0.994 at 0.85; 9 x 13, which
    minimises the weighted error at 0.8, only 0.69 at 0.85. Verification removes the false ones."""
    rows_per_band: int = Field(default=8, ge=1, le=4096)
    """Permutations in a band; num_bands x rows_per_band = 128 permutations, the usual number."""
    threshold: Fraction = 0.8
    """Exact Jaccard similarity of shingle sets from which two documents count as one."""
    estimate_margin: Fraction = 0.15
    """A candidate whose signatures agree in less than threshold - estimate_margin is not compared exactly. Four standard
    errors of 128 permutations at 0.8 (0.035 each): of the pairs at the threshold itself one in 20,000 is lost by it."""
    prefer: tuple[str, ...] = ()
    """Sources or domains whose documents survive before all others, the first named first; then the longer text survives,
    then the smaller id."""
    seed: int = Field(default=1, ge=0, lt=2**64)
    """Draws the permutations."""

    @property
    def num_permutations(self) -> int:
        return self.num_bands * self.rows_per_band

    @property
    def least_estimate(self) -> float:
        return max(self.threshold - self.estimate_margin, 0.0)

    def recall(self, similarity: float) -> float:
        """The share of pairs of this Jaccard similarity that become candidates."""
        return float(1 - (1 - similarity**self.rows_per_band) ** self.num_bands)

    @model_validator(mode="after")
    def _banding_serves_threshold(self) -> "DeduplicateConfig":
        if self.recall(self.threshold) < 0.25:
            raise ValueError(
                f"{self.num_bands} bands of {self.rows_per_band} rows find {self.recall(self.threshold):.0%} of the pairs at threshold "
                f"{self.threshold:g}; raise num_bands or lower rows_per_band until at least a quarter are found"
            )
        if self.num_permutations > 4096:
            raise ValueError(f"{self.num_permutations:,} permutations make 16 kB of signature a document and more; keep them under 4,096")
        if len(set(self.prefer)) != len(self.prefer):
            raise ValueError("prefer names a source or domain twice; name it once, at its place in the order")
        return self
