"""Settings of the tokens room: the tokenizer, and the mixture that is packed into blocks."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from contract.config import Frozen, Seed
from contract.schemas import DOMAINS

Weights = dict[str, Annotated[float, Field(ge=0, le=1e9)]]
Temperature = Annotated[float, Field(ge=0.1, le=1e6)]


class TokenizerConfig(Frozen):
    """A byte-level BPE vocabulary: 256 bytes, two special tokens, the rest merges learned from a sample of the train split."""

    vocab_size: int = Field(default=32_000, ge=258, le=2**20)
    """Entries in all. 32,000 is the 350m preset's; 4,096 did better than 2,048 and 8,192 was not tried on the laptop."""
    pattern: Literal["gpt2", "llama3"] = "gpt2"
    """The pre-tokenizer, unchanged, so that other tools know it: GPT-2's, or Llama 3's (digits in threes, contractions in any case)."""
    sample_bytes: int = Field(default=10_000_000, ge=1)
    """Text to learn from, shared over the domains by the mixture. 20 MB and 6 MB gave the same at 4,096 entries (trial of 2026-11-21)."""
    max_document_bytes: int = Field(default=2**17, ge=1)
    """At most this much of one document, from its beginning, so that no single book is a domain's whole sample."""
    encoder: Literal["gigatoken", "tokenizers"] = "gigatoken"
    """What encodes the corpus. Both give the same ids (checked at the start of every part); gigatoken is 20 to 50 times faster."""
    seed: Seed = 1
    """Which documents of a domain are in the sample."""


class MixConfig(Frozen):
    """How many tokens of each domain are trained on, in what order, in blocks of what length."""

    weights: Weights = Field(
        default={"web": 40.0, "books": 20.0, "code": 15.0, "academic": 10.0, "reference": 10.0, "conversation": 5.0}, validate_default=True
    )
    """Shares in tokens; they need not sum to 100. A domain that is left out is not trained on. Given whole, they replace all weights;
    `mix.weights.web` changes one."""
    temperature: Temperature | None = None
    """Instead of the weights: a domain of n tokens weighs n^(1/temperature). 1: as it comes; large: all domains alike."""
    total_tokens: int | None = Field(default=None, ge=1)
    """Tokens wanted, repeats included; as many as the train split holds when unset."""
    max_epochs: float = Field(default=4.0, gt=0, le=1e6)
    """The most often a domain is gone through. Up to 4 passes are nearly as good as new text (Muennighoff et al. 2023)."""
    validation_tokens: int | None = Field(default=1_000_000, ge=1)
    """Validation tokens of each domain that are packed, at most, for the loss during training; all when unset. Evaluation reads its own."""
    bucket_tokens: int = Field(default=2**24, ge=1)
    """Tokens that are sorted and packed at a time: what one worker holds in memory is about 30 bytes each."""
    seed: Seed = 1
    """The order of documents and blocks, and which documents of a domain are taken when not all are."""

    @field_validator("weights")
    @classmethod
    def _known_domains(cls, weights: Weights) -> Weights:
        unknown = sorted(set(weights) - set(DOMAINS))
        if unknown:
            raise ValueError(f"unknown domain {', '.join(unknown)}; the domains are {', '.join(DOMAINS)}")
        if not sum(weights.values()) > 0:
            raise ValueError("all weights are 0: give at least one domain a weight above 0")
        return weights
