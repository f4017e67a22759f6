"""Text to ids, a document a row, the end token last. The ids are those of the exported tokenizer.json, whichever encoder is used.

A literal `<|endoftext|>` in a document is text: only we write the control token.
"""

import json
from collections.abc import Iterator

import gigatoken
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from contract.errors import InputError, IntegrityError
from tokens.trainer import END

HOSTILE = (
    "",
    f"{END} a {END}{END} <|pad|><|pad|>",
    "\x00\x00 a\x00b",
    "don't DON'T we'Ll  x\t\t y \n\n \r\n z   ",
    " " * 70 + "=" * 300 + "a" * 300 + "\n" * 70,
    "Ünïcödé 日本語 العربية हिन्दी 👩‍👩‍👧‍👦 e\u0301 \u00a0\u2028\ufeff 12345 ٣٤٥ ½ Ⅳ",
)
"""What encoders disagree on first; compared at the start of every part beside some of its documents."""

_BATCH_BYTES = 2**23
_CACHE_BYTES = 2**26
"""gigatoken's caches have no bound (80 MB of random words took 0.6 GB, 2026-11-21): start anew after this much text, at 20 ms a load."""


class Encoder:
    """Encodes documents by gigatoken or by `tokenizers` (the reference), in batches of bounded memory, on one thread."""

    def __init__(self, tokenizer_json: bytes, encoder: str = "gigatoken") -> None:
        self._json = tokenizer_json
        self._reference = Tokenizer.from_str(tokenizer_json.decode())
        self._reference.encode_special_tokens = True
        end_id = self._reference.token_to_id(END)
        if end_id is None:
            raise InputError(f"tokenizer.json has no {END}, the token that ends a document; use one that train_tokenizer made")
        self.end_id = int(end_id)
        self.vocab_size: int = self._reference.get_vocab_size()
        self._is_fast = encoder == "gigatoken"
        self._fast: gigatoken.Tokenizer | None = None
        self._cached_bytes = 0

    def encode(self, texts: pa.Array | pa.ChunkedArray) -> pa.Array:
        """large_list<uint32>, one row a text: its ids and the end token."""
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        texts = texts.cast(pa.large_string())
        pieces = [self._batch(batch) for batch in batches(texts, _BATCH_BYTES)]
        return pa.concat_arrays(pieces) if pieces else pa.array([], pa.large_list(pa.uint32()))

    def check(self, texts: pa.Array | pa.ChunkedArray, num_documents: int = 8) -> None:
        """Compare the fast encoder with the reference on hostile texts and on some of `texts`, spread evenly.

        Raises IntegrityError where an id differs: falling back here would leave the parts already encoded in doubt.
        """
        if not self._is_fast:
            return
        rows = sorted({len(texts) * i // num_documents for i in range(num_documents)} if len(texts) else ())
        for text in (*HOSTILE, *(texts[row].as_py()[:8192] for row in rows)):
            ours = self.encode(pa.array([text], pa.large_string()))[0].as_py()
            theirs = [*self._reference.encode(text, add_special_tokens=False).ids, self.end_id]
            if ours != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
                raise IntegrityError(
                    f"gigatoken {ours[at : at + 4]} and tokenizers {theirs[at : at + 4]} disagree at token {at} of {text[:60]!r}; "
                    f"the ids must be those of tokenizer.json. Set tokenizer.encoder to tokenizers, and please report the text."
                )

    def _batch(self, texts: pa.Array) -> pa.Array:
        ids, ends = self._fast_ids(texts) if self._is_fast else self._reference_ids(texts)
        closed = np.insert(ids, ends, np.uint32(self.end_id))
        offsets = np.concatenate([[0], ends + np.arange(1, len(ends) + 1)])
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(closed, pa.uint32()))

    def _fast_ids(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        if self._fast is None or self._cached_bytes > _CACHE_BYTES:
            self._fast, self._cached_bytes = _without_added_tokens(self._json), 0
        self._cached_bytes += texts.nbytes
        import awkward as ak  # 0.2 s, which a run whose stages are cached does not pay

        layout = self._fast.encode_batch(ak.from_arrow(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        return np.asarray(layout.content.data, np.uint32)[offsets[0] : offsets[-1]], offsets[1:] - offsets[0]

    def _reference_ids(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        rows = [encoding.ids for encoding in self._reference.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return np.fromiter((token for row in rows for token in row), np.uint32, count=int(ends[-1])), ends


def _without_added_tokens(tokenizer_json: bytes) -> gigatoken.Tokenizer:
    """gigatoken has no switch for literal special tokens; a file that names none makes them text."""
    value = json.loads(tokenizer_json)
    value["added_tokens"] = []
    return gigatoken.Tokenizer.from_json(json.dumps(value))


def batches(texts: pa.Array, num_bytes: int) -> Iterator[pa.Array]:
    """Consecutive slices of about `num_bytes` of text, at least one row each."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1] if len(texts) else np.zeros(1)
    row = 0
    while row < len(texts):
        stop = max(row + 1, int(np.searchsorted(offsets, offsets[row] + num_bytes, side="right")) - 1)
        yield texts[row:stop]
        row = stop
