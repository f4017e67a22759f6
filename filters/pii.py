"""Personal data that has a form: e-mail and IP addresses, telephone and card numbers, IBANs, US social security numbers.

Names, postal addresses and dates have none and are not looked for. RE2 marks the texts that could hold something, over the
whole column at once; only those become Python strings, where a pattern proposes and a check (Luhn, mod 97, a real address) decides.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.schemas import SPANS
from filters.config import PiiConfig

SCHEMA = pa.schema([("spans", SPANS), ("count", pa.int32()), ("char_fraction", pa.float32())])


def luhn(number: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812)."""
    digits = [int(c) for c in number if c.isdecimal()]
    return sum(d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))) % 10 == 0


def iban(number: str) -> bool:
    """Length and check digits of an IBAN (ISO 13616)."""
    compact = number.replace(" ", "").upper()
    if IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
}
IBAN_LENGTHS = {country: length for length, countries in _COUNTRIES.items() for country in countries.split()}


def host(address: str) -> bool:
    """An address that names a host: neither loopback nor 'any' nor broadcast; of IPv6, one with four groups or more."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 6 and sum(map(bool, address.split(":"))) < 4:
        return False  # a::b is Ruby or C++ more often than an address
    return not (parsed.is_loopback or parsed.is_unspecified or str(parsed) == "255.255.255.255")


def telephone(number: str) -> bool:
    """As many digits as E.164 allows, after a trunk 0 so many that a date (0300-12-31) is none; extensions are not counted."""
    digits = sum(c.isdecimal() for c in re.split(r"[xe]", number)[0])
    return (9 if re.match(r"\(?0[1-9]", number) else 7) <= digits <= 15


@dataclass(frozen=True)
class Kind:
    """`hint`: an RE2 pattern that any text with a match contains. `pattern` proposes, `check` decides.

    `anchor` is a pattern that Python finds ten times faster and that lies in every match; then `pattern` is tried only from
    `before` characters ahead of it to `after` behind it.
    """

    hint: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool] = bool
    anchor: re.Pattern[str] | None = None
    before: int = 0
    after: int = 0


_GAP = r"[ .\u2010-\u2012\u00a0-]"  # between groups of a telephone number
KINDS = {
    "EMAIL": Kind(
        r"[^\s@]@[^\s@]+\.[^\s@]",
        re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w(-])"),
        anchor=re.compile("@"),
        before=64,
        after=600,
    ),
    "IBAN": Kind(
        r"[A-Za-z]{2}[0-9]{2} ?[A-Za-z0-9]{4}",
        re.compile(r"(?<![\w-])(?:[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){2,8}|[a-z]{2}\d{2}(?: ?[a-z0-9]{2,4}){2,8})(?!\w)"),
        iban,
        anchor=re.compile(r"\d\d(?<=[A-Za-z]{2}\d\d) ?[A-Za-z0-9]{2}"),
        before=2,
        after=44,
    ),
    "CREDIT_CARD": Kind(
        r"(?:[0-9][ -]?){12}",
        re.compile(
            r"(?<![\w.+-])(?:[3-6]|2[2-7]|1800|2131)(?:\d{10,18}|\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{3}([ -])\d{6}\2\d{4,5})(?![\w-]|\.\d)"
        ),
        luhn,
        anchor=re.compile(r"\d(?:[ -]?\d){11,}"),
        after=3,
    ),
    "SSN": Kind(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", re.compile(r"(?<![\w.-])(?!000|666)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-]|\.\d)")),
    "IP": Kind(
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]:[0-9A-Fa-f:]*:[0-9A-Fa-f]",
        re.compile(
            r"(?<![\w.:-])(?<![=<>~!^]=)(?<![<>^])(?:\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)|(?:[0-9A-Fa-f]{1,4}:{1,2}){3,7}[0-9A-Fa-f]{1,4}(?![\w:-]))"
        ),
        host,
        anchor=re.compile(r"\.\d{1,3}\.\d|:{1,2}[0-9A-Fa-f]{1,4}:"),
        before=4,
        after=48,
    ),
    "PHONE": Kind(
        r"[0-9][0-9 ().\x{2010}-\x{2012}\x{a0}-]{5,}[0-9]",
        re.compile(
            rf"(?<![\w.+/-])(?:"
            rf"(?:\+[1-9]\d{{0,2}}{_GAP}?|(?<!\d )00[1-9]\d{{0,2}}{_GAP})"  # with a country code
            rf"(?:\(\d{{1,4}}\){_GAP}?)?\d{{1,4}}(?:{_GAP}?\d{{2,4}}){{1,4}}"
            rf"|(?:1{_GAP})?(?:\([2-9]\d\d\) ?|[2-9]\d\d{_GAP})\d{{3}}{_GAP}\d{{4}}"  # North America
            rf"|\(0\d{{1,4}}\) ?\d{{2,4}}(?:{_GAP}?\d{{2,4}}){{1,3}}"
            rf"|(?<!\d )0[1-9]\d{{1,3}}(?:[ /]\d{{2,4}}|-\d{{3,4}})(?:[ -]\d{{2,4}}){{1,3}}"  # trunk 0
            rf")(?: ?(?:x|ext\.? ?)\d{{1,6}})?(?![\w-]| ?\d|\.\d)"
        ),
        telephone,
        anchor=re.compile(r"\d[\d ().\u2010-\u2012\u00a0-]{5,}\d"),
        before=2,
        after=12,
    ),
}


def find_spans(text: str, labels: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """Spans (start, end, label) of one text, sorted and disjoint: where two meet, the label that stands first has it."""
    taken: list[tuple[int, int, str]] = []
    for label in labels:
        for start, end in _matches(text, KINDS[label]):
            if all(end <= other_start or start >= other_end for other_start, other_end, _ in taken):
                taken.append((start, end, label))
    return sorted(taken)


def _matches(text: str, kind: Kind) -> Iterator[tuple[int, int]]:
    """Spans of one kind, as `pattern` alone would find them over the whole text."""
    place = 0
    for first, begins_before, last in _windows(text, kind):
        for match in kind.pattern.finditer(text, max(place, first), last):
            if match.start() >= begins_before:
                break  # it belongs to a later window, and may be cut short here
            place = match.end()
            if kind.check(match.group()):
                yield match.span()


def _windows(text: str, kind: Kind) -> Iterator[tuple[int, int, int]]:
    """From where to look, where a match begins at the latest, and up to where."""
    if kind.anchor is None:
        yield 0, len(text) + 1, len(text)
        return
    for match in kind.anchor.finditer(text):
        yield max(0, match.start() - kind.before), match.end(), min(len(text), match.end() + kind.after)


def score(text: pa.ChunkedArray | pa.Array, config: PiiConfig) -> pa.Table:
    """Spans of each text (code points), their number, and the share of its characters in them."""
    text = pc.cast(text, pa.large_string())
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    hints = {label: np.asarray(pc.match_substring_regex(text, KINDS[label].hint)) for label in config.labels}
    rows = np.flatnonzero(np.any([np.zeros(len(text), bool), *hints.values()], axis=0))
    counts, starts, ends, labels = np.zeros(len(text), np.int32), [], [], []
    for row, value in zip(rows, text.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
        spans = find_spans(value, tuple(label for label in config.labels if hints[label][row]))
        counts[row] = len(spans)
        starts += [start for start, _, _ in spans]
        ends += [end for _, end, _ in spans]
        labels += [label for _, _, label in spans]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    covered = np.concatenate([[0], np.cumsum(np.array(ends, np.int64) - np.array(starts, np.int64))])
    fields = [pa.array(starts, pa.int32()), pa.array(ends, pa.int32()), pa.array(labels, pa.string())]
    spans = pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(fields, fields=list(SPANS.value_type)))
    chars = np.maximum(1, np.asarray(pc.utf8_length(text)))
    share = (covered[offsets[1:]] - covered[offsets[:-1]]) / chars
    return pa.table([spans.cast(SPANS), pa.array(counts), pa.array(share.astype(np.float32))], SCHEMA)
