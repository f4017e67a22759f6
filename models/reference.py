"""The oracle: the same model in NumPy, with cross-entropy and a backward pass written by hand.

It shares no code with models/transformer.py and keeps every intermediate, in whatever dtype the weights have (tests: float64).
For reading and for checking; nothing else runs it. Shape letters as in transformer.py, c for half a head.
"""

import numpy as np

from models.shapes import Shape

Array = np.ndarray
Weights = dict[str, np.ndarray]
IGNORED = -100


def loss_and_gradients(weights: Weights, shape: Shape, tokens_BT: Array, targets_BT: Array) -> tuple[float, Weights]:
    """Mean cross-entropy over the targets that are not -100, and its gradient by every weight."""
    hidden_BTD, tape = _trunk(weights, shape, tokens_BT)
    head = weights[head_name(shape)]
    logits_BTV = hidden_BTD @ head.T
    loss, dlogits_BTV = cross_entropy(logits_BTV, targets_BT)
    gradients = {name: np.zeros_like(value) for name, value in weights.items()}
    gradients[head_name(shape)] += _outer(dlogits_BTV, hidden_BTD)
    _trunk_backward(weights, shape, tape, dlogits_BTV @ head, gradients)
    return loss, gradients


def forward(weights: Weights, shape: Shape, tokens_BT: Array) -> Array:
    """logits_BTV."""
    return _trunk(weights, shape, tokens_BT)[0] @ weights[head_name(shape)].T


def head_name(shape: Shape) -> str:
    return "model.embed_tokens.weight" if shape.tie_embeddings else "lm_head.weight"


def cross_entropy(logits_BTV: Array, targets_BT: Array) -> tuple[float, Array]:
    """The mean loss over targets that count, and its gradient by the logits: (softmax - one-hot) / count."""
    counts_BT = targets_BT != IGNORED
    targets_BT = np.where(counts_BT, targets_BT, 0)
    shifted = logits_BTV - logits_BTV.max(-1, keepdims=True)
    log_p_BTV = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked_BT = np.take_along_axis(log_p_BTV, targets_BT[..., None], -1)[..., 0]
    dlogits = np.exp(log_p_BTV)
    np.put_along_axis(dlogits, targets_BT[..., None], np.take_along_axis(dlogits, targets_BT[..., None], -1) - 1, -1)
    return float(-(picked_BT * counts_BT).sum() / counts_BT.sum()), dlogits * counts_BT[..., None] / counts_BT.sum()


# --- the trunk ------------------------------------------------------------------------------------------------------------------


def _trunk(weights: Weights, shape: Shape, tokens_BT: Array) -> tuple[Array, dict]:
    x_BTD = weights["model.embed_tokens.weight"][tokens_BT]
    angles = rope_angles(tokens_BT.shape[1], shape)
    layers = []
    for i in range(shape.num_layers):
        w = _layer_weights(weights, i)
        normed, norm_tape = rms_norm(x_BTD, w["input_layernorm"], shape.norm_eps)
        attended, attention_tape = attention(w, shape, normed, angles)
        x_BTD = x_BTD + attended
        normed, second_norm_tape = rms_norm(x_BTD, w["post_attention_layernorm"], shape.norm_eps)
        fed, mlp_tape = swiglu(w, normed)
        x_BTD = x_BTD + fed
        layers.append((norm_tape, attention_tape, second_norm_tape, mlp_tape))
    hidden_BTD, final_tape = rms_norm(x_BTD, weights["model.norm.weight"], shape.norm_eps)
    return hidden_BTD, {"tokens": tokens_BT, "angles": angles, "layers": layers, "final": final_tape}


def _trunk_backward(weights: Weights, shape: Shape, tape: dict, dhidden_BTD: Array, gradients: Weights) -> None:
    """Add the gradient of every weight of the trunk to `gradients`."""
    dx, gradients["model.norm.weight"] = rms_norm_backward(dhidden_BTD, weights["model.norm.weight"], tape["final"])
    for i in reversed(range(shape.num_layers)):
        w = _layer_weights(weights, i)
        norm_tape, attention_tape, second_norm_tape, mlp_tape = tape["layers"][i]
        dnormed, found = swiglu_backward(w, dx, mlp_tape)
        dresidual, found["post_attention_layernorm"] = rms_norm_backward(dnormed, w["post_attention_layernorm"], second_norm_tape)
        dx = dx + dresidual
        dnormed, found_attention = attention_backward(w, shape, dx, tape["angles"], attention_tape)
        dresidual, found["input_layernorm"] = rms_norm_backward(dnormed, w["input_layernorm"], norm_tape)
        dx = dx + dresidual
        for name, gradient in (found | found_attention).items():
            gradients[f"model.layers.{i}.{name}.weight"] = gradient
    np.add.at(gradients["model.embed_tokens.weight"], tape["tokens"], dx)


def _layer_weights(weights: Weights, layer: int) -> Weights:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix).removesuffix(".weight"): w for name, w in weights.items() if name.startswith(prefix)}


# --- its pieces, forward and backward ------------------------------------------------------------------------------------------


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    """weight · x / sqrt(mean(x²) + eps)."""
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return weight * x * scale, (x, scale)


