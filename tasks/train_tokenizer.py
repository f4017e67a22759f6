"""train_tokenizer: a sample of the selected train text, by the mixture and under a byte budget, to a byte-level BPE vocabulary.

The sample is found part by part (sizes, then text); training itself has no parts and is redone whole after a kill.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.config import Frozen
from contract.errors import InputError
from contract.ledger import Count, Ledger, total
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from store.artifact import Artifact
from tasks.curated import Curated, utf8_bytes
from tokens.config import Temperature, TokenizerConfig, Weights
from tokens.encoder import Encoder
from tokens.mixture import Draw, allocate, prefix, shares
from tokens.order import id_words, keys
from tokens.trainer import head, train


class Learning(Frozen):
    """Of the configuration, what the vocabulary depends on; how much is packed later is not part of it."""

    tokenizer: TokenizerConfig
    weights: Weights
    temperature: Temperature | None


@stage(
    version=1,
    # the encoder is left out by its default: which one encodes the corpus later does not change the vocabulary
    config=lambda c: Learning(
        tokenizer=c.tokenizer.model_copy(update={"encoder": "gigatoken"}), weights=c.mix.weights, temperature=c.mix.temperature
    ),
    counts="selection",
)
def train_tokenizer(
    documents: Artifact,
    selection: Artifact,
    splits: Artifact,
    pii: Artifact,
    config: Learning,
    out: Output,
    contamination: Artifact | None = None,
) -> Ledger:
    """tokenizer.json, the same for any order and number of parts. Figures: bytes a token by domain, on the sample.

    Which documents: the first of a seeded order of ids within each domain, until its share of `sample_bytes` is reached.
    """
    curated = Curated(documents, selection, splits, pii, contamination)
    spec = {"curated": curated, "config": config.tokenizer}
    names = curated.names()
    sized = map_parts(out, size_part, [Part(f"sizes-{name}", {**spec, "name": name}) for name in names])
    draws = _draws(out, config, sized)
    parts = [Part(f"sample-{name}", {**spec, "name": name, "draws": draws}) for name in names]
    sampled = map_parts(out, sample_part, parts)
    sample = pa.concat_tables([out.reader.table(f"sample-{name}") for name in names])
    tokenizer_json = train(sample["text"].to_pylist(), config.tokenizer)
    out.bytes("tokenizer.json", tokenizer_json)
    out.figures |= _figures(sample, Encoder(tokenizer_json))
    if out.figures["vocab_size"] < config.tokenizer.vocab_size:
        out.warn(f"the sample gave {out.figures['vocab_size']:,} of {config.tokenizer.vocab_size:,} entries: it has no more pairs to merge")
    before = total(Count.from_json(part["documents"]) for part in sized)
    used = sum(part["documents"] for part in sampled)
    return Ledger(documents=Count(before.came_in, used, dropped={**before.dropped, "not_sampled": before.out - used}))


def size_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """Bytes of the part's train documents, of the longest prefix of the seeded order that the whole budget could use."""
    kept, trained = spec["curated"].kept(spec["name"])
    documents = _Documents.read(spec, trained)
    stock, rows = {}, []
    for domain in np.unique(documents.domain).tolist():
        here = np.flatnonzero((documents.domain == domain) & (documents.sizes > 0))
        key, words, sizes = documents.keys[here], documents.words[here], documents.sizes[here]
        stock[domain] = int(sizes.sum())
        most = prefix(key, words, sizes, min(stock[domain], spec["config"].sample_bytes))
        rows.append(here[most.taken(key, words, sizes) > 0])
    chosen = np.concatenate([np.zeros(0, np.int64), *rows])
    columns = [documents.ids.take(pa.array(chosen)), pa.array(documents.domain[chosen], pa.string()), documents.sizes[chosen]]
    write.table(f"sizes-{spec['name']}", pa.table(columns, names=["id", "domain", "bytes"]), content=False)
    num_kept, num_trained = int(kept.sum()), int(trained.sum())
    return {"documents": Count(num_kept, num_trained, dropped={"not_train": num_kept - num_trained}).to_json(), "bytes": stock}


