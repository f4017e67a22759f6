"""What a language model must beat: a bigram and a KenLM n-gram of the very tokens that it was trained on, and gzip.

    bits per byte = total nats / (ln 2 * UTF-8 bytes of the text)

As in evaluation/bits_per_byte.py, every token of a document is counted, its end token too, and the first is predicted from the
end token before it. Both n-grams are normalised over the token vocabulary alone (tests sum them up), so their nats compare.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract.child_processes import run_tool


def bits_per_byte(nats: float, text_bytes: int) -> float:
    return nats / (math.log(2) * text_bytes)


def gzip_bits_per_byte(texts: Iterable[str]) -> float:
    """gzip -9 of all texts as one stream, a zero byte after each: as a model pays for the end token, and gets no byte for it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed, size = 0, 0
    for text in texts:
        raw = text.encode()
        size += len(raw)
        packed += len(packer.compress(raw + b"\0"))
    return 8 * (packed + len(packer.flush())) / size


@dataclass(frozen=True)
class Bigram:
    """Interpolated absolute discounting (Ney, Essen and Kneser 1994): bigram, then unigram, then uniform.

    P(w | v) = max(c(v w) - d2, 0) / c(v) + d2 types(v) / c(v) * P(w);  P(w) = max(c(w) - d1, 0) / N + d1 types / N * 1 / V.
    With d = n1 / (n1 + 2 n2) of the counts of each order.
    """

    pairs: np.ndarray
    """v * V + w of the pairs seen, sorted."""
    counts: np.ndarray
    context_counts: np.ndarray
    context_types: np.ndarray
    unigram: np.ndarray
    discount: float

    @property
    def vocab_size(self) -> int:
        return len(self.unigram)

    def nats(self, previous: np.ndarray, current: np.ndarray) -> np.ndarray:
        """-ln P(current | previous), elementwise."""
        codes = _codes(previous, current, self.vocab_size)
        at = np.minimum(np.searchsorted(self.pairs, codes), len(self.pairs) - 1)
        seen = np.where(self.pairs[at] == codes, self.counts[at] - self.discount, 0.0)
        total = self.context_counts[previous]
        is_known = total > 0
        total = np.where(is_known, total, 1)
        backoff = np.where(is_known, self.discount * self.context_types[previous] / total, 1.0)
        return -np.log(seen / total + backoff * self.unigram[current])


def bigram(previous: np.ndarray, current: np.ndarray, vocab_size: int) -> Bigram:
    """Count pairs of neighbours (`block_pairs` gives those of training blocks). Memory: 16 bytes a pair while sorting."""
    pairs, counts = np.unique(_codes(previous, current, vocab_size), return_counts=True)
    contexts = pairs // vocab_size
    context_counts = np.bincount(contexts, weights=counts, minlength=vocab_size)
    context_types = np.bincount(contexts, minlength=vocab_size)
    words = np.bincount(current, minlength=vocab_size)
    seen, discount = words[words > 0], _discount(words)
    unigram = np.maximum(words - discount, 0) / seen.sum() + discount * len(seen) / seen.sum() / vocab_size
    return Bigram(pairs, counts, context_counts, context_types, unigram, _discount(counts))


def _codes(previous: np.ndarray, current: np.ndarray, vocab_size: int) -> np.ndarray:
    return previous.astype(np.int64) * vocab_size + current.astype(np.int64)


def _discount(counts: np.ndarray) -> float:
    """Between 0 and 1, also where no count is 1 or 2 (then 0.5, as nothing can be estimated)."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5


def block_pairs(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(previous, current) of every target of training blocks (n, context + 1): just what the model was trained to predict."""
    return blocks[:, :-1].reshape(-1), blocks[:, 1:].reshape(-1)


def document_nats(model: Bigram, documents: Sequence[np.ndarray], end_id: int) -> np.ndarray:
    """Nats of each document (ids, the end token last; never empty)."""
    if not documents:
        return np.zeros(0)
    current = np.concatenate(documents).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in documents])])[:-1]
    previous = np.concatenate([[end_id], current[:-1]])
    previous[starts] = end_id
    return np.add.reduceat(model.nats(previous, current), starts)


def train_kenlm(blocks: np.ndarray, order: int, lmplz: Path, build_binary: Path, folder: Path, memory: str = "1G") -> Path:
    """A modified Kneser-Ney n-gram (lmplz) of blocks of ids, one block a line and one id a word. Returns a binary file in `folder`."""
    text, arpa, binary = folder / "blocks.txt", folder / "blocks.arpa", folder / "blocks.binary"
    with text.open("w") as file:
        for block in blocks:
            file.write(" ".join(map(str, block.tolist())) + "\n")
    run_tool([lmplz, "-o", order, "-S", memory, "-T", folder, "--discount_fallback", "--text", text, "--arpa", arpa])
    text.unlink()
    run_tool([build_binary, "-s", "probing", arpa, binary])  # no quantisation: the figure is the model's own
    arpa.unlink()
    return binary


def kenlm_document_nats(binary: Path, documents: Sequence[np.ndarray], end_id: int, vocab_size: int) -> np.ndarray:
    """Nats of each document under a model of ids, normalised over the `vocab_size` ids.

    KenLM also gives probability to its own </s>, which is no token (a block's end): that share is taken out of every
    prediction. Its <unk> stands for all ids that training did not hold, so it is shared among them.
    """
    import kenlm

    model = kenlm.Model(str(binary))
    words = [str(i) for i in range(vocab_size)]
    is_unseen = np.array([word not in model for word in words])
    share = -math.log10(max(1, int(is_unseen.sum())))
    empty, first, state, following = kenlm.State(), kenlm.State(), kenlm.State(), kenlm.State()
    model.NullContextWrite(empty)
    model.BaseScore(empty, str(end_id), first)
    nats = np.zeros(len(documents))
    for row, ids in enumerate(documents):
        state, total = first, 0.0
        for token in ids.tolist():
            stop = model.BaseScore(state, "</s>", following)
            total += model.BaseScore(state, words[token], following) - math.log10(1 - 10**stop)
            total += share if is_unseen[token] else 0.0
            state, following = following, kenlm.State()
        nats[row] = -total * math.log(10)
    return nats
