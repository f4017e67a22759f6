"""tokenize: the curated text of every split as ids, a row a kept document, the end token last."""

from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from contract.config import Frozen
from contract.ledger import Count, Ledger
from contract.schemas import TOKENS
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from store.artifact import Artifact
from tasks.curated import Curated, sums_by
from tokens.encoder import Encoder


class Encoding(Frozen):
    """Of the configuration, what the ids depend on beside tokenizer.json."""

    encoder: Literal["gigatoken", "tokenizers"]


@stage(version=1, config=lambda c: Encoding(encoder=c.tokenizer.encoder), counts="selection", rows="out")
def tokenize(
    documents: Artifact,
    selection: Artifact,
    splits: Artifact,
    pii: Artifact,
    tokenizer: Artifact,
    config: Encoding,
    out: Output,
    contamination: Artifact | None = None,
) -> Ledger:
    """TOKENS rows of the kept documents, part by part. Figures: documents, tokens and bytes by split and domain.

    The ids are those of tokenizer.json, which every part checks on some of its documents before it starts.
    """
    curated = Curated(documents, selection, splits, pii, contamination)
    spec = {"curated": curated, "tokenizer": tokenizer, "encoder": config.encoder}
    results = map_parts(out, encode_part, [Part(name.removesuffix(".parquet"), {**spec, "name": name}) for name in curated.names()])
    figures: dict[str, dict[str, dict[str, int]]] = {}
    for part in results:
        for split, domains in part["sums"].items():
            for domain, cell in domains.items():
                here = figures.setdefault(split, {}).setdefault(domain, dict.fromkeys(cell, 0))
                figures[split][domain] = {key: here[key] + cell[key] for key in cell}
    out.figures |= {"splits": {split: dict(sorted(domains.items())) for split, domains in sorted(figures.items())}}
    kept, tokens = sum(part["documents"] for part in results), sum(part["tokens"] for part in results)
    return Ledger(documents=Count(kept, kept), tokens=Count(0, tokens, added=tokens))


def encode_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    text = spec["curated"].text(spec["name"])
    encoder = Encoder(spec["tokenizer"].read("tokenizer.json"), spec["encoder"])
    encoder.check(text["text"])
    ids = encoder.encode(text["text"])
    num_tokens = pc.list_value_length(ids).cast(pa.int32())
    num_bytes = pc.binary_length(text["text"]).cast(pa.int64())
    table = pa.table([text["id"], text["domain"], text["split"], num_bytes, num_tokens, ids], schema=TOKENS)
    write.table(spec["name"], table)
    sums = sums_by(table, ["split", "domain"], ["num_tokens", "text_bytes"])
    cells = {
        split: {domain: {"documents": c["documents"], "tokens": c["num_tokens"], "bytes": c["text_bytes"]} for domain, c in by.items()}
        for split, by in sums.items()
    }
    return {"documents": len(table), "tokens": len(ids.flatten()), "sums": cells}