def rms_norm_backward(dy: Array, weight: Array, tape: tuple) -> tuple[Array, Array]:
    x, scale = tape
    dweight = (dy * x * scale).reshape(-1, x.shape[-1]).sum(0)
    dunit = dy * weight
    return scale * (dunit - x * scale**2 * (dunit * x).mean(-1, keepdims=True)), dweight


def rope_angles(seq_len: int, shape: Shape) -> tuple[Array, Array]:
    """cos and sin of position · theta^(-2i/C), (T, C), the same angles for both halves of a head."""
    frequencies = shape.rope_theta ** (-np.arange(0, shape.head_size, 2) / shape.head_size)
    angles_TC = np.tile(np.outer(np.arange(seq_len), frequencies), 2)
    return np.cos(angles_TC), np.sin(angles_TC)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn each pair (i, i + C/2) by its angle; with -sin, back again: the transpose of a rotation is its inverse."""
    left, right = np.split(x, 2, -1)
    return x * cos + np.concatenate((-right, left), -1) * sin


def attention(w: Weights, shape: Shape, x_BTD: Array, angles: tuple[Array, Array]) -> tuple[Array, tuple]:
    """Causal attention, query head h reading key-value head h // (H / K)."""
    group = shape.num_heads // shape.num_kv_heads
    q = rotate(_split_heads(x_BTD @ w["self_attn.q_proj"].T, shape), *angles)
    k = rotate(_split_heads(x_BTD @ w["self_attn.k_proj"].T, shape), *angles).repeat(group, 1)
    v = _split_heads(x_BTD @ w["self_attn.v_proj"].T, shape).repeat(group, 1)
    scores_BHTS = q @ k.swapaxes(-1, -2) / np.sqrt(shape.head_size)
    scores_BHTS = np.where(np.tri(x_BTD.shape[1], dtype=bool), scores_BHTS, -np.inf)
    p_BHTS = np.exp(scores_BHTS - scores_BHTS.max(-1, keepdims=True))
    p_BHTS /= p_BHTS.sum(-1, keepdims=True)
    y_BTD = _join_heads(p_BHTS @ v)
    return y_BTD @ w["self_attn.o_proj"].T, (x_BTD, q, k, v, p_BHTS, y_BTD)


def attention_backward(w: Weights, shape: Shape, dout: Array, angles: tuple[Array, Array], tape: tuple) -> tuple[Array, Weights]:
    x_BTD, q, k, v, p_BHTS, y_BTD = tape
    cos, sin = angles
    dy = _split_heads(dout @ w["self_attn.o_proj"], shape)
    dp = dy @ v.swapaxes(-1, -2)
    dscores = p_BHTS * (dp - (dp * p_BHTS).sum(-1, keepdims=True)) / np.sqrt(shape.head_size)
    dq = _join_heads(rotate(dscores @ k, cos, -sin))
    dk = _join_heads(rotate(_sum_groups(dscores.swapaxes(-1, -2) @ q, shape), cos, -sin))
    dv = _join_heads(_sum_groups(p_BHTS.swapaxes(-1, -2) @ dy, shape))
    dx = dq @ w["self_attn.q_proj"] + dk @ w["self_attn.k_proj"] + dv @ w["self_attn.v_proj"]
    return dx, {
        "self_attn.q_proj": _outer(dq, x_BTD),
        "self_attn.k_proj": _outer(dk, x_BTD),
        "self_attn.v_proj": _outer(dv, x_BTD),
        "self_attn.o_proj": _outer(dout, y_BTD),
    }


def swiglu(w: Weights, x: Array) -> tuple[Array, tuple]:
    """down(silu(gate(x)) · up(x)), silu(g) = g · sigmoid(g)."""
    gate, up = x @ w["mlp.gate_proj"].T, x @ w["mlp.up_proj"].T
    sigmoid = 1 / (1 + np.exp(-gate))
    inner = gate * sigmoid * up
    return inner @ w["mlp.down_proj"].T, (x, gate, up, sigmoid, inner)


def swiglu_backward(w: Weights, dout: Array, tape: tuple) -> tuple[Array, Weights]:
    x, gate, up, sigmoid, inner = tape
    dinner = dout @ w["mlp.down_proj"]
    dgate = dinner * up * sigmoid * (1 + gate * (1 - sigmoid))
    dup = dinner * gate * sigmoid
    dx = dgate @ w["mlp.gate_proj"] + dup @ w["mlp.up_proj"]
    return dx, {"mlp.gate_proj": _outer(dgate, x), "mlp.up_proj": _outer(dup, x), "mlp.down_proj": _outer(dout, inner)}


def _outer(dy: Array, x: Array) -> Array:
    """The gradient of W in y = x Wᵀ, summed over all rows."""
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def _split_heads(x_BTD: Array, shape: Shape) -> Array:
    return x_BTD.reshape(*x_BTD.shape[:2], -1, shape.head_size).swapaxes(1, 2)


def _join_heads(x_BHTC: Array) -> Array:
    return x_BHTC.swapaxes(1, 2).reshape(x_BHTC.shape[0], x_BHTC.shape[2], -1)


def _sum_groups(dx_BHTC: Array, shape: Shape) -> Array:
    """Back from query heads to the key-value head they share."""
    batch, _, seq_len, size = dx_BHTC.shape
    return dx_BHTC.reshape(batch, shape.num_kv_heads, -1, seq_len, size).sum(2)
