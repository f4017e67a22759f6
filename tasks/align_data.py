"""Questions and answers, preferences, prompts and the gold judge, each with its side: what alignment learns from and is judged by.

A pair sits on the side of its group (the distribution) as `split` put it, so no answer is learned from a file that is judged on.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from contract.child_processes import run_tool
from contract.config import Frozen
from contract.errors import InputError
from contract.ledger import Count, Ledger
from contract.schemas import DOCUMENTS
from engine.installed_tools import tool
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from evaluation.gold import MODEL, SETTINGS, Squash, load_model, log_probability, tokens
from filters.config_split import SplitConfig
from filters.group_split import SIDES, side
from sources.config import AlignDataConfig, IngestIdentity, Source
from sources.opener import Opener
from sources.pieces import rows_of
from sources.plan import Selection, plan_parts
from sources.preferences import Pair, draw, negatives, pair_of, shuffled
from sources.removals import Removals
from sources.rows import Batch, Document, Unreadable
from store.artifact import Artifact
from tasks.ingest import selections, source_digests

NAMES = pa.list_(pa.string())
PAIRS = pa.schema([("prompt", pa.string()), ("response", pa.string()), ("names", NAMES), ("group", pa.string()), ("rejected", pa.string())])
SFT = pa.schema([("prompt", pa.string()), ("response", pa.string()), ("split", pa.string()), ("group", pa.string())])
PREFERENCES = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected", "kind", "split", "group")])
PROMPTS = pa.schema([("prompt", pa.string()), ("names", NAMES), ("split", pa.string()), ("group", pa.string())])
SIDE = pa.field("side", pa.string(), nullable=False)
LEAST_PAIRS = 20
GOLD = "gold"
ORIGINS = "documents.parquet"
"""The records that the pairs were made of, each with the side that its pair is on: what a takedown goes by."""


class AlignDataIdentity(Frozen):
    align_data: AlignDataConfig
    """Without its sources, whose places are no identity."""
    reading: IngestIdentity
    split: SplitConfig


def _identity(config: Any) -> AlignDataIdentity:
    sources = tuple(source if source.is_environment else _as_records(source) for source in config.align_data.sources)
    return AlignDataIdentity(
        align_data=config.align_data.model_copy(update={"sources": ()}),
        reading=IngestIdentity.of(sources, config.ingest, config.storage.endpoint_url),
        split=config.split,
    )


def _as_records(source: Source) -> Source:
    """A source of pairs: its text is the better answer, in `chosen` unless text_field says otherwise (then `response`)."""
    return source if source.text_field != "text" else source.model_copy(update={"text_field": "chosen"})


@stage(version=3, config=_identity, external=lambda config, storage: source_digests(config.reading, storage))
def align_data(splits: Artifact, config: AlignDataIdentity, out: Output) -> Ledger:
    """sft.parquet, preferences.parquet, prompts.parquet and gold/; beside them documents.parquet, which is no content: of places.

    An answer stands once in all: on the test side before validation, gold and train. Groups unknown to `splits` are drawn as
    `split` draws them. The ledger's documents are the records read; those out are used by a table or by gold.
    Raises InputError when a source has no pairs, or too few are left for a side.
    """
    pairs, read = _read(config, out)
    groups = splits.table("groups.parquet")
    known = dict(zip(groups["group"].to_pylist(), groups["split"].to_pylist(), strict=True))
    sides = _by_side(pairs, known, config)
    for name in SIDES:
        if len(sides[name]) < (LEAST_PAIRS if name == "train" else 1):
            raise InputError(
                f"align_data: {len(sides[name])} pairs on the {name} side of {len(pairs):,} read; "
                "give align_data.sources more text, or raise split.validation and split.test"
            )
    _write_tables(sides, config.align_data, out)
    _write_gold(sides[GOLD], config.align_data, out)
    used = _write_origins(sides, out)
    dropped = {name: count for name, count in read.items() if name != "pairs"} | {"not_used": read["pairs"] - used}
    return Ledger(documents=Count(came_in=read.total(), out=used, dropped=dropped))


def _read(config: AlignDataIdentity, out: Output) -> tuple[list[Pair], Counter[str]]:
    """All usable pairs of the sources, in the order of their places; and what became of each record, counted."""
    chosen = selections(config.reading, out.attempt.storage)
    if not any(selection.files for selection in chosen):
        raise InputError("align_data.sources has no files: give environment:conversation, or JSON lines with chosen and rejected")
    opener = Opener(config.reading.endpoint_url, str(out.scratch / "fetched"))
    plan = plan_parts(chosen, config.reading.ingest.part_bytes, opener)
    removals = Removals.load(out.attempt.storage, [source.name for source in config.reading.sources])
    shared = {"config": config, "sources": [_with_shape(s, config, opener) for s in chosen], "opener": opener, "removals": removals}
    parts = [Part(f"read-{number:05d}", {**shared, "pieces": pieces, "number": number}) for number, pieces in enumerate(plan)]
    results = map_parts(out, read_pairs, parts)
    read = Counter[str]()
    for result in results:
        read.update(result["read"])
    if read["no_pair"]:
        first = next(result["first"] for result in results if result["first"])
        out.warn(f"{read['no_pair']:,} records of align_data.sources could not be read or hold no pair (first: {first})")
    return [pair for name in out.reader.names("pairs-") for pair in _pairs(out, name)], read


def _pairs(out: Output, name: str) -> list[Pair]:
    rows = out.reader.table(name).to_pylist()
    return [Pair(row["prompt"], row["response"], tuple(row["names"]), row["group"], row["rejected"]) for row in rows]


def _with_shape(selection: Selection, config: AlignDataIdentity, opener: Opener) -> Source:
    """The source with the text field that its first readable record has: chosen, or response."""
    source = selection.source
    if source.is_environment:
        return source
    for field in (source.text_field, "response"):
        candidate = source.model_copy(update={"text_field": field})
        selected = replace(selection, source=candidate)
        pieces = [piece for part in plan_parts([selected], 2**20, opener) for piece in part][:1]
        for _, _, row in rows_of(pieces, [candidate], config.reading.ingest, opener):
            if isinstance(row, Document):
                return candidate
            break
    return source


def read_pairs(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """The usable pairs of one part, those within the lengths asked for, and row by row beside them the records they are of."""
    limits: AlignDataConfig = spec["config"].align_data
    found, batch, first = [], Batch(), ""
    removals: Removals = spec["removals"]
    read = {"pairs": 0, "no_pair": 0, "length": 0} | ({"removed": 0} if removals.rules else {})
    for source, _, row in rows_of(spec["pieces"], spec["sources"], spec["config"].reading.ingest, spec["opener"]):
        if isinstance(row, Document) and removals.hit(source.name, source.license, row):
            read["removed"] += 1
        elif not isinstance(row, Document) or (pair := pair_of(row)) is None:
            read["no_pair"] += 1
            first = first or (f"{row.locator}: {row.reason}" if isinstance(row, Unreadable) else f"{row.locator}: no pair")
        elif not _fits(pair, limits):
            read["length"] += 1
        else:
            read["pairs"] += 1
            found.append(pair)
            batch.add(source, row)
    write.table(f"pairs-{spec['number']:05d}.parquet", pa.Table.from_pylist([pair._asdict() for pair in found], PAIRS), content=False)
    write.table(f"records-{spec['number']:05d}.parquet", batch.table(), content=False)
    return {"read": read, "first": first}


def _fits(pair: Pair, limits: AlignDataConfig) -> bool:
    answers = [pair.response, *([pair.rejected] if pair.rejected is not None else [])]
    within = all(limits.min_response_chars <= len(answer) <= limits.max_response_chars for answer in answers)
    return within and 0 < len(pair.prompt) <= limits.max_prompt_chars


def _by_side(pairs: list[Pair], known: Mapping[str, str], config: AlignDataIdentity) -> dict[str, list[Pair]]:
    """Pairs by side, gold's own beside them, each answer once, in an order drawn from the text, within the sizes asked for."""
    limits = config.align_data
    placed: dict[str, list[Pair]] = {name: [] for name in (*SIDES, GOLD)}
    for pair in sorted(pairs, key=lambda pair: (draw(limits.seed, pair.prompt, pair.response), pair[:4], pair.rejected or "")):
        placed[known.get(pair.group) or side(pair.group, config.split)].append(pair)
    for_gold = _gold_groups(placed["train"], limits)
    placed[GOLD] = [pair for pair in placed["train"] if pair.group in for_gold]
    placed["train"] = [pair for pair in placed["train"] if pair.group not in for_gold]
    seen: set[str] = set()
    for name, most in (
        ("test", limits.max_held_out),
        ("validation", limits.max_held_out),
        (GOLD, limits.gold_docstrings),
        ("train", limits.max_train),
    ):
        fresh = []
        for pair in placed[name]:
            key = " ".join(tokens(pair.response))
            if key not in seen:
                seen.add(key)
                fresh.append(pair)
        placed[name] = fresh[:most]
    return placed


