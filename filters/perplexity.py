"""Perplexity under an n-gram model (KenLM) of the trusted text: trained by lmplz, scored from Python.

The model reads words in lower case with digits as 0 and punctuation apart, a document as one sentence: so neither line
lengths nor numbers decide. lmplz gives the same bytes for the same text, whatever its memory (order 5, 1.9 MB, 2026-11-21).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contract.child_processes import run_tool
from filters.config import PerplexityConfig

SCHEMA = pa.schema([("perplexity", pa.float32()), ("tokens", pa.int32())])

SORT_MEMORY = "256M"
"""lmplz takes 80 % of the machine when it is not told."""


def load(model: Path) -> Any:
    """A KenLM model from the file that `train` wrote."""
    import kenlm

    config = kenlm.Config()
    config.show_progress = False
    return kenlm.Model(str(model), config)


def score(text: pa.ChunkedArray | pa.Array, model: Any, config: PerplexityConfig) -> pa.Table:
    """Perplexity a token, the sentence's end counted, over the first `max_chars`; null where there is no token."""
    lines = sentences(text, config.max_chars).to_pylist()
    tokens = [len(line.split()) for line in lines]
    values = [10.0 ** (-model.score(line) / (n + 1)) if n else None for line, n in zip(lines, tokens, strict=True)]
    return pa.table([pa.array(values, pa.float32()), pa.array(tokens, pa.int32())], SCHEMA)


def sentences(text: pa.ChunkedArray | pa.Array, max_chars: int) -> pa.ChunkedArray | pa.Array:
    """Each text as one line of tokens for KenLM: `On 3 May, <s>` becomes `on 0 may , < s >`."""
    line = pc.utf8_lower(pc.utf8_slice_codeunits(pc.cast(text, pa.large_string()), 0, max_chars))
    line = pc.replace_substring_regex(line, r"\p{Nd}", "0")
    line = pc.replace_substring_regex(line, r"([\p{P}\p{S}])", r" \1 ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(line, r"[\s\p{Z}\p{C}]+", " "))


def train(lines: Iterable[str], lmplz: Path, build_binary: Path, folder: Path, config: PerplexityConfig) -> tuple[Path, int, int]:
    """Train on lines that `sentences` made, the first `max_train_bytes` of them, the last one cut; the model's file, lines and bytes.

    Discounts fall back to constants where counts are too few to estimate them. The trie is quantised to 8 bits.
    """
    corpus, arpa, model = folder / "corpus.txt", folder / "model.arpa", folder / "model.binary"
    num_lines = num_bytes = 0
    with corpus.open("wb") as file:
        for line in lines:
            left = max(1, config.max_train_bytes - num_bytes - 1)
            data = line.encode()[:left].decode("utf-8", "ignore").strip().encode() or line[:1].encode()
            num_bytes, num_lines = num_bytes + file.write(data + b"\n"), num_lines + 1
            if num_bytes >= config.max_train_bytes - 1:
                break
    order = ["-o", config.order, "-S", SORT_MEMORY, "-T", folder, "--discount_fallback"]
    run_tool([lmplz, *order, "--text", corpus, "--arpa", arpa])
    quantised = ["-q", "8", "-b", "8", "-a", "256", "-S", SORT_MEMORY, "-T", folder]
    run_tool([build_binary, *quantised, "trie", arpa, model])
    corpus.unlink()
    arpa.unlink()
    return model, num_lines, num_bytes
