"""What fixes a model's size. Apart from the model, so that reading a config does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the parameters' names and sizes, and what is computed from them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    context: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(f"hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a whole, even head size")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    def num_parameters(self) -> int:
        attention = self.hidden_size * self.head_size * (2 * self.num_heads + 2 * self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * layer + self.hidden_size

    def flops_per_token(self, seq_len: int) -> int:
        """Of a training step, both ways: 6 for each matrix weight, 12 · layers · hidden · seq_len for attention (PaLM, appendix B).

        A looked-up embedding multiplies nothing; a tied table is counted, as it is the head.
        """
        norms = (2 * self.num_layers + 1) * self.hidden_size
        lookup = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return 6 * (self.num_parameters() - norms - lookup) + 12 * self.num_layers * self.hidden_size * seq_len