def _gold_groups(train: Sequence[Pair], limits: AlignDataConfig) -> set[str]:
    """Whole train groups for the judge alone, drawn by hash, until they have the docstrings asked for; at most a third of the pairs."""
    sizes = Counter(pair.group for pair in train)
    chosen: set[str] = set()
    room, wanted = len(train) // 3, limits.gold_docstrings
    for group in sorted(sizes, key=lambda group: (draw(limits.seed, GOLD, group), group)):
        if wanted > 0 and sizes[group] <= room:
            chosen.add(group)
            room, wanted = room - sizes[group], wanted - sizes[group]
    return chosen


def _write_tables(sides: Mapping[str, list[Pair]], limits: AlignDataConfig, out: Output) -> None:
    sft, preferences, prompts = [], [], []
    for name in SIDES:
        sft += [{**pair._asdict(), "split": name} for pair in sides[name]]
        prompts += sft[-len(sides[name]) :]
        preferences += [{**made._asdict(), "split": name} for made in negatives(sides[name], limits.negatives_per_pair, limits.seed)]
    out.table("sft.parquet", pa.Table.from_pylist([{key: row[key] for key in SFT.names} for row in sft], SFT))
    out.table("preferences.parquet", pa.Table.from_pylist(preferences, PREFERENCES))
    out.table("prompts.parquet", pa.Table.from_pylist([{key: row[key] for key in PROMPTS.names} for row in prompts], PROMPTS))
    out.figures["pairs"] = {name: len(sides[name]) for name in (*SIDES, GOLD)}
    out.figures["groups"] = {name: len({pair.group for pair in sides[name]}) for name in (*SIDES, GOLD)}
    out.figures["preferences"] = {
        kind: {
            "rows": sum(row["kind"] == kind for row in preferences),
            "chosen_words": _mean_words([row["chosen"] for row in preferences if row["kind"] == kind]),
            "rejected_words": _mean_words([row["rejected"] for row in preferences if row["kind"] == kind]),
        }
        for kind in sorted({row["kind"] for row in preferences})
    }


