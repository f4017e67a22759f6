import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import IntegrityError
from contract.schemas import DOCUMENTS, ID, SPANS, document_id
from filters.materialise import edit, materialise, plan


def documents(texts: list[str]) -> pa.Table:
    rows = [
        {"id": document_id("t", str(i)), "text": text, "domain": "web", "source": "t", "locator": str(i)} for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, DOCUMENTS)


def selection(table: pa.Table, kept: list[bool]) -> pa.Table:
    return pa.table({"id": table["id"], "kept": kept})


def signal(table: pa.Table, spans: list[list[tuple[int, int, str]] | None]) -> pa.Table:
    rows = [None if row is None else [{"start": a, "end": b, "label": label} for a, b, label in row] for row in spans]
    return pa.table({"id": table["id"], "spans": pa.array(rows, SPANS)})


def test_it_keeps_redacts_and_cuts_by_code_points():
    table = documents(["dropped", "é a@b.c ü", "one two three", "as it is"])
    redactions = signal(table, [None, [(2, 7, "EMAIL")], [], None])
    cuts = signal(table, [None, [], [(4, 8, "x")], None])
    made = materialise(table, selection(table, [False, True, True, True]), redactions, cuts)
    assert made["text"].to_pylist() == ["é <EMAIL> ü", "one three", "as it is"]
    assert made.schema == DOCUMENTS
    assert made["id"].to_pylist() == table["id"].to_pylist()[1:]


def test_without_spans_it_is_the_kept_rows():
    table = documents(["a", "b", "c"])
    made = materialise(table, selection(table, [True, False, True]), None, None)
    assert made.equals(table.take([0, 2]))


def test_tables_of_several_chunks_give_the_same_text():
    table = documents(["ab", "cd", "ef"])
    cuts = signal(table, [[(0, 1, "x")], None, [(1, 2, "x")]])
    whole = materialise(table, selection(table, [True] * 3), None, cuts)
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    split = materialise(pieces, selection(table, [True] * 3), None, pa.concat_tables([cuts.slice(0, 2), cuts.slice(2)]))
    assert split["text"].to_pylist() == whole["text"].to_pylist() == ["b", "cd", "e"]


@pytest.mark.parametrize(
    ("redactions", "cuts", "text"),
    [
        ([(2, 4)], [(0, 6)], "6789"),  # inside a cut: nothing left of it
        ([(4, 8)], [(2, 6)], "01<P>89"),  # sticks out behind
        ([(1, 4)], [(2, 6)], "0<P>6789"),  # sticks out before
        ([(1, 4), (5, 8)], [(3, 6)], "0<P>89"),  # two joined by a cut
        ([(0, 2)], [(2, 4)], "<P>456789"),  # side by side
    ],
)
def test_no_part_of_a_redaction_survives_a_cut(redactions, cuts, text):
    spans = [[{"start": a, "end": b, "label": "P"} for a, b in row] for row in (redactions, cuts)]
    assert edit("0123456789", plan(*spans)) == text


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5), st.booleans()), max_size=6))
def test_exactly_the_covered_characters_go(spans):
    text = "abcdefghijklmnopqrstuvwxyz"
    rows = [{"start": a, "end": a + n, "label": "7"} for a, n, _ in spans]
    cuts = [row for row, (_, _, is_cut) in zip(rows, spans, strict=True) if is_cut]
    redactions = [row for row in rows if row not in cuts]
    covered = {i for row in rows for i in range(row["start"], row["end"])}
    edited = edit(text, plan(redactions, cuts))
    assert edited.replace("<7>", "") == "".join(c for i, c in enumerate(text) if i not in covered)


def test_rows_of_another_part_are_refused():
    table = documents(["a", "b"])
    with pytest.raises(IntegrityError, match="selection has 2 rows"):
        materialise(table, selection(table.take(pa.array([1, 0])), [True, True]), None, None)
    assert table["id"].type == ID
