import dataclasses
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.config import PiiConfig
from filters.pii import KINDS, _matches, find_spans, host, iban, luhn, score

LABELS = PiiConfig().labels
SAME = {"EMAIL_ADDRESS": "EMAIL", "IP_ADDRESS": "IP", "PHONE_NUMBER": "PHONE", "CREDIT_CARD": "CREDIT_CARD", "IBAN_CODE": "IBAN"} | {
    "US_SSN": "SSN",
    "SOCIAL_SECURITY_NUMBER": "SSN",
}


def found(text: str) -> list[tuple[str, str]]:
    return [(text[start:end], label) for start, end, label in find_spans(text, LABELS)]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Écrivez à zoë.d@mail.example.org.", [("zoë.d@mail.example.org", "EMAIL")]),
        ("IBAN DE89 3704 0044 0532 0130 00, thanks", [("DE89 3704 0044 0532 0130 00", "IBAN")]),
        ("IBAN DE88 3704 0044 0532 0130 00", []),  # wrong check digits
        ("card 4111 1111 1111 1111.", [("4111 1111 1111 1111", "CREDIT_CARD")]),
        ("card 4111 1111 1111 1112.", []),  # Luhn
        ("SSN: 078-05-1120", [("078-05-1120", "SSN")]),
        ("no SSN: 000-05-1120, 078-00-1120, 1078-05-11201", []),
        ("host 93.184.216.34:80 and 2001:db8:85a3::8a2e:370:7334", [("93.184.216.34", "IP"), ("2001:db8:85a3::8a2e:370:7334", "IP")]),
        ("not 127.0.0.1, 0.0.0.0, 256.1.1.1, v1.2.3.4, 1.2.3.4.5, a::b, 12:30:45, x>=1.2.3.4", []),
        ("call (212) 555-0187 or +44 20 7946 0958 x12", [("(212) 555-0187", "PHONE"), ("+44 20 7946 0958 x12", "PHONE")]),
        ("on 2026-11-21, 0300-12-31, 1,234,567.89 and 3.14159265358979", []),
        ("@decorator\nx @ y, user@host", []),
    ],
)
def test_forms_that_are_and_are_not_personal(text, spans):
    assert found(text) == spans


@given(st.text("0123456789", min_size=1, max_size=19))
def test_luhn_equals_its_definition_by_a_table(number):
    doubled = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    total = sum(doubled[int(c)] if i % 2 else int(c) for i, c in enumerate(number[::-1]))
    assert luhn(number) == (total % 10 == 0)


def test_iban_examples_of_the_registry():
    assert all(map(iban, ["GB82 WEST 1234 5698 7654 32", "FR1420041010050500013M02606", "NO9386011117947"]))
    assert not any(map(iban, ["GB82 WEST 1234 5698 7654 33", "GB82WEST123456987654", "ZZ82WEST12345698765432"]))
    assert host("8.8.8.8") and not host("8.8.8.300")


PIECES = ["a", "b.c", "@", ".", "co", " ", "+1", "555", "212-555-0187", "4111111111111111", "-", "0"]
PIECES += ["DE89", " 3704", "0044", "gb82 ", "west", "1.", "127.0.0.1", ".8", ":", "::", "fe80", "2001:db8", ":1:2:3", "1800"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_windows_find_what_the_pattern_alone_finds(pieces):
    text = "".join(pieces)
    for kind in KINDS.values():
        assert list(_matches(text, kind)) == list(_matches(text, dataclasses.replace(kind, anchor=None)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("é1 @.a-+中", max_size=30), max_size=4))
def test_columns_agree_with_single_texts(texts):
    texts = [*texts, "é bob@example.com 中 (212) 555-0187"]
    table = score(pa.array(texts, pa.large_string()), PiiConfig())
    for text, row in zip(texts, table.to_pylist(), strict=True):
        spans = [(span["start"], span["end"], span["label"]) for span in row["spans"]]
        assert spans == find_spans(text, LABELS)
        assert row["count"] == len(spans)
        assert row["char_fraction"] == pytest.approx(sum(end - start for start, end, _ in spans) / max(1, len(text)))


def test_labels_are_looked_for_by_config():
    text = pa.array(["bob@example.com 078-05-1120"], pa.large_string())
    spans = score(text, PiiConfig(labels=("SSN",)))["spans"].to_pylist()[0]
    assert [span["label"] for span in spans] == ["SSN"]


def test_scores_on_labelled_text(test_data: Path):
    """Exact spans. PHONE's precision is that of the labels: the adversarial rows leave telephone numbers unlabelled."""
    import io

    import zstandard

    with (test_data / "pii/spans.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n")
        rows = [json.loads(line) for line in lines]
    right, missed, wrong = Counter(), Counter(), Counter()
    signals = score(pa.array([row["text"] for row in rows], pa.large_string()), PiiConfig())
    for row, spans in zip(rows, signals["spans"].to_pylist(), strict=True):
        gold = {(span["start"], span["end"], SAME[span["label"]]) for span in row["spans"] if span["label"] in SAME}
        made = {(span["start"], span["end"], span["label"]) for span in spans}
        right.update(label for _, _, label in gold & made)
        missed.update(label for _, _, label in gold - made)
        wrong.update(label for _, _, label in made - gold)
    f1 = {label: 2 * right[label] / (2 * right[label] + missed[label] + wrong[label]) for label in LABELS}
    assert min(f1[label] for label in ("EMAIL", "IBAN", "CREDIT_CARD", "IP")) > 0.99
    assert f1["SSN"] > 0.97 and f1["PHONE"] > 0.84
    assert right["PHONE"] / (right["PHONE"] + missed["PHONE"]) > 0.91