def sample_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """The text of a part's sampled documents, long ones from their beginning."""
    _, trained = spec["curated"].kept(spec["name"])
    documents = _Documents.read(spec, trained)
    limit = np.zeros(len(trained), np.int64)
    for domain, chosen in spec["draws"].items():
        here = documents.domain == domain
        taken = chosen.taken(documents.keys[here], documents.words[here], documents.sizes[here])
        is_whole = (taken > 0) & (taken == documents.sizes[here])
        limit[np.flatnonzero(trained)[here]] = np.where(is_whole, spec["config"].max_document_bytes, taken)
    text = spec["curated"].text(spec["name"], limit > 0)
    heads = [head(one, size) for one, size in zip(text["text"].to_pylist(), limit[limit > 0].tolist(), strict=True)]
    sample = pa.table({"domain": text["domain"], "text": pa.array(heads, pa.large_string())})
    write.table(f"sample-{spec['name']}", sample, content=False)
    return {"documents": len(sample)}


@dataclass(frozen=True)
class _Documents:
    """Documents as the draw sees them: raw sizes, as redaction and cuts change few bytes and would cost a pass over the text."""

    ids: pa.Array
    words: np.ndarray
    keys: np.ndarray
    sizes: np.ndarray
    domain: np.ndarray

    @classmethod
    def read(cls, spec: dict[str, Any], rows: np.ndarray) -> "_Documents":
        table = spec["curated"].documents.table(spec["name"], ["id", "domain", "text"]).filter(pa.array(rows))
        words = id_words(table["id"])
        sizes = np.minimum(utf8_bytes(table["text"]), spec["config"].max_document_bytes)
        domain = table["domain"].to_numpy()
        return cls(table["id"].combine_chunks(), words, keys(words, spec["config"].seed, "sample"), sizes, domain)


def _draws(out: Output, config: Learning, sized: list[dict[str, Any]]) -> dict[str, Draw]:
    stock: dict[str, int] = {}
    for part in sized:
        for domain, size in part["bytes"].items():
            stock[domain] = stock.get(domain, 0) + size
    weights = shares(stock, config.weights, config.temperature)
    wanted = allocate(stock, weights, config.tokenizer.sample_bytes)
    if not sum(wanted.values()):
        raise InputError(
            "train_tokenizer found no text: `select` kept no train document of a domain that has a weight. "
            f"Train text by domain, in bytes: {stock or 'none'}; mix.weights: {dict(config.weights)}."
        )
    if absent := sorted(name for name, weight in weights.items() if weight and not stock.get(name)):
        lost = sum(weights[name] for name in absent)
        out.warn(f"there is no text of {', '.join(absent)} to train on: their share of the mixture ({lost:.0%}) goes to the other domains")
    table = pa.concat_tables([out.reader.table(name) for name in out.reader.names("sizes-")])
    words, sizes = id_words(table["id"]), table["bytes"].to_numpy()
    key, domain = keys(words, config.tokenizer.seed, "sample"), table["domain"].to_numpy()
    draws = {}
    for one, amount in sorted(wanted.items()):
        here = domain == one
        draws[one] = prefix(key[here], words[here], sizes[here], amount)
    return draws


def _figures(sample: pa.Table, encoder: Encoder) -> dict[str, Any]:
    sizes = {}
    for domain in sorted(set(sample["domain"].to_pylist())):
        text = sample.filter(pc.equal(sample["domain"], domain))["text"]
        num_bytes, num_tokens = int(utf8_bytes(text).sum()), len(encoder.encode(text).flatten())
        sizes[domain] = {"documents": len(text), "bytes": num_bytes, "bytes_per_token": num_bytes / num_tokens}
    return {"vocab_size": encoder.vocab_size, "sample": sizes}
