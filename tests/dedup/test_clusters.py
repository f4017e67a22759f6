"""The whole room against brute force, and its independence of parts, buckets, shards and order."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import InputError
from contract.schemas import DECISIONS, document_id
from dedup.config import DeduplicateConfig
from dedup.pairs import clusters
from dedup.steps import deduplicate, num_buckets

sys.path.insert(0, str(Path(__file__).parent))
import itertools

from brute_force import Document, decisions, jaccard, shingles

# A banding that misses a pair at the threshold once in 10**20 and a margin that rejects none by its estimate: so that brute force,
# which compares all pairs, must find the same.
THOROUGH = DeduplicateConfig(num_bands=128, rows_per_band=1, threshold=0.6, estimate_margin=0.6)


def corpus(seed: int, documents: int) -> list[Document]:
    """Families of texts that differ by edits, with copies, short texts and loners: components of many shapes, chains too."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices("abcdefgh é漢", k=rng.choice((0, 3, 4, 5, 20, 60)))) for _ in range(3)]
    while len(texts) < documents:
        text = rng.choice(texts)
        place = rng.randrange(len(text) + 1)
        edit = rng.choice(("copy", "insert", "append", "cut", "new"))
        if edit == "insert":
            text = text[:place] + rng.choice("xyzü") + text[place:]
        elif edit == "append":
            text += "".join(rng.choices("abcdefgh", k=rng.randrange(1, 8)))
        elif edit == "cut":
            text = text[place // 4 :]
        elif edit == "new":
            text = "".join(rng.choices("abcdefghij ", k=rng.choice((2, 6, 50))))
        texts.append(text)
    names = [rng.choice((("web", "crawl"), ("books", "library"), ("web", "mirror"))) for _ in texts]
    return [
        Document(document_id(source, str(i)), text, domain, source)
        for i, (text, (domain, source)) in enumerate(zip(texts, names, strict=True))
    ]


def table(documents: list[Document]) -> pa.Table:
    columns = {name: [getattr(document, name) for document in documents] for name in ("id", "text", "domain", "source")}
    types = {"id": pa.binary(16), "text": pa.large_string(), "domain": pa.string(), "source": pa.string()}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def decided(parts: list[list[Document]], config: DeduplicateConfig, **plan: int) -> tuple[dict, dict]:
    tables, figures = deduplicate([table(part) for part in parts], config, **plan)
    assert [len(part) for part in parts] == [decision.num_rows for decision in tables]
    rows = pa.concat_tables(tables)
    assert rows.schema == DECISIONS
    assert rows["id"].to_pylist() == [document.id for part in parts for document in part]
    assert rows["kept"].to_pylist() == rows["reason"].is_null().to_pylist() == rows["survivor"].is_null().to_pylist()
    return {row["id"]: (row["reason"], row["survivor"]) for row in rows.to_pylist()}, figures


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), documents=st.integers(3, 40), prefer=st.sampled_from([(), ("books",), ("mirror", "books")]))
def test_decisions_equal_brute_force_over_all_pairs(seed: int, documents: int, prefer: tuple[str, ...]):
    held = corpus(seed, documents)
    config = THOROUGH.model_copy(update={"prefer": prefer})
    assert decided([held], config)[0] == decisions(held, config.threshold, prefer)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), buckets=st.integers(1, 5), shard_chars=st.sampled_from([1, 3000, 1 << 20]), data=st.data())
