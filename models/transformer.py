"""The decoder: RoPE, RMSNorm, SwiGLU and grouped-query attention, with the parameter names of Hugging Face's Llama.

`state_dict()` has LlamaForCausalLM's names (LlamaForSequenceClassification's for ScalarModel), so an export is a
config.json beside a safetensors file and no weight is ever renamed. Needs torch alone. No dropout: one pass over much
text does not want it, and with none a step is a pure function of weights and batch.

Shape letters: B batch, T query positions, S key positions (cached ones first), D hidden size, V vocabulary,
H query heads, K key-value heads, C head size (D / H).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.losses import linear_cross_entropy
from models.shapes import Shape as Shape  # part of this module's face


class Cache:
    """Keys and values of the positions seen so far, in room set aside once: a step writes its own column and copies nothing."""

    def __init__(self, shape: Shape, batch: int, capacity: int, like: Tensor) -> None:
        size = (shape.num_layers, batch, shape.num_kv_heads, capacity, shape.head_size)
        self.keys = like.new_zeros(size)
        self.values = like.new_zeros(size)
        self.length = 0

    def extend(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new positions of one layer; returns all of that layer's keys and values, old and new."""
        end = self.length + k_BKTC.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BKTC
        self.values[layer, :, :, self.length : end] = v_BKTC
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # The mean square is summed in fp32 at least: bf16 has 8 bits, and a sum over 1024 of them keeps none of the small ones.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_size = shape.head_size
        kv_size = shape.num_kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        q = rotate(self._heads(self.q_proj(x_BTD)), rope)
        k = rotate(self._heads(self.k_proj(x_BTD)), rope)
        v = self._heads(self.v_proj(x_BTD))
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        # With no mask given, more than one query means plain causal attention, and one query may see all that is before it.
        causal = mask is None and q.shape[2] > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=k.shape[1] != q.shape[1])
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(2, (-1, self.head_size)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, mask, cache, layer)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Trunk(nn.Module):
    """Tokens to final hidden states; `model.` in Llama's names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps)

    def forward(
        self, tokens_BT: Tensor, attention_mask_BS: Tensor | None = None, positions_BT: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        past, num_new = (cache.length if cache is not None else 0), tokens_BT.shape[1]
        if positions_BT is None:
            positions_BT = _positions(tokens_BT, attention_mask_BS, past)
        x_BTD = self.embed_tokens(tokens_BT)
        rope = rope_table(positions_BT, self.shape.head_size, self.shape.rope_theta, x_BTD.dtype)
        mask = attention_bias(attention_mask_BS, past, num_new, tokens_BT.device)
        for i, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, rope, mask, cache, i)
        if cache is not None:
            cache.length += num_new
        return self.norm(x_BTD)


class Transformer(nn.Module):
    """The language model. With tied embeddings there is no `lm_head.weight`: the table is the head, as in Llama's saved files."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        if not shape.tie_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def hidden(
        self, tokens_BT: Tensor, attention_mask_BS: Tensor | None = None, positions_BT: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Final hidden states (B, T, D), normalised: `logits` of them are the model's logits.

        attention_mask_BS: 1 where a token is real, 0 where it is padding, on either side, cached positions included. Padding
        on the right needs none, as no real token looks to its right; what comes out at padding is finite and means nothing.
        positions_BT: defaults to the count of real tokens before. cache: holds S - T earlier positions and takes these.
        """
        return self.model(tokens_BT, attention_mask_BS, positions_BT, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): take only the positions that are needed, the vocabulary is the widest thing here."""
        return F.linear(hidden, self.head_VD)

    @property
    def head_VD(self) -> Tensor:
        return self.model.embed_tokens.weight if self.shape.tie_embeddings else self.lm_head.weight

    def forward(
        self,
        tokens_BT: Tensor,
        attention_mask_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: Cache | None = None,
        targets_BT: Tensor | None = None,
    ) -> Tensor:
        """The logits (B, T, V); with targets the sum of their nats instead, those that are IGNORED left out, and no logits are kept."""
        hidden_BTD = self.hidden(tokens_BT, attention_mask_BS, positions_BT, cache)
        if targets_BT is not None:
            return linear_cross_entropy(hidden_BTD.flatten(0, 1), self.head_VD, targets_BT.flatten())
        return self.logits(hidden_BTD)


