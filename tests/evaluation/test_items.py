import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.errors import InputError
from contract.schemas import document_id
from evaluation.config import ItemsConfig, NamedTask
from evaluation.items import ITEMS, candidates, continuation_items, merge_candidates, named_items

CONFIG = ItemsConfig(items=120, context_characters=80, continuation_characters=40)


def tables(texts: dict[str, list[str]], split: str = "test") -> tuple[pa.Table, pa.Table, pa.Table]:
    """Documents, decisions and splits of texts by domain; two documents to a group."""
    rows = [(domain, i, text) for domain, several in texts.items() for i, text in enumerate(several)]
    ids = [document_id(domain, str(i)) for domain, i, _ in rows]
    documents = pa.table({"id": ids, "text": pa.array([t for *_, t in rows], pa.large_string()), "domain": [d for d, *_ in rows]})
    duplicates = pa.table({"id": ids, "kept": [True] * len(rows)})
    splits = pa.table({"id": ids, "split": [split] * len(rows), "group": [f"{d}/{i // 2}" for d, i, _ in rows]})
    return documents, duplicates, splits


def words(seed: int, length: int) -> str:
    rng = np.random.default_rng(seed)
    return "".join(
        "".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(1, 9))) + rng.choice([" ", "\n", "  "]) for _ in range(length)
    )


CORPUS = {domain: [words(100 * d + i, 150) for i in range(40)] for d, domain in enumerate(("code", "web"))}


def items(config: ItemsConfig = CONFIG) -> list[dict]:
    return continuation_items(candidates(*tables(CORPUS), config), config).to_pylist()


def test_the_right_choice_is_what_the_document_says_next() -> None:
    texts = {document_id(domain, str(i)): text for domain, several in CORPUS.items() for i, text in enumerate(several)}
    made = items()
    assert len(made) == 120
    for item in made:
        assert item["context"] + item["choices"][item["gold"]] in texts[item["document"]]


def test_wrong_choices_come_from_other_groups_of_the_same_domain_and_match_in_length() -> None:
    whole = {domain: " ".join(several) for domain, several in CORPUS.items()}
    by_group: dict[str, str] = {}
    for domain, several in CORPUS.items():
        for i, text in enumerate(several):
            by_group[f"{domain}/{i // 2}"] = by_group.get(f"{domain}/{i // 2}", "") + text
    for item in items():
        assert len(item["choices"]) == 4 and len({len(choice) for choice in item["choices"]}) == 1
        gaps = {choice[: len(choice) - len(choice.lstrip())] for choice in item["choices"]}
        assert len(gaps) == 1
        for k, choice in enumerate(item["choices"]):
            piece = choice.strip()
            assert piece in whole[item["domain"]]
            assert (piece in by_group[item["group"]]) == (k == item["gold"])
            assert set(piece.split()) <= set(whole[item["domain"]].split())  # whole words only


def test_items_do_not_depend_on_parts_or_row_order() -> None:
    documents, duplicates, splits = tables(CORPUS)
    order = pa.array(np.random.default_rng(0).permutation(len(documents)))
    shuffled = [table.take(order) for table in (documents, duplicates, splits)]
    parts = [candidates(*(table.slice(start, 17) for table in shuffled), CONFIG) for start in range(0, len(documents), 17)]
    assert continuation_items(merge_candidates(parts[::-1], CONFIG), CONFIG).to_pylist() == items()


def test_seed_changes_items_and_equal_seeds_agree() -> None:
    assert items() == items()
    assert items(CONFIG.model_copy(update={"seed": 2})) != items()


