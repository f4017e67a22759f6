"""Ids: the fast encoder's are those of tokenizer.json, on real and on hostile text."""

import io
import json
from pathlib import Path

import gigatoken
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from contract.errors import IntegrityError
from tokens import encoder as encoder_module
from tokens.config import TokenizerConfig
from tokens.encoder import HOSTILE, Encoder, batches
from tokens.trainer import END, END_ID, PAD, PAD_ID, head, train

WORDS = ["the whale", "don't DON'T", "x = 12345", "été", "日本語", "\n\n  ", END, "==", "\x00", "the sea 2024"]
SAMPLE = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 40)) for i in range(1, 60)]


@pytest.fixture(scope="module", params=["gpt2", "llama3"])
def tokenizer_json(request: pytest.FixtureRequest) -> bytes:
    return train(SAMPLE, TokenizerConfig(vocab_size=300, pattern=request.param))


def reference(tokenizer_json: bytes) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


def documents(folder: Path) -> list[str]:
    """Every string of at least 20 characters in the real data: web, code, LaTeX, chats, 75 languages."""
    texts: dict[str, None] = {}
    for path in sorted(folder.rglob("*.jsonl.zst")):
        with path.open("rb") as file:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n"):
                values = (value for value in json.loads(line).values() if isinstance(value, str) and len(value) >= 20)
                texts.update((value[:4000].encode(errors="ignore").decode(), None) for value in values)
    return list(texts)


