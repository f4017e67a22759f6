"""Published inputs for the stages between dedup and tokens: real pages and abstracts, real code, and documents planted to be dropped."""

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import zstandard

from contract.config import Frozen, RunOptions
from contract.ledger import Count, Ledger
from contract.schemas import DECISIONS, DOCUMENTS, SPLIT, document_id
from engine.stage import Engine, Output, Stage, stage
from filters.config import FiltersConfig, GatesConfig
from store.artifact import Artifact
from store.root import open_root

ITEMS = pa.schema([("context", pa.string()), ("choices", pa.list_(pa.string()))])
ITEM = "On the third morning the old surveyor climbed the northern ridge with a brass sextant and measured the height of the sun"
DUPLICATE_OF = 3


class Notes:
    """A journal that keeps its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


class Given(Frozen):
    """The inputs as they are, cut into parts."""

    rows: str
    rows_a_part: int


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n"):
            yield json.loads(line)


def real_rows(test_data: Path) -> list[dict[str, Any]]:
    """120 web pages, 120 abstracts (the first 60 trusted), 12 modules; every tenth is validation, every other tenth test."""
    pages = [(row["text"], "web", False) for row in lines(test_data / "web/docs/c4_sample.jsonl.zst")][:120]
    abstracts = [row["abstract"] for row in lines(test_data / "academic/pubmedqa_abstracts.jsonl.zst")][:120]
    modules = sorted(Path(ast.__file__).parent.glob("*.py"))[:12]
    found = [*pages, *((text, "academic", i < 60) for i, text in enumerate(abstracts)), *((p.read_text(), "code", False) for p in modules)]
    sides = {7: "validation", 8: "test"}
    return [
        {"text": text, "domain": domain, "trusted": trusted, "split": "train" if trusted else sides.get(i % 10, "train")}
        for i, (text, domain, trusted) in enumerate(found)
    ]


def planted_rows(page: str) -> list[dict[str, Any]]:
    """Web documents of the train split, each with the reason why it must go (None: it stays)."""
    words = page.split()[:200]
    slur = "asshole"  # of the lexicon; the mildest that no other rule minds
    planted = {
        "words": "Too short to teach anything.",
        "language": " ".join(
            ["El veloz murciélago hindú comía feliz cardillo y kiwi mientras la cigüeña tocaba el saxofón."] * 1 + [SPANISH]
        ),
        "unwanted_phrases": " ".join([*words, "Click here  to\nSubscribe."]),
        "punctuation": " ".join(["!!!???***((("] * 80),
        "duplicate_lines": "\n".join([" ".join(words[:60]), *["Buy the best shoes of the town and save more than you think."] * 12]),
        "toxicity": " ".join(word if i % 20 else slur for i, word in enumerate(words)),
        "contamination": f"As I read it. {ITEM}. And so it was.",
    }
    rows = [{"text": text, "reason": reason} for reason, text in planted.items()]
    rows.append({"text": " ".join([*words[:120], ITEM + ".", *words[120:], "Write to bob@example.com today."]), "reason": None})
    return [{"domain": "web", "trusted": False, "split": "train", **row} for row in rows]


SPANISH = (
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo de los de lanza en "
    "astillero, adarga antigua, rocín flaco y galgo corredor. Una olla de algo más vaca que carnero, salpicón las más noches, "
    "duelos y quebrantos los sábados, lentejas los viernes, algún palomino de añadidura los domingos, consumían las tres partes "
    "de su hacienda."
)


def corpus(test_data: Path) -> list[dict[str, Any]]:
    """Rows of all inputs; `reason` where a document was planted, `survivor` where it is a duplicate of document 3."""
    rows = real_rows(test_data)
    rows += planted_rows(rows[0]["text"])
    rows.append({**rows[DUPLICATE_OF], "reason": "exact_duplicate", "kept": False, "survivor": document_id("t", str(DUPLICATE_OF))})
    fixed = {"kept": True, "survivor": None, "source": "t"}
    return [
        {**fixed, **row, "id": document_id("t", str(i)), "locator": str(i), "group": str(i), "planted": "reason" in row}
        for i, row in enumerate(rows)
    ]


def given(name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> Stage:
    """A stage that publishes one input."""

    def work(config: Given, out: Output) -> Ledger:
        made = [{**row, "reason": None if row["kept"] else row.get("reason")} for row in rows]
        table = pa.Table.from_pylist(made, schema)
        for i, at in enumerate(range(0, len(table), config.rows_a_part)):
            out.table(f"part-{i:05d}.parquet", table.slice(at, config.rows_a_part))
        dropped = sum(not row["kept"] for row in rows)
        if name == "duplicates" and dropped:
            return Ledger(Count(len(rows), len(rows) - dropped, dropped={"exact_duplicate": dropped}))
        return Ledger(Count(len(rows), len(rows)))

    work.__name__ = name
    return stage(version=1, config=lambda c: c.given)(work)


@stage(version=1, config=lambda c: c.given)
def items(config: Given, out: Output) -> Ledger:
    head, _, tail = ITEM.partition(" climbed")
    out.table("items.parquet", pa.Table.from_pylist([{"context": head, "choices": [f"climbed{tail}", "slept until noon"]}], ITEMS))
    return Ledger()


class Run:
    """An engine over one store, and what it made."""

    def __init__(self, root: Path, rows: list[dict[str, Any]], rows_a_part: int = 100, filters: Any = None, gates: Any = None) -> None:
        self.notes, self.rows = Notes(), rows
        digest = str(sum(len(row["text"]) for row in rows)) + str([row["trusted"] for row in rows])
        config = SimpleNamespace(
            given=Given(rows=digest, rows_a_part=rows_a_part), filters=FiltersConfig(**(filters or {})), gates=GatesConfig(**(gates or {}))
        )
        self.engine = Engine(open_root(root.as_uri()), config, RunOptions(workers=1), self.notes, "test")
        self.made: dict[str, Artifact] = {}
        for name, schema in {"documents": DOCUMENTS, "duplicates": DECISIONS, "splits": SPLIT}.items():
            self.made[name] = self.run(given(name, schema, rows))
        self.made["items"] = self.run(items)

    def run(self, stage: Stage) -> Artifact:
        inputs = {role: self.made[role] for role in stage.roles if role in self.made}
        return self.engine.run(self.engine.plan(stage, inputs))

    def cached(self, stage: Stage) -> bool:
        inputs = {role: self.made[role] for role in stage.roles if role in self.made}
        return self.engine.plan(stage, inputs).reuse is not None

    def whole(self, role: str) -> pa.Table:
        artifact = self.made[role]
        return pa.concat_tables([artifact.table(name) for name in artifact.names()])
