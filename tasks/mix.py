"""mix: the plan of the mixture, then blocks of context + 1 ids in a seeded order, validation blocks, and the curated text.

Three steps through storage: `scatter` (each part of tokens by bucket of the seeded order), `pack` (each bucket sorted and cut),
`curate` (each part of documents as text). Only the plan is made over all documents at once: about 60 bytes each.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.config import Frozen
from contract.errors import InputError
from contract.ledger import Count, Ledger
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from store.artifact import Artifact
from tasks.curated import Curated
from tokens.config import MixConfig
from tokens.mixture import Draw, draw, plan
from tokens.order import id_words
from tokens.packing import SCATTERED, pack, scatter, selection_keys, shuffled

Draws = dict[str, Draw]
"""By domain, what is taken of a split."""


class Mixing(Frozen):
    mix: MixConfig
    context: int


@stage(version=2, config=lambda c: Mixing(mix=c.mix, context=c.model.context), counts="tokens")
def mix(
    documents: Artifact,
    selection: Artifact,
    splits: Artifact,
    pii: Artifact,
    tokens: Artifact,
    config: Mixing,
    out: Output,
    contamination: Artifact | None = None,
) -> Ledger:
    """part-*.parquet (blocks), validation.parquet (blocks and their domain), plan.json, curated/part-*.parquet.

    A block holds context + 1 ids, of which the first is never a target; blocks share no token. The ledger's tokens that went
    out are targets; the others are the first of a block, the remainder of a bucket, of the test split, or not wanted by the plan.
    Raises InputError when no block can be filled.
    """
    stock = _Stock.read(tokens)
    planned = plan(stock.tokens("train"), config.mix)
    if planned.got < planned.asked:
        out.warn(
            f"{planned.asked:,} tokens are asked for (mix.total_tokens), and the text gives {planned.got:,}, each document at most "
            f"{config.mix.max_epochs:g} times (mix.max_epochs): give more text, or ask for less"
        )
    most = config.mix.validation_tokens
    wanted = {
        "train": {domain: row.got for domain, row in planned.domains.items()},
        "validation": {domain: held if most is None else min(held, most) for domain, held in stock.tokens("validation").items()},
    }
    draws = {
        split: {domain: stock.draw(split, domain, amount, config.mix.seed) for domain, amount in domains.items()}
        for split, domains in wanted.items()
    }
    out.json("plan.json", planned.to_json())
    num_buckets = max(1, -(-planned.got // config.mix.bucket_tokens))
    spec = {"tokens": tokens, "seed": config.mix.seed, "num_buckets": num_buckets, "draws": draws}
    map_parts(out, scatter_part, [Part(f"scatter-{name}", {**spec, "name": name}) for name in tokens.names()])
    packed = _pack(out, config, num_buckets)
    validation = _pack_validation(out, config, stock, list(draws["validation"]))
    curated = Curated(documents, selection, splits, pii, contamination)
    map_parts(out, curate_part, [Part(f"curate-{name}", {"curated": curated, "name": name}) for name in curated.names()])
    if not packed["blocks"]:
        raise InputError(
            f"mix cannot fill one block of {config.context + 1:,} tokens: it got {planned.got:,} of the {planned.asked:,} tokens "
            "asked for. Give it more text, or a smaller model.context."
        )
    out.figures |= {
        "context": config.context,
        "blocks": packed["blocks"],
        **planned.to_json(),
        "validation": {domain: cell for domain, cell in validation.items() if cell["blocks"]},
    }
    for cell in validation.values():
        packed.update({key: cell[key] for key in packed})
    return stock.ledger(draws, packed, config.context, config.mix.seed)


def scatter_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """Split one part of tokens over the buckets of the train split, and over the domains of the validation split."""
    table, name = spec["tokens"].table(spec["name"]), spec["name"]
    rows = {split: table.filter(pc.equal(table["split"], split)) for split in ("train", "validation")}
    for bucket, piece in scatter(rows["train"], spec["draws"]["train"], spec["seed"], spec["num_buckets"]):
        write.table(f"bucket-{bucket:05d}-{name}", piece, content=False)
    for domain, chosen in spec["draws"]["validation"].items():
        for _, piece in scatter(rows["validation"], {domain: chosen}, spec["seed"], 1):
            write.table(f"validation-{domain}-{name}", piece, content=False)
    return {}


def pack_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """One bucket as blocks."""
    packed = pack(pa.concat_tables([spec["reader"].table(name) for name in spec["names"]]), spec["context"])
    write.table(spec["name"], shuffled(packed.blocks, spec["seed"], spec["bucket"]))
    return packed.counts()


def curate_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """The text that the tokens were made of, for people and other tools."""
    text = spec["curated"].text(spec["name"]).select(["id", "text", "domain", "source", "license", "split"])
    write.table(f"curated/{spec['name']}", text)
    return {"documents": len(text)}


def _pack(out: Output, config: Mixing, num_buckets: int) -> Counter[str]:
    reader = out.reader
    parts: list[Part] = []
    for bucket in range(num_buckets):
        if names := reader.names(f"bucket-{bucket:05d}-"):
            spec = {"reader": reader, "names": names, "bucket": bucket, "seed": config.mix.seed, "context": config.context}
            parts.append(Part(f"pack-{bucket:05d}", {**spec, "name": f"part-{len(parts):05d}.parquet"}))
    packed: Counter[str] = Counter(blocks=0, documents=0, remainder_documents=0, remainder_tokens=0)
    for result in map_parts(out, pack_part, parts):
        packed.update(result)
    return packed


def _pack_validation(out: Output, config: Mixing, stock: "_Stock", domains: list[str]) -> dict[str, dict[str, Any]]:
    """validation.parquet, domain after domain, so that its loss and bits per byte can be told by domain."""
    reader, tables, cells = out.reader, [], {}
    for domain in domains:
        pieces = [reader.table(name) for name in reader.names(f"validation-{domain}-")]
        packed = pack(pa.concat_tables(pieces) if pieces else SCATTERED.empty_table(), config.context)
        column = pa.array([domain] * len(packed.blocks), pa.string())
        tables.append(packed.blocks.append_column(pa.field("domain", pa.string(), nullable=False), column))
        cells[domain] = {**packed.counts(), "bytes_per_token": stock.bytes_per_token("validation", domain)}
    if sum(cell["blocks"] for cell in cells.values()):
        out.table("validation.parquet", pa.concat_tables(tables))
    else:
        out.warn(f"no domain has {config.context + 1:,} validation tokens, one block; training will report no validation loss")
    return cells


@dataclass(frozen=True)
class _Stock:
    """Every document's id, place and size, without its ids."""

    words: np.ndarray
    domains: pa.DictionaryArray
    splits: pa.DictionaryArray
    num_tokens: np.ndarray
    text_bytes: np.ndarray

    @classmethod
    def read(cls, tokens: Artifact) -> "_Stock":
        columns = ["id", "domain", "split", "num_tokens", "text_bytes"]
        table = pa.concat_tables([tokens.table(name, columns) for name in tokens.names()]).combine_chunks()
        domain, split = (table[name].combine_chunks().dictionary_encode() for name in ("domain", "split"))
        sizes = (table[name].to_numpy().astype(np.int64) for name in ("num_tokens", "text_bytes"))
        return cls(id_words(table["id"]), domain, split, *sizes)

    def rows(self, split: str, domain: str | None = None) -> np.ndarray:
        rows = pc.equal(self.splits, split).to_numpy(zero_copy_only=False)
        return rows if domain is None else rows & pc.equal(self.domains, domain).to_numpy(zero_copy_only=False)

    def tokens(self, split: str) -> dict[str, int]:
        found = {domain: int(self.num_tokens[self.rows(split, domain)].sum()) for domain in sorted(self.domains.dictionary.to_pylist())}
        return {domain: amount for domain, amount in found.items() if amount}

    def bytes_per_token(self, split: str, domain: str) -> float:
        rows = self.rows(split, domain)
        return float(self.text_bytes[rows].sum() / self.num_tokens[rows].sum())

    def draw(self, split: str, domain: str, wanted: int, seed: int) -> Draw:
        words = self.words[rows := self.rows(split, domain)]
        return draw(selection_keys(words, seed), words, self.num_tokens[rows], wanted)

    def ledger(self, draws: Mapping[str, Draws], packed: Mapping[str, int], context: int, seed: int) -> Ledger:
        """What the draws repeat and leave, counted here, beside what the packing says that it used: the engine holds one to the other."""
        added, left = Counter(documents=0, tokens=0), Counter(documents=0, tokens=0)
        for split, by_domain in draws.items():
            for domain in sorted(self.domains.dictionary.to_pylist()):
                rows, chosen = self.rows(split, domain), by_domain.get(domain, Draw())
                words, sizes = self.words[rows], self.num_tokens[rows]
                partial = chosen.taken(selection_keys(words, seed), words, sizes)
                if chosen.passes:
                    repeats = (chosen.passes - 1) * sizes.sum() + partial.sum()
                    added.update(documents=(chosen.passes - 1) * len(sizes) + int((partial > 0).sum()), tokens=int(repeats))
                else:
                    left.update(documents=int((partial == 0).sum()), tokens=int((sizes - partial).sum()))
        others = ~(self.rows("train") | self.rows("validation"))
        unused = {"test_split": int(others.sum()), "not_wanted": left["documents"], "remainder": packed["remainder_documents"]}
        documents = Count(len(others), packed["documents"], added["documents"], unused)
        rest = {
            "test_split": int(self.num_tokens[others].sum()),
            "not_wanted": left["tokens"],
            "remainder": packed["remainder_tokens"],
            "first_of_block": packed["blocks"],
        }
        return Ledger(documents, Count(int(self.num_tokens.sum()), packed["blocks"] * context, added["tokens"], rest))