def test_decisions_and_figures_do_not_depend_on_parts_order_buckets_or_shards(
    seed: int, buckets: int, shard_chars: int, data: st.DataObject
):
    held = corpus(seed, 40)
    config = DeduplicateConfig(threshold=0.7, num_bands=32, rows_per_band=4)
    shuffled = data.draw(st.permutations(held))
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, 40), max_size=4))), 40]
    parts = [shuffled[a:b] for a, b in itertools.pairwise(cuts)]
    assert decided(parts, config, buckets=buckets, shard_chars=shard_chars) == decided([held], config)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_figures_are_what_the_decisions_and_plain_sets_say(seed: int):
    held = corpus(seed, 40)
    rows, figures = decided([held], THOROUGH)
    text = {document.id: document.text for document in held}
    gone = {id: (reason, survivor) for id, (reason, survivor) in rows.items() if reason is not None}
    similarity = [jaccard(shingles(text[id]), shingles(text[survivor])) for id, (_, survivor) in gone.items()]
    chains = sum(value < THOROUGH.threshold for value in similarity)
    kept = {survivor for _, survivor in gone.values()}
    want = {
        "documents": 40,
        "kept": 40 - len(gone),
        "exact_duplicates": sum(reason == "exact_duplicate" for reason, _ in gone.values()),
        "near_duplicates": sum(reason == "near_duplicate" for reason, _ in gone.values()),
        "components": len(kept),
        "largest_component": max((1 + sum(survivor == one for _, survivor in gone.values()) for one in kept), default=0),
        "chain_documents": chains,
        "chain_share": round(chains / len(gone), 6) if gone else 0.0,
        "least_jaccard_to_survivor": round(min(similarity, default=1.0), 6),
    }
    assert {name: figures[name] for name in want} == want
    # the pairs that verified are a spanning forest of the distinct texts of the components: one less than the texts of each
    distinct = [{text[survivor], *(text[id] for id, (_, s) in gone.items() if s == survivor)} for survivor in kept]
    assert figures["pairs_verified"] == sum(len(texts) - 1 for texts in distinct)


def test_verification_removes_what_banding_finds_by_chance():
    """Bands of one row make candidates of texts that share a little; none may be joined under the threshold."""
    rng = np.random.default_rng(5)
    words = ["".join(map(chr, rng.integers(97, 123, 7))) for _ in range(60)]
    held = [Document(document_id("s", str(i)), " ".join(rng.choice(words, 40))) for i in range(40)]
    loose = DeduplicateConfig(num_bands=128, rows_per_band=1, estimate_margin=0.8)
    rows, figures = decided([held], loose)
    assert figures["pairs_rejected"] > 100
    assert rows == decisions(held, loose.threshold)


def test_pairs_that_look_unlike_by_their_signatures_are_not_compared():
    base = "".join(map(chr, np.random.default_rng(5).integers(97, 123, 3000)))
    held = [Document(document_id("s", str(i)), base[: 1500 + 500 * i]) for i in range(4)]  # at 0.50 to 0.83 of one another
    config = DeduplicateConfig(num_bands=64, rows_per_band=2, estimate_margin=0.95, threshold=0.95)
    compared = {margin: decided([held], config.model_copy(update={"estimate_margin": margin}))[1] for margin in (0.95, 0.0)}
    assert [figures["pairs_rejected"] for figures in compared.values()] == [6, 0]
    assert [figures["kept"] for figures in compared.values()] == [4, 4]


def test_a_chain_is_reported():
    """Each text is like the next, the last unlike the first: one component, whose far members are counted."""
    base = "".join(map(chr, np.random.default_rng(1).integers(97, 123, 1400)))
    held = [Document(document_id("s", str(i)), base[40 * i : 1000 + 40 * i]) for i in range(10)]
    rows, figures = decided([held], DeduplicateConfig())
    survivor = next(document for document in held if rows[document.id] == (None, None))
    far = [d for d in held if jaccard(shingles(d.text), shingles(survivor.text)) < 0.8]
    assert far
    assert (figures["kept"], figures["chain_documents"], figures["chain_share"]) == (1, len(far), round(len(far) / 9, 6))


def test_texts_shorter_than_a_shingle_are_duplicates_only_when_equal():
    texts = ["", "", "a", "ab", "abc", "abcd", "abcd", "abcde", "\0", "\0\0"]
    held = [Document(document_id("s", str(i)), text) for i, text in enumerate(texts)]
    rows, figures = decided([held], THOROUGH)
    assert rows == decisions(held, THOROUGH.threshold)
    assert (figures["kept"], figures["exact_duplicates"]) == (8, 2)