class ScalarModel(nn.Module):
    """The trunk with one number a position: a reward (read at the last real token) or PPO's value (read at each)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.score = nn.Linear(shape.hidden_size, 1, bias=False)

    @classmethod
    def from_transformer(cls, model: Transformer, seed: int) -> "ScalarModel":
        """A copy of a language model's trunk under a new head (`initialise` says how it is drawn)."""
        scalar = cls(model.shape).to(model.model.embed_tokens.weight)
        initialise(scalar, seed)
        scalar.model.load_state_dict(model.model.state_dict())
        return scalar

    def forward(self, tokens_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """values_BT: one value a position."""
        return self.score(self.model(tokens_BT, attention_mask_BT)).squeeze(-1)

    def reward(self, tokens_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """rewards_B: the value at each row's last real token, as LlamaForSequenceClassification reads it."""
        hidden_BD = last_real(self.model(tokens_BT, attention_mask_BT), attention_mask_BT)
        return self.score(hidden_BD).squeeze(-1)


def last_real(x_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Of each row what stands at its last position whose mask is 1; trailing dimensions are kept."""
    places = torch.arange(attention_mask_BT.shape[1], device=x_BT.device)
    last_B = (attention_mask_BT.long() * places).argmax(1)
    return x_BT[torch.arange(len(x_BT), device=x_BT.device), last_B]


def rope_table(positions_BT: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, C) of position · theta^(-2i/C), each half of C the same angles.

    In fp32 by the same operations as transformers' Llama, never in bf16 (which cannot count past 256), so that an exported
    model computes the same angles; in fp64 for a float64 model, as the oracle's test wants.
    """
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    steps = torch.arange(0, head_size, 2, device=positions_BT.device, dtype=torch.int64).to(kind)
    angles_BTc = positions_BT.to(kind)[..., None] * (1.0 / theta ** (steps / head_size))
    angles_BTC = torch.cat((angles_BTc, angles_BTc), -1)[:, None]
    return angles_BTC.cos(), angles_BTC.sin()


def rotate(x_BHTC: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding in the rotate-half order: component i turns with component i + C/2 (not with its neighbour)."""
    cos, sin = rope
    left, right = x_BHTC.chunk(2, -1)
    return (x_BHTC * cos + torch.cat((-right, left), -1) * sin).to(x_BHTC.dtype)


def attention_bias(attention_mask_BS: Tensor | None, past: int, num_new: int, device: torch.device) -> Tensor | None:
    """Which keys each query may see, as booleans that broadcast to (B, H, T, S); None where causal attention says it all."""
    if attention_mask_BS is None and (past == 0 or num_new == 1):
        return None
    keys = torch.arange(past + num_new, device=device)
    queries = keys[past:, None]
    causal_TS = keys <= queries
    if attention_mask_BS is None:
        return causal_TS
    # A padding query still sees itself: a softmax over nothing is NaN, and NaN times zero would reach the gradients.
    return (causal_TS & attention_mask_BS.bool()[:, None, :] | (keys == queries))[:, None]


def _positions(tokens_BT: Tensor, attention_mask_BS: Tensor | None, past: int) -> Tensor:
    num_new = tokens_BT.shape[1]
    if attention_mask_BS is None:
        return torch.arange(past, past + num_new, device=tokens_BT.device)[None]
    return (attention_mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, past:]


@torch.no_grad()
def initialise(model: Transformer | ScalarModel, seed: int) -> None:
    """Draw the weights: N(0, 0.02), the two projections that write to the residual stream divided by sqrt(2 · layers) (GPT-2, 2.3).

    The score head: N(0, 1 / (D + 1)) (Stiennon et al. 2020, appendix B.1). Drawn on the CPU in the order of the parameters, so
    that the device cannot change a weight.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = 0.02 / math.sqrt(2 * model.shape.num_layers)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
            continue
        std = 0.02
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std = residual_std
        elif name == "score.weight":
            std = 1 / math.sqrt(model.shape.hidden_size + 1)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
