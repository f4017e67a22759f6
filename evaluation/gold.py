"""The gold reward: what alignment is judged by. A documented function, made of text that the reward model never saw.

The mean of four parts in [0, 1]: fluency (a KenLM trigram model of held-out docstrings, its log probability a word squashed),
distinct_3 (different word trigrams of all), ends (the end token came, after a sentence's end), and names (the share of the
question's parameters that the answer mentions; left out of the mean where the question has none). It rewards no content:
it is a yardstick that cannot have been trained on, not a measure of truth.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import kenlm
import numpy as np

MODEL, SETTINGS = "docstrings.arpa", "gold.json"
WORD = re.compile(r"\w+|[^\w\s]")
PARTS = ("fluency", "distinct_3", "ends", "names")


class LanguageModel(Protocol):
    def score(self, sentence: str, bos: bool = True, eos: bool = True) -> float: ...


def load_model(path: Path) -> LanguageModel:
    """A KenLM model, read in silence."""
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    return kenlm.Model(str(path), config)


def tokens(text: str) -> list[str]:
    """Lower-case words and marks, as the language model knows them."""
    return WORD.findall(text.lower())


def log_probability(model: LanguageModel, text: str) -> float:
    """log10 of the probability of a text, its end included, by token."""
    words = tokens(text)
    return model.score(" ".join(words)) / (len(words) + 1)


@dataclass(frozen=True)
class Squash:
    """Logistic: 0.5 half-way between true docstrings and the same ones shuffled, 0.73 at the mean of the true ones."""

    middle: float
    spread: float

    @classmethod
    def between(cls, true: Sequence[float], shuffled: Sequence[float]) -> "Squash":
        high, low = float(np.mean(true)), float(np.mean(shuffled))
        return cls(round((high + low) / 2, 6), round(max((high - low) / 2, 0.05), 6))

    def __call__(self, value: float) -> float:
        return float(1 / (1 + np.exp(-np.clip((value - self.middle) / self.spread, -50, 50))))


@dataclass(frozen=True)
class Gold:
    model: LanguageModel
    squash: Squash

    @classmethod
    def load(cls, folder: Path) -> "Gold":
        """From the `gold/` folder of an align_data artifact."""
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
        return cls(load_model(folder / MODEL), Squash(settings["middle"], settings["spread"]))

    def score(self, prompts: Sequence[str], responses: Sequence[str], names: Sequence[Sequence[str]], ended: Sequence[bool]) -> np.ndarray:
        """The reward of each response, float64 in [0, 1]. `names`: the question's parameters; `ended`: whether the end token came."""
        return np.nanmean(np.stack(list(self.parts(prompts, responses, names, ended).values())), axis=0) if responses else np.zeros(0)

    def parts(
        self, prompts: Sequence[str], responses: Sequence[str], names: Sequence[Sequence[str]], ended: Sequence[bool]
    ) -> dict[str, np.ndarray]:
        """Each part of the reward by response; `names` is NaN where the question has no parameter."""
        if not len(prompts) == len(responses) == len(names) == len(ended):
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses, {len(names)} names, {len(ended)} ends: give one each")
        rows = [self._one(*row) for row in zip(responses, names, ended, strict=True)]
        return {part: np.array([row[index] for row in rows], np.float64) for index, part in enumerate(PARTS)}

    def _one(self, response: str, names: Sequence[str], ended: bool) -> tuple[float, float, float, float]:
        named = float(np.mean([name.lower() in tokens(response) for name in names])) if names else float("nan")
        if not response.strip():
            return 0.0, 0.0, 0.0, named
        return self.squash(log_probability(self.model, response)), distinct_3(response), ends(response, ended), named


def distinct_3(text: str) -> float:
    """Different word trigrams as a share of all; 0 for fewer than three words, which are no answer."""
    words = tokens(text)
    trigrams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def ends(text: str, ended: bool) -> float:
    """1 for an end token after a sentence's end, 0.5 for an end token alone, 0 for a text that ran out of room."""
    if not ended:
        return 0.0
    return 1.0 if text.rstrip().endswith((".", "!", "?", ".)", '."', ".'", ".`")) else 0.5
