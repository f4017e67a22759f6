"""Oracle: the same definitions in plain Python over str; and counts that can be checked by eye."""

import gzip
import itertools
import re
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.config import RulesConfig
from filters.rules import COUNTS, SHARES, score, unwanted_phrases
from filters.text import _ASSIGNED

SPACES = "".join(chr(i) for i in range(0x110000) if unicodedata.category(chr(i))[0] == "Z") + "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"
CONFIG = RulesConfig()


def test_no_letter_digit_mark_space_or_sign_lies_where_the_table_is_not_filled():
    filled = set(itertools.chain(*_ASSIGNED))
    assert all(unicodedata.category(chr(code))[0] == "C" for code in range(0x110000) if code not in filled)


def oracle(text: str) -> dict[str, float]:
    words = [word for word in re.split(f"[{SPACES}]+", text) if word]
    lines = [line.strip(SPACES) for line in text.split("\n") if line.strip(SPACES)]
    paragraphs = [p.strip(SPACES) for p in re.split(f"\n(?:[{SPACES.replace(chr(10), '')}]*\n)+", text) if p.strip(SPACES)]
    kinds = [unicodedata.category(c)[0] for word in words for c in word]
    num_words, num_lines, chars = max(1, len(words)), max(1, len(lines)), max(1, len(text))
    made: dict[str, float] = {
        "chars": len(text),
        "words": len(words),
        "lines": len(lines),
        "stop_words": sum(re.sub(r"[\W_]", "", word).lower() in CONFIG.stop_words for word in words),
        "punctuation_fraction": sum(kind in "PS" for kind in kinds) / max(1, len(kinds)),
        "mean_word_chars": sum(map(len, words)) / num_words,
        "symbol_word_ratio": sum(len(re.findall(r"#|…|\.{3,}", word)) for word in words) / num_words,
        "alpha_word_fraction": sum(any(unicodedata.category(c)[0] == "L" for c in word) for word in words) / num_words,
        "bullet_line_fraction": sum(line[0] in "-*•‣●◦" for line in lines) / num_lines,
        "ellipsis_line_fraction": sum(line.endswith(("...", "…")) for line in lines) / num_lines,
    }
    for name, items in (("line", lines), ("paragraph", paragraphs)):
        again = [item for i, item in enumerate(items) if item in items[:i]]
        made[f"duplicate_{name}_fraction"] = len(again) / max(1, len(items))
        made[f"duplicate_{name}_char_fraction"] = sum(map(len, again)) / chars
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        most = max(grams.values(), default=1)
        made[f"top_{n}gram_char_fraction"] = most * max((len(g) for g, k in grams.items() if k == most > 1), default=0) / chars
    for n in range(5, 11):
        seen, again_chars, i = set(), 0, 0
        while i < len(words) - n + 1:
            gram = tuple(words[i : i + n])
            again_chars, i = (again_chars + sum(map(len, gram)), i + n) if gram in seen else (again_chars, i + 1)
            seen.add(gram)
        made[f"duplicate_{n}gram_char_fraction"] = again_chars / chars
    return made


def check(texts: list[str]) -> None:
    made = score(pa.array(texts, pa.large_string()), CONFIG).to_pylist()
    for text, row in zip(texts, made, strict=True):
        want = oracle(text)
        assert {name: row[name] for name in COUNTS} == {name: want[name] for name in COUNTS}, text
        assert [row[name] for name in SHARES] == pytest.approx([want[name] for name in SHARES], abs=1e-6), text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ab .#\n\t-•…é̀中😀\u2028\x00T", max_size=60), max_size=4))
def test_signals_equal_their_definitions_in_plain_python(texts):
    check(texts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["the", "a", "of", "bb,", "\n", "\n\n"]), max_size=60).map(" ".join), max_size=3))
def test_repetitions_equal_their_definitions_in_plain_python(texts):
    check(texts)


def test_slices_and_chunks_change_nothing():
    texts = ["skipped", "one two\none two", "", "three — four", "five"]
    column = pa.array(texts, pa.large_string())
    whole = score(column, CONFIG)
    assert score(column.slice(1, 3), CONFIG).equals(whole.slice(1, 3).combine_chunks())
    assert score(pa.chunked_array([column.slice(0, 2), column.slice(2)]), CONFIG).equals(whole)


def test_a_repeated_line_shows():
    row = score(pa.array(["Buy now\nread on\nBuy now\n"], pa.large_string()), CONFIG).to_pylist()[0]
    assert row["duplicate_line_fraction"] == pytest.approx(1 / 3)
    assert row["duplicate_line_char_fraction"] == pytest.approx(7 / 24)
    assert row["top_2gram_char_fraction"] == pytest.approx(14 / 24)


def test_phrases_are_found_in_any_case_and_over_line_breaks():
    texts = ["Click HERE to\n subscribe! click here to subscribe", "click there to subscribe", "a.b", "a+b c?"]
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    assert unwanted_phrases(column, CONFIG.unwanted_phrases).to_pylist() == [2, 0, 0, 0]
    assert unwanted_phrases(column, ("A+B c?",)).to_pylist() == [0, 0, 0, 1]
    assert unwanted_phrases(column, ()).to_pylist() == [0] * 4


def test_a_line_of_noise_is_read_whole(test_data):
    text = gzip.decompress((test_data / "web/docs/oscar_garbage.txt.gz").read_bytes()).decode()
    row = score(pa.array([text], pa.large_string()), CONFIG).to_pylist()[0]
    assert (row["chars"], row["words"]) == (len(text), len([w for w in re.split(f"[{SPACES}]+", text) if w]))
    assert np.isfinite([row[name] for name in SHARES]).all()
