"""Heuristic signals: counts and shares of characters, words, lines and repetitions, after Gopher (Rae et al. 2021, table A1).

Words are runs of characters other than white space, as Gopher's; lines are parted by line feeds, paragraphs by empty lines,
and only those with other characters than white space count. No bound is here: `select` has them.
"""

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.config import RulesConfig
from filters.text import DIGIT, LETTER, MARK, PUNCTUATION, SPACE, buffers, classes, decode, find, hash_set, mix, ngram_key, step, word_keys

COUNTS = ("chars", "words", "lines", "stop_words")
SHARES = (
    "punctuation_fraction",
    "mean_word_chars",
    "symbol_word_ratio",
    "alpha_word_fraction",
    "bullet_line_fraction",
    "ellipsis_line_fraction",
    "duplicate_line_fraction",
    "duplicate_line_char_fraction",
    "duplicate_paragraph_fraction",
    "duplicate_paragraph_char_fraction",
    "top_2gram_char_fraction",
    "top_3gram_char_fraction",
    "top_4gram_char_fraction",
    "duplicate_5gram_char_fraction",
    "duplicate_6gram_char_fraction",
    "duplicate_7gram_char_fraction",
    "duplicate_8gram_char_fraction",
    "duplicate_9gram_char_fraction",
    "duplicate_10gram_char_fraction",
)
SCHEMA = pa.schema(
    [pa.field(name, pa.int32()) for name in COUNTS]
    + [pa.field("unwanted_phrases", pa.int32())]
    + [pa.field(name, pa.float32()) for name in SHARES]
)


def score(text: pa.ChunkedArray | pa.Array, config: RulesConfig) -> pa.Table:
    """One row a text, columns as SCHEMA. About three passes over the bytes and nine over the words."""
    data, offsets = buffers(text)
    stop_words = hash_set(np.concatenate([word_keys(word) for word in ("", *config.stop_words)]))
    counts = np.zeros((len(offsets) - 1, len(COUNTS)), np.int32)
    shares = np.zeros((len(offsets) - 1, len(SHARES)), np.float32)
    _score(data, offsets, classes(), stop_words, counts, shares)
    columns = [pa.array(counts[:, i]) for i in range(len(COUNTS))]
    columns += [unwanted_phrases(text, config.unwanted_phrases)]
    columns += [pa.array(shares[:, i]) for i in range(len(SHARES))]
    return pa.table(columns, SCHEMA)


def unwanted_phrases(text: pa.ChunkedArray | pa.Array, phrases: tuple[str, ...]) -> pa.Array:
    """Occurrences of any of the phrases, in any case and with any white space between their words."""
    if not phrases:
        return pa.array(np.zeros(len(text), np.int32))
    pattern = "|".join(r"\s+".join(_quoted(word) for word in phrase.split()) for phrase in phrases)
    found = pc.count_substring_regex(pc.cast(text, pa.large_string()), pattern, ignore_case=True)
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    return pc.cast(found, pa.int32())


def _quoted(word: str) -> str:
    """A word as RE2 pattern: everything but letters, digits and other scripts escaped."""
    return "".join(c if c.isalnum() or ord(c) > 127 else "\\" + c for c in word)


@numba.njit(nogil=True, cache=True)
def _score(data, offsets, classes, stop_words, counts, shares):  # type: ignore[no-untyped-def]
    """Fill counts (n, 4) and shares (n, 19) in the order of COUNTS and SHARES; both hold zeros.

    Scratch is as long as the longest text asks for and is used for all of them: nothing is allocated per document.
    """
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    room = longest // 2 + 1
    words, word_chars = np.empty(room, np.uint64), np.empty(room, np.int32)
    lines, line_chars = np.empty(room, np.uint64), np.empty(room, np.int32)
    paragraphs, paragraph_chars = np.empty(room, np.uint64), np.empty(room, np.int32)
    slots = 8
    while slots < 2 * room:
        slots *= 2
    keys, stamps, tally = np.zeros(slots, np.uint64), np.zeros(slots, np.int64), np.zeros(slots, np.int32)
    stamp = np.int64(0)
    for row in range(len(offsets) - 1):
        num_words, num_lines, num_paragraphs = _measure(
            data, offsets[row], offsets[row + 1], classes, stop_words,
            words, word_chars, lines, line_chars, paragraphs, paragraph_chars, counts[row], shares[row],
        )  # fmt: skip
        chars = counts[row, 0]
        if chars == 0:
            continue
        used = 8
        while used < 2 * (max(num_words, max(num_lines, num_paragraphs)) + 1):
            used *= 2
        table, seen = keys[:used], stamps[:used]
        out = shares[row]
        out[6], out[7] = _duplicates(lines, line_chars, num_lines, chars, table, seen, stamp + 1)
        out[8], out[9] = _duplicates(paragraphs, paragraph_chars, num_paragraphs, chars, table, seen, stamp + 2)
        for n in range(2, 5):
            out[8 + n] = _top_ngram(words, word_chars, num_words, n, table, seen, tally, stamp + 1 + n) / chars
        for n in range(5, 11):
            out[8 + n] = _duplicate_ngrams(words, word_chars, num_words, n, table, seen, stamp + 1 + n) / chars
        stamp += 11


