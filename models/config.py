"""The size of the model, as the user writes it. The vocabulary is the tokenizer's, so it comes later, by `shape`."""

from pydantic import Field, model_validator

from contract.config import Frozen
from models.shapes import Shape


class ModelConfig(Frozen):
    """A Llama-style decoder. Defaults: 2.4 million parameters with a vocabulary of 4096, what two laptop cores can train in minutes."""

    hidden_size: int = Field(default=192, ge=1, le=2**17)
    """Width of the residual stream; num_heads must divide it."""
    intermediate_size: int = Field(default=512, ge=1, le=2**20)
    """Width inside the SwiGLU feed-forward; 8/3 of hidden_size keeps the parameters of a plain 4x one (Shazeer 2020)."""
    num_layers: int = Field(default=4, ge=1, le=1024)
    num_heads: int = Field(default=3, ge=1, le=4096)
    """Query heads; a head of 64 is what attention kernels are made for."""
    num_kv_heads: int = Field(default=1, ge=1, le=4096)
    """Key-value heads, shared by equal groups of query heads (Ainslie et al. 2023); num_heads means none are shared."""
    context: int = Field(default=256, ge=2, le=2**22)
    """Most tokens that the model sees at once; training blocks have this length."""
    rope_theta: float = Field(default=10000.0, ge=1, le=1e12)
    """Base of the rotary angles (Su et al. 2021); raise it with the context."""
    norm_eps: float = Field(default=1e-5, gt=0, le=0.1)
    """Llama 2's and 3's."""
    tie_embeddings: bool = True
    """One table for input and output (Press and Wolf 2017): in a small model it is most of the parameters."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "ModelConfig":
        self.shape(vocab_size=1)  # Shape raises ValueError, with the numbers
        return self

    def shape(self, vocab_size: int) -> Shape:
        return Shape(vocab_size=vocab_size, **self.model_dump())
