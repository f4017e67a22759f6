"""Manual pages as plain text: the man and mdoc macros that matter for reading, no layout. Not a roff interpreter."""

import re

SPECIAL = {
    "em": "—", "en": "–", "hy": "-", "mi": "-", "bu": "•", "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "aq": "'", "dq": '"', "co": "©",
    "rg": "®", "tm": "™", "rs": "\\", "sl": "/", "ga": "`", "ha": "^", "ti": "~", "<=": "≤", ">=": "≥", "!=": "≠", "->": "→", "<-": "←",
    "+-": "±", "mu": "×", "de": "°", "sc": "§", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "ba": "|", "or": "|",
}  # fmt: skip
# A name in brackets is short; without a bound, each one that stays open would be sought to the line's end.
ESCAPE = re.compile(
    r"""\\(?:
    \((?P<two>..) | \[(?P<long>[^\]]{0,100})\] | \*(?:\((?P<s2>..)|\[(?P<sl>[^\]]{0,100})\]|(?P<s1>.))
    | f(?:\(..|\[[^\]]{0,100}\]|.) | s(?:\([-+]?..|\[[^\]]{0,100}\]|[-+]?\d) | [mMFgkn](?:\(..|\[[^\]]{0,100}\]|.)
    | [hvwxlLobCDNRXZ]'[^']*' | (?P<one>.) )""",
    re.VERBOSE | re.DOTALL,
)
STRINGS = {"lq": "“", "rq": "”", "R": "®", "Tm": "™", 'L"': "“", 'R"': "”", "Aq": "'"}
ONE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": "\t", "'": "’", "`": "‘", ".": "."}
BREAKS = {"PP", "P", "LP", "Pp", "TP", "IP", "HP", "sp", "It", "TQ", "Bl", "El", "Bd", "Ed", "RS", "RE"}
JOINED = {"BR", "RB", "IR", "RI", "BI", "IB"}
SILENT = [
    "Ns",
    "No",
    "Oc",
    "Oo",
    "Ic",
    "Ar",
    "Nm",
    "Pa",
    "Cm",
    "Em",
    "Sy",
    "Li",
    "Va",
    "Fa",
    "Ft",
    "Dv",
    "Ev",
    "Xr",
    "Op",
    "Fn",
    "Dl",
    "Sq",
    "Dq",
    "Qq",
    "Pq",
    "Ql",
    "Tn",
]
JOIN = "\0"  # no manual page holds one
MDOC = {**dict.fromkeys(SILENT, ""), "Fl": f"-{JOIN}", "Nd": "—"}


def deroff(source: str) -> str:
    """The readable text of a manual page. A page that only points at another (.so) gives an empty string."""
    out: list[str] = []
    definition, table = False, False
    for raw in source.split("\n"):
        line = raw.rstrip()
        if definition:
            definition = not line.startswith("..")
        elif table and not line.startswith(".TE"):
            table_line = "" if line.endswith((".", ";")) and "\t" not in line else _escapes(line).replace("\t", "  ")
            out.append(table_line)
        elif line.startswith((".", "'")):
            name, _, rest = line[1:].strip().partition(" ")
            definition = name in ("de", "de1", "am", "ig")
            table = name == "TS"
            out.extend(_macro(name, rest.strip()))
        else:
            out.append(_escapes(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _macro(name: str, rest: str) -> list[str]:
    """The lines that a request gives."""
    if name in ("SH", "Sh", "SS", "Ss"):
        return ["", _escapes(" ".join(_arguments(rest)))]
    if name == "TH" or name == "Dt":
        return [_escapes(" ".join(_arguments(rest)[:2]))]
    if name in BREAKS:
        label = _escapes(" ".join(_arguments(rest)[:1])) if name == "IP" else _words(rest) if name == "It" else ""
        return ["", label] if label else [""]
    if name in ("B", "I", "SM", "SB", "R"):
        return [_escapes(" ".join(_arguments(rest)))]
    if name in JOINED:
        return [_escapes("".join(_arguments(rest)))]
    if name in MDOC:
        return [_words(f"{name} {rest}")]
    if name in ("UR", "URL", "MT"):
        return [_escapes(rest)]
    return []


def _words(rest: str) -> str:
    """mdoc arguments, its inline macros among them resolved to their text; a mark such as the dash of a flag joins the next word."""
    words = " ".join(MDOC.get(word, word) for word in _arguments(rest) if MDOC.get(word, word))
    return _escapes(words.replace(JOIN + " ", "").replace(JOIN, ""))


def _arguments(rest: str) -> list[str]:
    return [quoted.replace('""', '"') if quoted else plain for quoted, plain in re.findall(r'"((?:[^"]|"")*)"?|(\S+)', rest)]


def _escapes(text: str) -> str:
    text = text.split('\\"')[0] if '\\"' in text else text
    return ESCAPE.sub(_escape, text) if "\\" in text else text


def _escape(match: re.Match[str]) -> str:
    special = match["two"] or match["long"]
    if special:
        if re.fullmatch(r"u[0-9A-F]{4,6}", special) and int(special[1:], 16) < 0xD800:
            return chr(int(special[1:], 16))
        return SPECIAL.get(special, "")
    string = match["s2"] or match["sl"] or match["s1"]
    if string:
        return STRINGS.get(string, "")
    return ONE.get(match["one"] or "", "")