@numba.njit(nogil=True, cache=True)
def _measure(data, start, stop, classes, stop_words, words, word_chars, lines, line_chars, paragraphs, paragraph_chars, counts, shares):  # type: ignore[no-untyped-def]
    """One pass over a text: keys and lengths of its words, lines and paragraphs, and the plain counts and shares.

    Lines and paragraphs reach from their first to their last character that is no white space.
    """
    seed = np.uint64(0xCBF29CE484222325)
    chars = inked = marks = symbols = alpha_words = word_sum = stops = bullets = ellipses = 0
    num_words = num_lines = num_paragraphs = 0
    word_h, letters_h, line_h, paragraph_h = seed, seed, seed, seed
    line_key, paragraph_key = seed, seed  # as of the last ink
    word_len = line_len = paragraph_len = line_ink = paragraph_ink = 0
    has_alpha, is_bullet, ends_in_ellipsis = False, False, False
    dots = 0  # full stops in a row
    i = start
    while True:
        done = i >= stop  # the end of the text is read as one more line feed
        code, width = (np.uint32(10), 1) if done else decode(data, i)
        kind = classes[code]
        if kind != SPACE:
            if line_len == 0:
                line_h, is_bullet = seed, _is_bullet(code)
            if paragraph_len == 0:
                paragraph_h = seed
            word_len += 1
            inked += 1
            word_h = step(word_h, code)
            if kind in (LETTER, DIGIT, MARK):
                letters_h = step(letters_h, code + np.uint32(32) if 65 <= code <= 90 else code)
            has_alpha |= kind == LETTER
            marks += kind == PUNCTUATION
            dots = dots + 1 if code == 0x2E else 0
            ends_in_ellipsis = code == 0x2026 or dots >= 3
            symbols += code == 0x23 or code == 0x2026 or dots == 3
        elif word_len:
            words[num_words], word_chars[num_words] = mix(word_h), word_len
            num_words += 1
            word_sum += word_len
            alpha_words += has_alpha
            stops += find(stop_words, mix(letters_h)) >= 0
            word_h, letters_h, word_len, has_alpha, dots = seed, seed, 0, False, 0
        if line_len or kind != SPACE:
            line_len += 1
            line_h = step(line_h, code)
        if paragraph_len or kind != SPACE:
            paragraph_len += 1
            paragraph_h = step(paragraph_h, code)
        if kind != SPACE:
            line_key, line_ink, paragraph_key, paragraph_ink = line_h, line_len, paragraph_h, paragraph_len
        if code == 10:
            if line_ink:
                lines[num_lines], line_chars[num_lines] = mix(line_key), line_ink
                num_lines += 1
                bullets += is_bullet
                ellipses += ends_in_ellipsis
            if paragraph_ink and (done or not line_ink):
                paragraphs[num_paragraphs], paragraph_chars[num_paragraphs] = mix(paragraph_key), paragraph_ink
                num_paragraphs += 1
                paragraph_len = paragraph_ink = 0
            line_len = line_ink = 0
        if done:
            break
        chars += 1
        i += width
    counts[0], counts[1], counts[2], counts[3] = chars, num_words, num_lines, stops
    shares[0] = marks / max(1, inked)
    shares[1], shares[2], shares[3] = word_sum / max(1, num_words), symbols / max(1, num_words), alpha_words / max(1, num_words)
    shares[4], shares[5] = bullets / max(1, num_lines), ellipses / max(1, num_lines)
    return num_words, num_lines, num_paragraphs


@numba.njit(nogil=True, cache=True, inline="always")
def _is_bullet(code):  # type: ignore[no-untyped-def]
    """- * • ‣ ● ◦"""
    return code == 0x2D or code == 0x2A or code == 0x2022 or code == 0x2023 or code == 0x25CF or code == 0x25E6


@numba.njit(nogil=True, cache=True, inline="always")
def _slot(keys, stamps, key, stamp):  # type: ignore[no-untyped-def]
    """The slot that holds `key` under this stamp, or the free one where it belongs; what older stamps left counts as free."""
    mask = np.uint64(len(keys) - 1)
    slot = key & mask
    while stamps[slot] == stamp and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(nogil=True, cache=True)
def _duplicates(items, lengths, count, chars, keys, stamps, stamp):  # type: ignore[no-untyped-def]
    """Share of the items, and of all characters, in items that stood before."""
    duplicates = duplicate_chars = 0
    for i in range(count):
        slot = _slot(keys, stamps, items[i], stamp)
        if stamps[slot] == stamp:
            duplicates += 1
            duplicate_chars += lengths[i]
        else:
            keys[slot], stamps[slot] = items[i], stamp
    return duplicates / max(1, count), duplicate_chars / chars


@numba.njit(nogil=True, cache=True)
def _top_ngram(words, lengths, count, n, keys, stamps, tally, stamp):  # type: ignore[no-untyped-def]
    """Characters in the commonest n-gram that occurs at least twice, words parted by one space; of several, the longest."""
    best, best_chars = 1, 0
    for i in range(count - n + 1):
        key = ngram_key(words, i, n)
        slot = _slot(keys, stamps, key, stamp)
        if stamps[slot] != stamp:
            keys[slot], stamps[slot], tally[slot] = key, stamp, 1
            continue
        tally[slot] += 1
        if tally[slot] >= best and tally[slot] > 1:
            chars = n - 1
            for j in range(i, i + n):
                chars += lengths[j]
            if tally[slot] > best or chars > best_chars:
                best, best_chars = tally[slot], chars
    return best * best_chars


@numba.njit(nogil=True, cache=True)
def _duplicate_ngrams(words, lengths, count, n, keys, stamps, stamp):  # type: ignore[no-untyped-def]
    """Characters in n-grams that stood before, without spaces; after one, reading goes on behind it, so none counts twice."""
    chars = i = 0
    while i < count - n + 1:
        key = ngram_key(words, i, n)
        slot = _slot(keys, stamps, key, stamp)
        if stamps[slot] != stamp:
            keys[slot], stamps[slot] = key, stamp
            i += 1
            continue
        for j in range(i, i + n):
            chars += lengths[j]
        i += n
    return chars
