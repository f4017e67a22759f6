"""Questions and answers, given preferences, and negatives made from true answers. Every choice is drawn from a hash of the text."""

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple

from sources.rows import Document

OTHER, SHUFFLED, DAMAGED, GIVEN = "other docstring", "shuffled", "repetitive_or_cut", "given"
KINDS = (SHUFFLED, DAMAGED, OTHER)  # the first ones when fewer are asked for: a reward model learns these two (laptop trial)
TURN = "\n\nAssistant:"


class Pair(NamedTuple):
    """A question with its true answer; `rejected` where the source gives a worse one."""

    prompt: str
    response: str
    names: tuple[str, ...]
    group: str
    rejected: str | None = None


class Preference(NamedTuple):
    prompt: str
    chosen: str
    rejected: str
    kind: str
    group: str


def draw(*parts: str | int) -> int:
    """64 bits that depend on the parts alone."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def pair_of(document: Document) -> Pair | None:
    """The pair in a record read with text_field `chosen` or `response` (or a question of the environment); None when it has none."""
    extra = document.extra or {}
    prompt, rejected = extra.get("prompt"), extra.get("rejected")
    response = extra.get("response")
    if isinstance(response, str) and response.strip() and isinstance(prompt, str):  # made from a signature: the text is both
        return Pair(prompt, response, _strings(extra.get("names")), document.group or _group(prompt))
    if isinstance(prompt, str) and (rejected is None or isinstance(rejected, str)):
        return Pair(prompt, document.text, (), document.group or _group(prompt), rejected)
    return _dialogues(document.text, rejected, document.group) if isinstance(rejected, str) else None


def _dialogues(chosen: str, rejected: str, group: str | None) -> Pair | None:
    """HH-RLHF's form: two dialogues that share all turns but the last Assistant one. The answers keep their leading space."""
    cut = chosen.rfind(TURN) + len(TURN)
    other = rejected.rfind(TURN) + len(TURN)
    prompt, response, worse = chosen[:cut], chosen[cut:], rejected[other:]
    if cut < len(TURN) or chosen[:cut] != rejected[:other] or not response.strip() or not worse.strip() or response == worse:
        return None
    return Pair(prompt, response, (), group or _group(chosen.split(TURN)[0]), worse)


def _group(text: str) -> str:
    return f"prompt:{draw(text):016x}"


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def negatives(pairs: Sequence[Pair], per_pair: int, seed: int) -> list[Preference]:
    """Preferences of the true answer over worse ones: a given one where there is, else `per_pair` kinds made from the answers.

    Lengths are balanced, so that length alone tells nothing: another's answer is the one of nearest length, shuffling keeps it,
    and cuts take away as much as repetitions add.
    """
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].response.split()), draw(seed, pairs[i].response)))
    neighbour = {i: pairs[order[place + 1 if place + 1 < len(order) else place - 1]].response for place, i in enumerate(order)}
    made = []
    for index, pair in enumerate(pairs):
        if pair.rejected is not None:
            made.append(Preference(pair.prompt, pair.response, pair.rejected, GIVEN, pair.group))
            continue
        rng = random.Random(draw(seed, pair.prompt, pair.response))
        worse = {OTHER: neighbour[index], SHUFFLED: shuffled(pair.response, rng), DAMAGED: damaged(pair.response, rng)}
        for kind in KINDS[:per_pair]:
            if worse[kind] and worse[kind] != pair.response:
                made.append(Preference(pair.prompt, pair.response, worse[kind], kind, pair.group))
    return made


def shuffled(text: str, rng: random.Random) -> str:
    """The same words in another order; unchanged when there is no other."""
    words = text.split()
    mixed = list(words)
    for _ in range(8):
        rng.shuffle(mixed)
        if mixed != words:
            break
    return " ".join(mixed)


def damaged(text: str, rng: random.Random) -> str:
    """Cut short, or with a phrase said again and again: each as likely, taking or adding a quarter to three quarters of the words."""
    words = text.split()
    change = rng.randint(max(1, len(words) // 4), max(1, 3 * len(words) // 4))
    if rng.random() < 0.5:
        return " ".join(words[: len(words) - change])
    size = min(rng.randint(1, 3), len(words))
    begin = rng.randrange(len(words) - size + 1)
    phrase = words[begin : begin + size]
    added = (phrase * (change // size + 1))[:change]
    return " ".join([*words[: begin + size], *added, *words[begin + size :]])