def _write_origins(sides: Mapping[str, Sequence[Pair]], out: Output) -> int:
    """The records of the pairs that are used, with their sides; how many they are. Two records may make one pair."""
    side_of = {pair: name for name, pairs in sides.items() for pair in pairs}
    tables = [DOCUMENTS.append(SIDE).empty_table()]
    for name in out.reader.names("records-"):
        used = pa.array([side_of.get(pair) for pair in _pairs(out, name.replace("records-", "pairs-"))], pa.string())
        tables.append(out.reader.table(name).append_column(SIDE, used).filter(used.is_valid()))
    origins = pa.concat_tables(tables)
    out.add(out.attempt.table(ORIGINS, origins, content=False))
    return len(origins)


def _mean_words(texts: list[str]) -> float:
    return round(float(np.mean([len(text.split()) for text in texts])), 3)


def _write_gold(pairs: Sequence[Pair], limits: AlignDataConfig, out: Output) -> None:
    """The judge's language model of nine tenths of its docstrings; the last tenth, true and shuffled, sets its scale."""
    held, learned = [pair.response for pair in pairs[::10]], [pair.response for i, pair in enumerate(pairs) if i % 10]
    if len(learned) < LEAST_PAIRS - 2:
        raise InputError(f"align_data: {len(pairs)} answers for the gold judge, {LEAST_PAIRS} are needed; give more sources")
    arpa = out.scratch / MODEL
    command = [tool("lmplz"), "-o", 3, "-S", "200M", "-T", out.scratch / "lmplz", "--discount_fallback", "--arpa", arpa]
    text = "".join(" ".join(tokens(answer)) + "\n" for answer in learned)
    run_tool(command, text.encode())
    model = load_model(arpa)
    rng = random.Random(limits.seed)
    true, mixed = [log_probability(model, answer) for answer in held], [log_probability(model, shuffled(answer, rng)) for answer in held]
    squash = Squash.between(true, mixed)
    out.file(f"{GOLD}/{MODEL}", arpa)
    out.json(f"{GOLD}/{SETTINGS}", {"middle": squash.middle, "spread": squash.spread, "docstrings": len(learned)})
    out.figures["gold"] = {"docstrings": len(learned), "true": float(np.mean(true)), "shuffled": float(np.mean(mixed))}
