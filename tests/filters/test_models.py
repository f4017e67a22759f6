"""Language, perplexity and toxicity: the models behind them, against their libraries or plain definitions."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import kenlm
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from filters import language, perplexity, toxicity
from filters.config import LanguageConfig, PerplexityConfig, ToxicityConfig

MODEL = Path(sys.prefix, "share", "bessemer", "lid.176.ftz")
BIN = Path(sys.prefix, "bin")


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def rows(path: Path) -> Iterator[dict]:
    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n"):
            yield json.loads(line)


@pytest.fixture(scope="module")
def lid():
    return language.load(MODEL)


def test_languages_are_told_apart(lid, test_data):
    some = [row for row in rows(test_data / "langid/sentences.jsonl.zst") if row["lang"] in ("en", "de", "fr", "ru", "zh")]
    made = language.score(column([row["text"] for row in some]), lid, LanguageConfig()).to_pylist()
    right = np.mean([a["label"] == b["lang"] for a, b in zip(made, some, strict=True)])
    taken_for_english = [a["target_probability"] >= 0.7 for a, b in zip(made, some, strict=True) if b["lang"] != "en"]
    assert right > 0.95 and np.mean(taken_for_english) < 0.01


def test_markup_code_and_addresses_do_not_hide_the_language(lid):
    text = """[![PyPI](https://img.shields.io/pypi/v/x.svg)](https://pypi.org/project/x) `pip install x==1.2.3`
    This package reads the files of a folder and tells you which of them have changed since it looked the last time."""
    row = language.score(column([text]), lid, LanguageConfig()).to_pylist()[0]
    assert row["label"] == "en" and row["target_probability"] > 0.7


def test_line_breaks_length_and_emptiness_are_no_trouble(lid):
    english = "The weather was fine when they left the house."
    made = language.score(column([english, english.replace(" ", "\r\n"), english * 5000, "", "123 456"]), lid, LanguageConfig())
    assert made["label"].to_pylist()[:3] == ["en"] * 3
    assert all(p < 0.5 for p in made["target_probability"].to_pylist()[3:])
    german = language.score(column([english]), lid, LanguageConfig(target="de")).to_pylist()[0]
    assert german["label"] == "en" and german["target_probability"] < 0.1
    assert len(language.score(column([]), lid, LanguageConfig())) == 0


@settings(max_examples=100, deadline=None)
@given(st.text("aB9.,é< >\n\t中s/\u00a0", max_size=40))
def test_sentences_are_one_line_of_tokens(text):
    line = perplexity.sentences(column([text]), 1000).to_pylist()[0]
    tokens = re.findall(r"[^\W\d_]+(?:0+[^\W\d_]*)*|0+[^\W\d_0]*|\S", re.sub(r"\d", "0", text.lower()))
    assert "".join(line.split()) == "".join(tokens).replace("\n", "")
    assert "\n" not in line and line == line.strip() and not re.search(r"<s>|</s>", line)


def test_perplexity_is_that_of_the_trained_model_and_training_repeats(tmp_path, test_data):
    abstracts = [" ".join(row["abstract_sentences"]) for row in rows(test_data / "academic/scitldr_abstracts.jsonl.zst")][:300]
    config = PerplexityConfig(order=3)
    lines = perplexity.sentences(column(abstracts[:200]), 10**6).to_pylist()
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(perplexity.train(lines, BIN / "lmplz", BIN / "build_binary", tmp_path / name, config))
    (model, count, size), (again, *_) = files
    assert model.read_bytes() == again.read_bytes()
    assert (count, size) == (200, sum(len(line.encode()) + 1 for line in lines))
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["model.binary"]
    texts = [abstracts[0], abstracts[250], "colourless green ideas sleep furiously", "", "\n"]
    made = perplexity.score(column(texts), perplexity.load(model), config)
    library = kenlm.Model(str(model))
    want = [library.perplexity(line) for line in perplexity.sentences(column(texts[:3]), 10**6).to_pylist()]
    assert made["perplexity"].to_pylist()[:3] == pytest.approx(want, rel=1e-5)
    assert made["perplexity"].to_pylist()[3:] == [None, None]
    seen, fresh, nonsense = made["perplexity"].to_pylist()[:3]
    assert seen < fresh < nonsense


def test_training_text_is_bounded(tmp_path):
    config = PerplexityConfig(order=2, max_train_bytes=100)
    _, count, size = perplexity.train(["one two three"] * 50, BIN / "lmplz", BIN / "build_binary", tmp_path, config)
    assert (count, size) == (8, 100), "seven lines of 14 bytes, and one cut to its first letter"


@pytest.mark.parametrize("line", ["x" * 1000, "word " * 300, "ä" * 500, "\U0001f600" * 400])
def test_a_line_longer_than_the_bound_is_cut_and_lmplz_never_gets_nothing(tmp_path, line):
    config = PerplexityConfig(order=2, max_train_bytes=100)
    model, count, size = perplexity.train([line.strip(), "what is left"], BIN / "lmplz", BIN / "build_binary", tmp_path, config)
    assert count <= 2 and 90 < size <= 100 and perplexity.load(model).order == 2


def test_words_of_the_lexicon_are_counted_whole_and_the_longest_first():
    config = ToxicityConfig(exempt=("sex",))
    entries = toxicity.lexicon(config.exempt)
    assert "sex" not in entries and "LEN" not in entries and list(entries) == sorted(set(entries))
    insult = next(entry for entry in entries if re.fullmatch("[a-z]{7}", entry))
    phrase = next(entry for entry in entries if " " in entry and entry.split()[0] in entries)
    texts = [f"a {insult.upper()}, {insult}!", f"{insult}x sex", phrase, "", "nothing here"]
    made = toxicity.score(column(texts), None, config)
    assert made["toxic_words"].to_pylist() == [2, 0, 1, 0, 0]
    assert made["words"].to_pylist() == [3, 2, len(phrase.split()), 0, 2]
    assert made["toxic_words_per_1000"].to_pylist()[0] == pytest.approx(2000 / 3)
    assert made["probability"].null_count == 5


def test_counts_equal_a_search_in_plain_python(test_data):
    texts = [row["text"] for row in rows(test_data / "web/toxicity/test.jsonl.zst")][:600]
    entries = {tuple(re.findall(r"[^\W_]+", entry)) for entry in toxicity.lexicon(ToxicityConfig().exempt)}
    made = toxicity.score(column(texts), None, ToxicityConfig())["toxic_words"].to_pylist()
    for text, count in zip(texts, made, strict=True):
        if not text.isascii():
            continue  # combining marks and emoji are told apart by Unicode's tables, not by re
        words, hits, i = re.findall(r"[^\W_]+", text.lower()), 0, 0
        while i < len(words):
            taken = next((n for n in range(4, 0, -1) if tuple(words[i : i + n]) in entries and i + n <= len(words)), 0)
            hits, i = hits + bool(taken), i + max(1, taken)
        assert count == hits


def test_offensive_text_stands_out(test_data):
    bounds = 10
    offensive = [row["text"] for row in rows(test_data / "web/toxicity/test.jsonl.zst") if (row["source"], row["label"]) == ("davidson", 1)]
    pages = [row["text"] for row in rows(test_data / "web/docs/c4_sample.jsonl.zst")]
    shares = [
        np.mean(toxicity.score(column(texts), None, ToxicityConfig())["toxic_words_per_1000"].to_numpy() > bounds)
        for texts in (offensive, pages)
    ]
    assert shares[0] > 0.8 and shares[1] == 0