@pytest.mark.parametrize(("pattern", "count"), [("gpt2", 10_000), ("llama3", 2_000)])
def test_gigatoken_gives_the_ids_of_tokenizer_json_on_ten_thousand_real_documents(test_data: Path, pattern: str, count: int) -> None:
    texts = documents(test_data)
    sample = texts[:: len(texts) // count][:count]
    assert len(sample) == count
    tokenizer_json = train((text[:1000] for text in texts[::20]), TokenizerConfig(vocab_size=2048, pattern=pattern))
    fast = Encoder(tokenizer_json, "gigatoken").encode(pa.array(sample, pa.large_string()))
    slow = reference(tokenizer_json).encode_batch_fast(sample, add_special_tokens=False)
    differing = [text[:80] for text, a, b in zip(sample, fast.to_pylist(), slow, strict=True) if a != [*b.ids, END_ID]]
    assert differing == []


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
@settings(max_examples=30)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([*WORDS, *HOSTILE, PAD * 3, " " * 5000]), max_size=6)
)
def test_both_encoders_equal_the_reference_on_any_text(tokenizer_json: bytes, name: str, texts: list[str]) -> None:
    got = Encoder(tokenizer_json, name).encode(pa.array(texts, pa.large_string()))
    assert got.type == pa.large_list(pa.uint32())
    tokenizer = reference(tokenizer_json)
    assert got.to_pylist() == [[*tokenizer.encode(text, add_special_tokens=False).ids, END_ID] for text in texts]


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_a_literal_special_token_stays_text_and_ids_decode_to_what_was_written(tokenizer_json: bytes, name: str) -> None:
    rows = Encoder(tokenizer_json, name).encode(pa.array(HOSTILE, pa.large_string())).to_pylist()
    for text, ids in zip(HOSTILE, rows, strict=True):
        assert ids[-1] == END_ID
        assert not {END_ID, PAD_ID} & set(ids[:-1])
        assert reference(tokenizer_json).decode(ids[:-1], skip_special_tokens=False) == text


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_slices_chunks_and_batches_do_not_change_the_ids(tokenizer_json: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Encoder(tokenizer_json, name).encode(pa.array(SAMPLE, pa.large_string()))
    monkeypatch.setattr(encoder_module, "_BATCH_BYTES", 100)
    monkeypatch.setattr(encoder_module, "_CACHE_BYTES", 1000)
    chunks = pa.chunked_array([pa.array(SAMPLE[:7]), pa.array([], pa.string()), pa.array(["not these", *SAMPLE[7:]])[1:]])
    assert Encoder(tokenizer_json, name).encode(chunks).equals(whole)
    assert len(Encoder(tokenizer_json, name).encode(pa.array([], pa.large_string()))) == 0


@given(texts=st.lists(st.text(max_size=9)), skip=st.integers(0, 3), num_bytes=st.integers(1, 30))
def test_batches_are_all_rows_in_order_and_bounded(texts: list[str], skip: int, num_bytes: int) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    got = list(batches(pa.array(texts, pa.large_string())[skip:], num_bytes))
    assert [text for batch in got for text in batch.to_pylist()] == texts[skip:]
    assert all(len(batch) == 1 or sum(len(text.as_py().encode()) for text in batch) <= num_bytes for batch in got)


def test_the_check_refuses_an_encoder_whose_ids_differ_and_names_the_text(tokenizer_json: bytes) -> None:
    class Wrong(Encoder):
        """As if a new gigatoken cut digits otherwise."""

        def _fast_ids(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
            changed = pa.array([text.replace("1", "2") for text in texts.to_pylist()], pa.large_string())
            return super()._fast_ids(changed)

    Encoder(tokenizer_json).check(pa.array(SAMPLE))
    Encoder(tokenizer_json).check(pa.array([], pa.large_string()))
    Wrong(tokenizer_json, "tokenizers").check(pa.array(["x = 12345"]))
    with pytest.raises(IntegrityError, match=r"disagree at token .* of .*Set tokenizer\.encoder to tokenizers"):
        Wrong(tokenizer_json).check(pa.array(["x = 12345"]))


def test_gigatoken_reads_a_file_without_added_tokens_where_control_tokens_are_text(tokenizer_json: bytes) -> None:
    """Why `added_tokens` is emptied: with the file as it is, a document could write our end token."""
    assert END_ID in gigatoken.Tokenizer.from_json(tokenizer_json).encode(f"a{END}b").tolist()


@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
def test_training_does_not_depend_on_the_order_of_the_texts(pattern: str) -> None:
    config = TokenizerConfig(vocab_size=300, pattern=pattern)
    assert train(SAMPLE, config) == train(SAMPLE[::-1], config) == train(iter(SAMPLE[30:] + SAMPLE[:30]), config)


def test_the_vocabulary_has_its_size_and_special_tokens_first(tokenizer_json: bytes) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    assert tokenizer.get_vocab_size() == 300
    assert [tokenizer.id_to_token(i) for i in (END_ID, PAD_ID)] == [END, PAD]
    assert {token.content for token in tokenizer.get_added_tokens_decoder().values()} == {END, PAD}
    assert tokenizer.decode(tokenizer.encode("any byte: \x00 é 日").ids) == "any byte: \x00 é 日"


def test_the_patterns_are_the_published_ones() -> None:
    """Split points of GPT-2's and Llama 3's pre-tokenizers on what they treat differently: digits, contractions, line ends."""
    text = "We'LL pay 12345,  ok\n\n!"
    pieces = {}
    for pattern in ("gpt2", "llama3"):
        tokenizer = Tokenizer.from_str(train(SAMPLE, TokenizerConfig(vocab_size=258, pattern=pattern)).decode())
        pieces[pattern] = [text[a:b] for _, (a, b) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces["gpt2"] == ["We", "'", "LL", " pay", " 12345", ",", " ", " ok", "\n", "\n", "!"]
    assert pieces["llama3"] == ["We", "'LL", " pay", " ", "123", "45", ",", " ", " ok", "\n\n", "!"]


@given(text=st.text(st.characters(exclude_categories=["Cs"])), num_bytes=st.integers(0, 60))
def test_a_head_is_the_longest_beginning_that_fits(text: str, num_bytes: int) -> None:
    got = head(text, num_bytes)
    assert text.startswith(got)
    assert len(got.encode()) <= num_bytes
    assert got == text or len(text[: len(got) + 1].encode()) > num_bytes