def test_the_longer_text_survives_then_the_smaller_id_and_preferred_sources_before_both():
    base = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4
    held = [
        Document(b"%016d" % 3, base, "web", "crawl"),
        Document(b"%016d" % 2, base, "books", "library"),
        Document(b"%016d" % 1, base + "!", "web", "mirror"),
        Document(b"%016d" % 4, base + "?", "web", "crawl"),
    ]

    def survivor(*prefer: str) -> int:
        rows, _ = decided([held], DeduplicateConfig(prefer=prefer))
        return next(int(id) for id, (reason, _) in rows.items() if reason is None)

    assert [survivor(), survivor("books"), survivor("crawl"), survivor("nothing", "library"), survivor("web", "library")] == [1, 2, 4, 2, 1]


def test_repeated_ids_are_refused_across_parts_and_named():
    held = corpus(0, 12)
    again = Document(held[3].id, "another text", "web", "s")
    with pytest.raises(InputError, match=f"rows 3 and 12 .id {held[3].id.hex()}"):
        decided([held, [again]], DeduplicateConfig())


def test_parts_may_be_empty_and_texts_may_be_slices():
    held = corpus(1, 20)
    want, _ = decided([held], DeduplicateConfig())
    whole = table(held)
    tables, _ = deduplicate([whole.slice(0, 7), whole.slice(7, 0), whole.slice(7)], DeduplicateConfig())
    assert [one.num_rows for one in tables] == [7, 0, 13]
    assert {row["id"]: (row["reason"], row["survivor"]) for one in tables for row in one.to_pylist()} == want


def test_recall_at_the_default_banding_on_edited_texts():
    """Pairs at Jaccard 0.9 and above are found in nearly every case (the formula says 0.9999)."""
    rng = np.random.default_rng(2)
    pairs = []
    for _i in range(150):
        base = list(map(chr, rng.integers(97, 123, 1000)))
        other = base.copy()
        for place in rng.integers(0, 1000, 7):
            other[place] = "_"
        pairs.append(("".join(base), "".join(other)))
    alike = sum(jaccard(shingles(a), shingles(b)) >= 0.9 for a, b in pairs)
    held = [Document(document_id("s", f"{i}/{j}"), text) for i, pair in enumerate(pairs) for j, text in enumerate(pair)]
    _, figures = decided([held], DeduplicateConfig())
    assert alike > 100
    assert figures["near_duplicates"] >= alike


def test_clusters_take_the_smallest_row_as_root_whatever_the_order_of_edges():
    edges = [(5, 2), (2, 9), (7, 8), (9, 4), (8, 7)]
    for seed in range(20):
        drawn = random.Random(seed).sample(edges, len(edges))
        left, right = zip(*[random.Random(seed + i).sample(edge, 2) for i, edge in enumerate(drawn)], strict=True)
        found = clusters(11, pa.table({"left": left, "right": right, "near": [True] * len(edges)}))
        assert dict(zip(found.rows.tolist(), found.root.tolist(), strict=True)) == {2: 2, 4: 2, 5: 2, 9: 2, 7: 7, 8: 7}


def test_buckets_grow_with_the_documents_and_are_bounded():
    counts = [num_buckets(documents, DeduplicateConfig()) for documents in (0, 1, 10**5, 10**6, 10**8)]
    assert counts[:2] == [1, 1]
    assert counts == sorted(counts)
    assert counts[-1] == 64


def test_real_near_duplicates_are_found(test_data: Path):
    """A peer's sample made to show deduplication, in a file with other documents."""
    with zstandard.open(test_data / "web/docs/data_juicer_demos.jsonl.zst", "rt") as file:
        texts = [json.loads(line)["text"] for line in file][-60:]  # the duplicate set stands among the last
    held = [Document(document_id("s", str(i)), text) for i, text in enumerate(texts)]
    config = DeduplicateConfig(estimate_margin=0.8, num_bands=64, rows_per_band=2)
    rows, figures = decided([held], config)
    assert rows == decisions(held, config.threshold)
    assert figures["exact_duplicates"] + figures["near_duplicates"] > 0
