"""Loss and bits per byte of documents by any model that gives logits.

    bits per byte = total nats / (ln 2 * UTF-8 bytes of the materialised text)

The nats cover every token of a document, its end token too, each exactly once: a model pays for saying where text ends, and gets no
byte for it. Every document starts alone, with the end token before it as its only context (as in training, where the end
token of the document before stands there); no text of another document is ever seen.

Letters of shapes: B windows in a batch, T tokens in a window, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.passes import Each, batches
from models.losses import IGNORED

Nats = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(tokens_BT, targets_BT), int64 -> nats_N of the targets that are not IGNORED, in their order; causal, so padding at the right
changes nothing to its left."""


@dataclass(frozen=True)
class Score:
    """Totals over documents, and the two figures made of them."""

    nats: float
    tokens: int
    text_bytes: int
    documents: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / (math.log(2) * self.text_bytes)

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.nats + other.nats, self.tokens + other.tokens, self.text_bytes + other.text_bytes, self.documents + other.documents
        )

    def to_json(self) -> dict:
        return {
            "bits_per_byte": self.bits_per_byte,
            "loss": self.loss,
            "nats": self.nats,
            "tokens": self.tokens,
            "bytes": self.text_bytes,
            "documents": self.documents,
        }


@dataclass(frozen=True)
class Window:
    """Positions start..end of document `row` are the targets; those before `scored` were scored in the window before."""

    row: int
    start: int
    scored: int
    end: int


def windows(row: int, length: int, context: int, overlap: float) -> Iterator[Window]:
    """Windows of at most `context` targets that move by context * (1 - overlap), each target is scored in the first that holds it."""
    stride = max(1, context - int(context * overlap))
    end = min(context, length)
    yield Window(row, 0, 0, end)
    while end < length:
        scored, end = end, min(end + stride, length)
        yield Window(row, end - context, scored, end)


def document_nats(
    nats_of: Nats,
    documents: Sequence[np.ndarray],
    end_id: int,
    context: int,
    overlap: float = 0.5,
    batch_tokens: int = 16_384,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    each: Each = map,
) -> np.ndarray:
    """Nats of each document, float64. `documents`: token ids, the end token last.

    Windows of about equal length go through the model together; the sum is taken in the order of the documents, so only the
    forward pass itself can depend on the batch.
    """
    work = [w for row, ids in enumerate(documents) if len(ids) for w in windows(row, len(ids), context, overlap)]
    work.sort(key=lambda w: (w.end - w.start, w.row, w.start))
    nats = np.zeros(len(work))
    done = 0
    together = batches(work, lambda w: (1, w.end - w.start), batch_tokens)
    for of_batch in each(lambda batch: _window_nats(nats_of, batch, documents, end_id, device), together):
        nats[done : done + len(of_batch)] = of_batch
        done += len(of_batch)
        if progress is not None:
            progress(done, len(work))
    rows = np.array([w.row for w in work], np.int64)
    order = np.lexsort((np.array([w.start for w in work], np.int64), rows))
    return np.bincount(rows[order], weights=nats[order], minlength=len(documents))


@torch.inference_mode()
def _window_nats(nats_of: Nats, batch: list[Window], documents: Sequence[np.ndarray], end_id: int, device: str) -> np.ndarray:
    longest = max(w.end - w.start for w in batch)
    inputs = np.full((len(batch), longest), end_id, np.int64)
    targets = np.full((len(batch), longest), IGNORED, np.int64)
    for i, w in enumerate(batch):
        ids = documents[w.row]
        length = w.end - w.start
        inputs[i, 0] = ids[w.start - 1] if w.start else end_id
        inputs[i, 1:length] = ids[w.start : w.end - 1]
        targets[i, w.scored - w.start : length] = ids[w.scored : w.end]
    nats_N = nats_of(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
    nats_BT = np.zeros(targets.shape)
    nats_BT[targets != IGNORED] = nats_N.double().cpu().numpy()
    return nats_BT.sum(1)


def score_by_domain(
    nats: np.ndarray, documents: Sequence[np.ndarray], text_bytes: Sequence[int], domains: Sequence[str]
) -> dict[str, Score]:
    """Totals by domain, names sorted, and `all` over everything last. Documents of no text are counted with their end token."""
    scores: dict[str, Score] = {}
    for value, ids, size, domain in zip(nats, documents, text_bytes, domains, strict=True):
        scores[domain] = scores.get(domain, Score(0.0, 0, 0, 0)) + Score(float(value), len(ids), int(size), 1)
    by_name = {domain: scores[domain] for domain in sorted(scores)}
    return {**by_name, "all": sum(by_name.values(), Score(0.0, 0, 0, 0))}