def test_items_are_pinned() -> None:
    text = json.dumps([{**item, "document": item["document"].hex()} for item in items()], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a828a3bd95bc2026"


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_who_has_not_read_the_context_is_right_in_exactly_one_of_four(taste: int) -> None:
    """Whatever the pieces are scored by; one group is most of the documents, and unlike the others."""
    documents, duplicates, splits = tables({"web": [*CORPUS["web"][:12], *(words(7000 + i, 150).upper() for i in range(40))]})
    groups = [*(f"small {i // 2}" for i in range(12)), *["great"] * 40]
    splits = splits.set_column(splits.column_names.index("group"), "group", pa.array(groups))
    made = continuation_items(candidates(documents, duplicates, splits, CONFIG), CONFIG).to_pylist()
    scores = [[hashlib.sha256(f"{taste} {choice.strip()}".encode()).digest() for choice in item["choices"]] for item in made]
    right = sum(row.index(max(row)) == item["gold"] for row, item in zip(scores, made, strict=True))
    assert made and 4 * right == len(made)


def test_gold_is_at_every_place_about_equally_often() -> None:
    counts = np.bincount([item["gold"] for item in items()], minlength=4)
    assert counts.min() > 15 and counts.sum() == 120


def test_only_kept_test_documents_are_used() -> None:
    documents, duplicates, splits = tables(CORPUS)
    rng = np.random.default_rng(7)
    kept, test = rng.random(len(documents)) < 0.7, rng.random(len(documents)) < 0.7
    duplicates = duplicates.set_column(1, "kept", pa.array(kept))
    splits = splits.set_column(1, "split", pa.array(np.where(test, "test", "train")))
    allowed = {id_ for id_, k, t in zip(documents["id"].to_pylist(), kept, test, strict=True) if k and t}
    made = continuation_items(candidates(documents, duplicates, splits, CONFIG), CONFIG).to_pylist()
    assert made and {item["document"] for item in made} <= allowed
    everything = "\n".join(t for i, t in zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True) if i in allowed)
    assert all(choice.strip() in everything for item in made for choice in item["choices"])


def test_a_domain_with_few_documents_leaves_its_share_to_the_others() -> None:
    corpus = {"code": CORPUS["code"][:8], "web": CORPUS["web"]}
    config = CONFIG.model_copy(update={"items": 64})
    made = continuation_items(candidates(*tables(corpus), config), config).to_pylist()
    counts = {domain: sum(item["domain"] == domain for item in made) for domain in corpus}
    assert counts == {"code": 16, "web": 48}


def test_documents_come_before_second_windows() -> None:
    config = CONFIG.model_copy(update={"items": 80})
    assert len({item["document"] for item in items(config)}) == 80


def test_a_domain_of_fewer_groups_than_choices_makes_no_items() -> None:
    assert not len(continuation_items(candidates(*tables({"web": CORPUS["web"][:6]}), CONFIG), CONFIG))


def test_memory_is_bounded_by_the_items_wanted() -> None:
    config = CONFIG.model_copy(update={"items": 5})
    assert len(candidates(*tables(CORPUS), config)) == 10
    long = {"web": [words(i, 300) * 100 for i in range(4)]}
    assert max(len(text) for text in candidates(*tables(long), config)["text"].to_pylist()) == 20_000


@given(st.lists(st.text(min_size=0, max_size=400), min_size=2, max_size=8), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_any_text_gives_items_that_hold_their_promises(texts: list[str], seed: int) -> None:
    config = ItemsConfig(items=20, context_characters=10, continuation_characters=8, seed=seed)
    for item in continuation_items(candidates(*tables({"web": texts}), config), config).to_pylist():
        assert len(set(item["choices"])) == 4 and len({len(choice) for choice in item["choices"]}) == 1
        assert any(item["context"] + item["choices"][item["gold"]] in text for text in texts)


def test_named_tasks_load_into_the_same_table(test_data: Path) -> None:
    with zstandard.open(test_data / "eval" / "arc_easy.jsonl.zst", "rb") as lines:
        raw = lines.read().split(b"\n")
    table = named_items(NamedTask(name="arc_easy", uri="arc_easy.jsonl", limit=50), iter(raw))
    first = json.loads(raw[0])
    assert table.schema == ITEMS and len(table) == 50
    assert table.to_pylist()[0]["choices"][first["gold"]] == table["choices"][0].as_py()[table["gold"][0].as_py()]
    assert table["context"][0].as_py() == first["query"]


@pytest.mark.parametrize(
    "line",
    [
        '{"query": "a"}',
        "[1]",
        "not json",
        '{"query": "a", "choices": ["b", "c"], "gold": 2}',
        '{"query": "a", "choices": ["b"], "gold": 0}',
    ],
)
def test_a_bad_line_is_named(line: str) -> None:
    good = b'{"query": "a", "choices": ["b", "c"], "gold": 1}'
    with pytest.raises(InputError, match=r"x.jsonl, line 3: not an item"):
        named_items(NamedTask(name="x", uri="x.jsonl"), iter([good, b"\n", line.encode()]))


def test_an_empty_task_file_and_a_repeated_name_are_refused() -> None:
    with pytest.raises(InputError, match="no item of the task"):
        named_items(NamedTask(name="x", uri="x.jsonl"), iter([]))
    with pytest.raises(ValidationError, match="name x is taken"):
        ItemsConfig(tasks=(NamedTask(name="x", uri="a"), NamedTask(name="x", uri="b")))
    with pytest.raises(ValidationError, match="continuation"):
        ItemsConfig(tasks=(NamedTask(name="continuation", uri="a"),))
