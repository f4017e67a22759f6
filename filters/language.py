"""Language by fastText's lid.176 (Joulin et al. 2016; the model's licence is CC BY-SA 3.0)."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.config import LanguageConfig

SCHEMA = pa.schema([("label", pa.string()), ("probability", pa.float32()), ("target_probability", pa.float32())])

CANDIDATES = 5
"""Labels asked for: a target behind the fifth has a probability under 0.2 and is taken for 0."""
READ_AHEAD = 5
"""How many times `max_chars` is read to find so much prose."""


def load(model: Path) -> Any:
    """A fastText model, from a .bin or .ftz file."""
    import fasttext

    return fasttext.load_model(str(model))


def score(text: pa.ChunkedArray | pa.Array, model: Any, config: LanguageConfig) -> pa.Table:
    """The likeliest language, its probability, and the probability of the target language.

    A text without letters gets some label with a low probability.
    """
    words = pc.utf8_slice_codeunits(prose(text, READ_AHEAD * config.max_chars), 0, config.max_chars)
    labels, probabilities = predict(words, model, CANDIDATES)
    target = [dict(zip(names, values, strict=True)).get(config.target, 0.0) for names, values in zip(labels, probabilities, strict=True)]
    columns = [[names[0] if names else None for names in labels], [values[0] if values else None for values in probabilities], target]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def prose(text: pa.ChunkedArray | pa.Array, max_chars: int) -> pa.ChunkedArray | pa.Array:
    """The words of the first `max_chars` that are letters alone, one space between them.

    Runs of ASCII that hold digits or technical marks (paths, addresses, markup, code) are left out: fastText reads them as
    foreign. With this 97 % of 216 package descriptions are told for English at 0.7, 63 % without; single sentences of
    all languages are told right as often (79.9 and 80.2 %; 2026-11-21).
    """
    head = pc.utf8_slice_codeunits(pc.cast(text, pa.large_string()), 0, max_chars)
    words = pc.replace_substring_regex(head, r"[!-~]*[0-9\\/_=<>{}\[\]|`#*@$^~&%+][!-~]*", " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(words, r"[^\p{L}\p{M}]+", " "))


def predict(text: pa.ChunkedArray | pa.Array, model: Any, k: int) -> tuple[list[list[str]], list[list[float]]]:
    """The k likeliest labels (without `__label__`) of each text and their probabilities, at most 1.

    fastText reads one line: line breaks become spaces before it sees them. Its interface takes Python strings.
    """
    lines = pc.replace_substring_regex(text, r"\s+", " ").to_pylist()
    if not lines:
        return [], []
    labels, probabilities = model.predict(lines, k=k)
    names = [[label.removeprefix("__label__") for label in row] for row in labels]
    return names, [np.minimum(row, 1.0).tolist() for row in probabilities]
