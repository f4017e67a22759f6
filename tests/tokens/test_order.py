"""Orders by seed and id."""

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tokens.order import id_words, keys, permutation, ranks

IDS = st.lists(st.binary(min_size=16, max_size=16), max_size=40, unique=True)


@given(ids=IDS, cut=st.integers(0, 40))
def test_words_of_ids_compare_as_their_bytes_do_also_in_a_slice(ids: list[bytes], cut: int) -> None:
    words = id_words(pa.array(ids, pa.binary(16))[cut:])
    got = [a.to_bytes(8, "big") + b.to_bytes(8, "big") for a, b in words.tolist()]
    assert got == ids[cut:]
    assert np.lexsort((words[:, 1], words[:, 0])).tolist() == sorted(range(len(got)), key=got.__getitem__)


@given(ids=IDS, seed=st.integers(0, 2**40))
def test_keys_equal_split_mix_in_unbounded_integers(ids: list[bytes], seed: int) -> None:
    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    salt = int.from_bytes(hashlib.blake2b(f"{seed}/order/3".encode(), digest_size=8).digest(), "big")
    want = [mix(mix(salt ^ int.from_bytes(i[:8], "big")) ^ int.from_bytes(i[8:], "big")) for i in ids]
    assert keys(id_words(pa.array(ids, pa.binary(16))), seed, "order", 3).tolist() == want


@given(ids=IDS.filter(lambda ids: len(ids) > 1), turn=st.integers(1, 39), tie=st.booleans())
def test_the_order_does_not_depend_on_the_order_of_the_rows(ids: list[bytes], turn: int, tie: bool) -> None:
    def ordered(ids: list[bytes]) -> list[bytes]:
        words = id_words(pa.array(ids, pa.binary(16)))
        key = np.zeros(len(ids), np.uint64) if tie else keys(words, 1, "order")
        return [ids[row] for row in ranks(key, words)]

    assert ordered(ids) == ordered(ids[turn % len(ids) :] + ids[: turn % len(ids)])


def test_permutation_is_pinned_as_every_shuffled_artifact_hangs_on_it() -> None:
    """From the first run of this code; a change here changes every packed corpus, and needs a new version of the mix stage."""
    assert sorted(permutation(1000, 1, "blocks/0").tolist()) == list(range(1000))
    assert permutation(8, 1, "blocks/0").tolist() != permutation(8, 2, "blocks/0").tolist()
    assert permutation(8, 1, "blocks/0").tolist() == [6, 0, 3, 5, 4, 1, 2, 7]
