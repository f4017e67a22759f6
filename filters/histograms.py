"""Histograms of signals for the report, with edges that are the same for every part and every run, so that parts add up."""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

_SHARE = np.linspace(0, 1, 21).round(2).tolist()
_POWERS = [0.0, *(float(2**k) for k in range(21))]
EDGES: dict[tuple[str, str], list[float]] = {
    ("rules", "words"): _POWERS,
    ("rules", "mean_word_chars"): [float(k) for k in range(21)],
    ("rules", "punctuation_fraction"): _SHARE,
    ("rules", "alpha_word_fraction"): _SHARE,
    ("rules", "duplicate_line_fraction"): _SHARE,
    ("rules", "top_2gram_char_fraction"): _SHARE,
    ("rules", "duplicate_5gram_char_fraction"): _SHARE,
    ("language", "target_probability"): _SHARE,
    ("perplexity", "perplexity"): _POWERS,
    ("toxicity", "toxic_words_per_1000"): _POWERS[:12],
    ("toxicity", "probability"): _SHARE,
    ("pii", "count"): _POWERS[:12],
    ("contamination", "overlap_fraction"): _SHARE,
}
"""The last bin holds all that is above it."""


def histograms(signals: Mapping[str, pa.Table]) -> dict[str, list[int]]:
    """Counts by `family.column` of the signals that there are; null is not counted."""
    return {f"{family}.{column}": _counts(signals[family][column], EDGES[family, column]) for family, column in EDGES if family in signals}


def _counts(column: pa.ChunkedArray, edges: list[float]) -> list[int]:
    values = column.drop_null().to_numpy()
    return np.histogram(np.minimum(values, edges[-1]), np.array(edges))[0].tolist()


def added(parts: Iterable[Mapping[str, list[int]]]) -> dict[str, dict[str, list]]:
    """The parts' counts summed, each with its edges: {signal: {edges, counts}}; signals that no document has are left out."""
    totals: dict[str, np.ndarray] = {}
    for part in parts:
        for name, counts in part.items():
            totals[name] = totals.get(name, np.zeros(len(counts), np.int64)) + np.array(counts)
    return {
        name: {"edges": EDGES[tuple(name.split("."))], "counts": counts.tolist()}  # type: ignore[index]
        for name, counts in sorted(totals.items())
        if counts.any()
    }
