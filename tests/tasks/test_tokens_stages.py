"""train_tokenizer, tokenize and mix, run by the engine over small published artifacts."""

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from contract.config import Frozen, RunOptions
from contract.errors import InputError
from contract.ledger import Count, Ledger
from contract.schemas import DECISIONS, DOCUMENTS, SPANS, SPLIT, TOKENS, blocks_schema, document_id
from engine.stage import Engine, Output, Stage, stage
from store.artifact import Artifact
from store.root import open_root
from tasks.mix import mix
from tasks.tokenize import tokenize
from tasks.train_tokenizer import train_tokenizer
from tokens.config import MixConfig, TokenizerConfig

DOMAINS = ("web", "code", "books")
SPLITS = ("train", "train", "train", "validation", "train", "test")
CONTEXT = 16


class Notes:
    """What the engine said, kept."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...

    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...

    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


class Layout(Frozen):
    """How the same 90 documents are cut into parts."""

    rows_a_part: int


def rows() -> list[dict[str, Any]]:
    """90 documents of three domains, every seventh dropped; each second e-mail address stands at characters 3 to 6."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(1, 8, 200)]
    made = []
    for i in range(90):
        text = "ab a@b " + " ".join(words[k] for k in rng.integers(0, 200, 5 + 3 * (i % 11))) + ("<|endoftext|>" if i % 5 == 0 else "")
        row: dict[str, Any] = {
            "id": document_id("test", str(i)), "text": text, "domain": DOMAINS[i % 3], "source": "test", "locator": str(i),
            "license": "CC0-1.0", "kept": i % 7 != 6, "split": SPLITS[i // 3 % 6], "trusted": False, "group": str(i // 3),
            "spans": [{"start": 3, "end": 6, "label": "EMAIL"}] if i % 2 else [],
        }  # fmt: skip
        made.append(row)
    return made


def tables(schema: pa.Schema, layout: Layout) -> list[pa.Table]:
    whole = pa.Table.from_pylist(rows(), schema=schema)
    return [whole.slice(at, layout.rows_a_part) for at in range(0, len(whole), layout.rows_a_part)]


def given(name: str, schema: pa.Schema) -> Stage:
    """A real stage that publishes the input `name`."""

    def work(config: Layout, out: Output) -> Ledger:
        for i, table in enumerate(tables(schema, config)):
            out.table(f"part-{i:05d}.parquet", table)
        kept = sum(row["kept"] for row in rows())
        return Ledger(Count(90, kept, dropped={"rule": 90 - kept}) if name == "selection" else Count(90, 90))

    work.__name__ = name
    return stage(version=1, config=lambda c: c.layout)(work)


SPANS_SCHEMA = pa.schema([("id", pa.binary(16)), ("spans", SPANS)])
INPUTS = {"documents": DOCUMENTS, "selection": DECISIONS, "splits": SPLIT, "pii": SPANS_SCHEMA}


def run(root: Path, rows_a_part: int = 25, notes: Notes | None = None, **changes: Any) -> dict[str, Artifact]:
    mixing = MixConfig(**{"weights": {"web": 50, "code": 30, "books": 20}, "bucket_tokens": 1000, **changes.pop("mix", {})})
    learning = TokenizerConfig(**{"vocab_size": 300, "sample_bytes": 3000, **changes})
    config = SimpleNamespace(layout=Layout(rows_a_part=rows_a_part), tokenizer=learning, mix=mixing, model=SimpleNamespace(context=CONTEXT))
    engine = Engine(open_root(root.as_uri()), config, RunOptions(workers=1), notes or Notes(), "test")
    made: dict[str, Artifact] = {}
    for name, schema in INPUTS.items():
        made[name] = engine.run(engine.plan(given(name, schema), {}))
    made["tokenizer"] = engine.run(engine.plan(train_tokenizer, made))
    made["tokens"] = engine.run(engine.plan(tokenize, made))
    inputs = {role: artifact for role, artifact in made.items() if role != "tokenizer"}
    made["blocks"] = engine.run(engine.plan(mix, inputs))
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return run(tmp_path_factory.mktemp("root"))


def whole(artifact: Artifact, prefix: str = "part-") -> pa.Table:
    return pa.concat_tables([artifact.table(name) for name in artifact.names(prefix)])


def curated_text() -> dict[bytes, str]:
    """The definition: kept documents, the span replaced by its label."""
    return {row["id"]: ("ab <EMAIL>" + row["text"][6:] if row["spans"] else row["text"]) for row in rows() if row["kept"]}


def test_tokens_are_the_ids_that_the_published_tokenizer_gives_to_the_redacted_text(made: dict[str, Artifact]) -> None:
    tokenizer = Tokenizer.from_str(made["tokenizer"].read("tokenizer.json").decode())
    tokenizer.encode_special_tokens = True
    table, by_id = whole(made["tokens"]), {row["id"]: row for row in rows()}
    assert table.schema.equals(TOKENS)
    texts = curated_text()
    assert table["id"].to_pylist() == list(texts)
    for row in table.to_pylist():
        assert row["tokens"] == [*tokenizer.encode(texts[row["id"]], add_special_tokens=False).ids, 0]
        assert row["num_tokens"] == len(row["tokens"])
        assert row["text_bytes"] == len(texts[row["id"]].encode())
        assert (row["domain"], row["split"]) == (by_id[row["id"]]["domain"], by_id[row["id"]]["split"])


def test_figures_of_tokens_are_sums_by_split_and_domain(made: dict[str, Artifact]) -> None:
    table = whole(made["tokens"]).to_pylist()
    cell = made["tokens"].figures["splits"]["validation"]["code"]
    mine = [row for row in table if (row["split"], row["domain"]) == ("validation", "code")]
    assert mine
    assert cell == {"documents": len(mine), "tokens": sum(r["num_tokens"] for r in mine), "bytes": sum(r["text_bytes"] for r in mine)}
    assert made["tokens"].ledger.tokens == Count(0, sum(r["num_tokens"] for r in table), added=sum(r["num_tokens"] for r in table))


def test_the_tokenizer_learns_from_train_text_alone_within_the_budget_by_the_weights(made: dict[str, Artifact]) -> None:
    sample = made["tokenizer"].figures["sample"]
    assert {domain: round(cell["bytes"], -2) for domain, cell in sample.items()} == {"web": 1500, "code": 900, "books": 600}
    dropped = made["tokenizer"].ledger.documents.dropped
    assert dropped["not_train"] == sum(row["kept"] and row["split"] != "train" for row in rows())
    assert made["tokenizer"].ledger.documents.out == sum(cell["documents"] for cell in sample.values())


def test_the_sample_is_the_whole_train_text_when_the_budget_is_larger(tmp_path: Path) -> None:
    sample = run(tmp_path, sample_bytes=10**6)["tokenizer"].figures["sample"]
    texts = curated_text()
    for domain, cell in sample.items():
        mine = [row for row in rows() if row["kept"] and row["split"] == "train" and row["domain"] == domain]
        assert cell["documents"] == len(mine)
        assert cell["bytes"] == sum(len(texts[row["id"]].encode()) for row in mine)


def test_parts_change_neither_the_tokenizer_nor_a_block(made: dict[str, Artifact], tmp_path: Path) -> None:
    other = run(tmp_path, rows_a_part=90)
    assert other["tokenizer"].digest == made["tokenizer"].digest
    for name in [*made["blocks"].names("part-"), "validation.parquet", "plan.json"]:
        assert other["blocks"].files[name].digest == made["blocks"].files[name].digest


def test_every_block_is_cut_from_the_documents_that_it_names(made: dict[str, Artifact]) -> None:
    tokens = {row["id"]: row["tokens"] for row in whole(made["tokens"]).to_pylist()}
    split = {row["id"]: row["split"] for row in rows()}
    for name, side in [(name, "train") for name in made["blocks"].names("part-")] + [("validation.parquet", "validation")]:
        blocks = made["blocks"].table(name)
        assert blocks.select(["tokens", "starts", "documents"]).schema.equals(blocks_schema(CONTEXT))
        for block in blocks.to_pylist():
            bounds = [*([0] if 0 not in block["starts"] else []), *block["starts"], CONTEXT + 1]
            assert len(bounds) - 1 == len(block["documents"])
            for i, (start, stop) in enumerate(pairwise(bounds)):
                piece, document = block["tokens"][start:stop], tokens[block["documents"][i]]
                assert split[block["documents"][i]] == side
                places = [0] if start in block["starts"] else range(len(document) - len(piece) + 1)
                assert any(document[at : at + len(piece)] == piece for at in places)


def test_the_ledger_of_the_mix_counts_targets_and_says_what_was_left(made: dict[str, Artifact]) -> None:
    blocks, tokens = made["blocks"], whole(made["tokens"])
    num_blocks = sum(len(blocks.table(name)) for name in [*blocks.names("part-"), "validation.parquet"])
    count = blocks.ledger.tokens
    assert count.out == num_blocks * CONTEXT
    assert count.dropped["first_of_block"] == num_blocks
    assert count.came_in == sum(tokens["num_tokens"].to_pylist())
    assert count.dropped["test_split"] == sum(r["num_tokens"] for r in tokens.to_pylist() if r["split"] == "test")
    named = sum(
        len(set(ids)) for name in [*blocks.names("part-"), "validation.parquet"] for ids in blocks.table(name)["documents"].to_pylist()
    )
    assert 0 < blocks.ledger.documents.out <= named


def test_the_plan_is_followed_to_the_token(made: dict[str, Artifact]) -> None:
    plan = made["blocks"].json("plan.json")
    train = whole(made["blocks"])
    count = made["blocks"].ledger.tokens
    held = {r["domain"]: 0 for r in rows()}
    for r in whole(made["tokens"]).to_pylist():
        held[r["domain"]] += r["num_tokens"] * (r["split"] == "train")
    assert {name: row["available"] for name, row in plan["domains"].items()} == held
    assert plan["got"] == plan["asked"] == sum(held.values())
    validation = made["blocks"].table("validation.parquet")
    validation_tokens = sum(r["num_tokens"] for r in whole(made["tokens"]).to_pylist() if r["split"] == "validation")
    packed = (len(train) + len(validation)) * (CONTEXT + 1)
    assert packed + count.dropped["remainder"] == plan["got"] + validation_tokens
    buckets = math.ceil(plan["got"] / 1000)
    assert len(made["blocks"].names("part-")) == buckets > 1
    assert count.dropped["remainder"] < (buckets + 3) * (CONTEXT + 1)


def test_a_wanted_total_is_taken_by_weight_and_the_rest_is_not_wanted(tmp_path: Path) -> None:
    blocks = run(tmp_path, mix={"total_tokens": 700, "validation_tokens": 40})["blocks"]
    assert {name: row["got"] for name, row in blocks.json("plan.json")["domains"].items()} == {"web": 350, "code": 210, "books": 140}
    assert blocks.ledger.tokens.added == blocks.ledger.documents.added == 0
    assert len(whole(blocks)) == 700 // (CONTEXT + 1)
    assert blocks.table("validation.parquet")["domain"].to_pylist() == ["books"] * 2 + ["code"] * 2 + ["web"] * 2


def test_repeats_are_added_in_tokens_and_documents(tmp_path: Path) -> None:
    blocks = run(tmp_path, mix={"weights": {"web": 1}, "total_tokens": 10**9, "max_epochs": 2.5})["blocks"]
    row = blocks.json("plan.json")["domains"]["web"]
    assert row["got"] == int(2.5 * row["available"])
    assert blocks.ledger.tokens.added == row["got"] - row["available"]
    web = [r for r in rows() if r["kept"] and r["split"] == "train" and r["domain"] == "web"]
    assert len(web) < blocks.ledger.documents.added < 2 * len(web)


def test_domains_without_text_and_a_total_that_is_not_there_are_said_once_each_before_the_work(tmp_path: Path) -> None:
    notes, mixing = Notes(), {"weights": {"web": 60, "academic": 25, "reference": 15}, "total_tokens": 10**9}
    blocks = run(tmp_path, notes=notes, mix=mixing)["blocks"]
    rows = blocks.json("plan.json")["domains"]
    assert (rows["web"]["asked"], rows["academic"]["asked"], rows["academic"]["weight"]) == (10**9, 0, 0.25)
    assert notes.warnings == [
        "there is no text of academic, reference to train on: their share of the mixture (40%) goes to the other domains",
        f"1,000,000,000 tokens are asked for (mix.total_tokens), and the text gives {rows['web']['got']:,}, each document at most 4 times "
        "(mix.max_epochs): give more text, or ask for less",
    ]


def test_the_curated_text_is_what_the_tokens_were_made_of(made: dict[str, Artifact]) -> None:
    table = whole(made["blocks"], "curated/part-")
    assert table.column_names == ["id", "text", "domain", "source", "license", "split"]
    assert dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)) == curated_text()


def test_too_little_text_for_a_block_is_the_users_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot fill one block of 17 tokens"):
        run(tmp_path, mix={"total_tokens": 10})


def test_no_train_text_is_the_users_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no train document of a domain that has a weight"):
        run(tmp_path, mix={"weights": {"academic": 1}})


def test_a_small_sample_says_how_many_entries_it_gave(tmp_path: Path) -> None:
    notes = Notes()
    run(tmp_path, notes=notes, vocab_size=5000, sample_bytes=400)
    assert "of 5,000 entries" in notes.warnings[0]


def test_both_encoders_publish_the_same_tokens_from_one_vocabulary(made: dict[str, Artifact], tmp_path: Path) -> None:
    other = run(tmp_path, encoder="tokenizers")
    assert other["tokenizer"].fingerprint == made["tokenizer"].fingerprint
    assert other["tokens"].fingerprint != made["tokens"].fingerprint
    assert other["tokens"].digest == made["tokens"].digest
