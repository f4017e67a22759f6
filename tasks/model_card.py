"""The exported folder's README.md: what the model is, what it was made of, what was measured, and what it cannot do.

Only figures that artifacts hold; no date and no place, so the same model has the same card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from contract.ledger import Ledger
from evaluation.config_export import ExportConfig
from models.shapes import Shape
from training.config import METHODS

LANGUAGE_MODEL = (
    "Documents were chosen by language with fastText's language identification model lid.176 (Joulin et al. 2016), "
    "which is licensed [CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/). It is not part of this folder."
)
LEARNED = {"pretrain": "pretrained only: it continues text and follows no instructions"} | {
    name: method.learned for name, method in METHODS.items() if method.learned
}
MOST_LICENSES = 20


@dataclass(frozen=True)
class Facts:
    """What the card tells, from the manifests of the stages."""

    shape: Shape
    method: str
    """The stage that made the weights."""
    language: str | None
    read: Ledger
    """Of ingest."""
    mixed: Ledger
    """Of mix."""
    domains: dict[str, Any]
    """By domain, the plan's row: tokens available, got, epochs."""
    documents: dict[str, int]
    """Training documents by domain."""
    licenses: dict[str, int]
    """Training documents by the licence that their source states."""
    evaluation: dict[str, Any]
    tolerance: float
    """Logits of the folder are within it of the model's, on the prompts that were tried. The bound, not what was found: that differs
    by machine, and the card is content."""
    prompts: int


def model_card(config: ExportConfig, facts: Facts) -> str:
    front: dict[str, Any] = {"license": config.license, "library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts.language:
        front["language"] = [facts.language]
    sections = (_model(config, facts), _use(config, facts), _data(facts), _licenses(facts), _figures(facts), _limits(facts))
    return f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n\n" + "\n\n".join(sections) + "\n"


def _model(config: ExportConfig, facts: Facts) -> str:
    shape = facts.shape
    rows = [
        ("architecture", "Llama (RoPE, RMSNorm, SwiGLU, grouped-query attention)"),
        ("parameters", f"{shape.num_parameters():,}"),
        ("layers, width, heads, key-value heads", f"{shape.num_layers}, {shape.hidden_size}, {shape.num_heads}, {shape.num_kv_heads}"),
        ("context", f"{shape.context:,} tokens"),
        ("vocabulary", f"{shape.vocab_size:,}, byte-level BPE"),
        ("training", LEARNED.get(facts.method, facts.method)),
    ]
    return f"# {config.name}\n\n{config.description}\n\n" + _table(("", ""), rows)


def _use(config: ExportConfig, facts: Facts) -> str:
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'folder = "{config.name}"  # where this folder lies\n'
        "tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)\n"
        'text = tokenizer("The first thing that one notices is", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**text, max_new_tokens=40)[0]))"
    )
    return (
        f"## Use\n\n```python\n{code}\n```\n\n"
        f"Before it was published this folder was loaded by transformers in float32: its logits were the trained model's to "
        f"{facts.tolerance:.0e}, and its greedy continuations of {facts.prompts} prompts were the trained model's, ties within that "
        "tolerance aside.\nPrompt and response together must fit the context. A control token written out in a "
        "text (`<|endoftext|>`) is read as text, as in training."
    )


def _data(facts: Facts) -> str:
    lines = []
    if (read := facts.read.documents) is not None:
        lines.append(f"{read.out:,} documents were read, {read.quarantined:,} more could not be and were kept aside.")
    if (documents := facts.mixed.documents) is not None:
        lines.append(f"{documents.came_in:,} were left after deduplication and selection, test and validation documents included.")
    if (tokens := facts.mixed.tokens) is not None:
        lines.append(f"They hold {tokens.came_in:,} tokens; the packed blocks have {tokens.out:,} to predict, validation included.")
    names = sorted({*facts.domains, *facts.documents})
    rows = [_domain(name, facts.domains.get(name, {}), facts.documents.get(name, 0)) for name in names]
    head = ("domain", "training documents", "tokens there", "tokens trained on", "epochs")
    return "## Data\n\n" + "\n".join(lines) + "\n\n" + _table(head, rows)


def _domain(name: str, row: dict[str, Any], documents: int) -> tuple[str, ...]:
    return name, f"{documents:,}", f"{row.get('available', 0):,}", f"{row.get('got', 0):,}", f"{row.get('epochs', 0):.2f}"


def _licenses(facts: Facts) -> str:
    shown = list(facts.licenses.items())[:MOST_LICENSES]
    rest = sum(facts.licenses.values()) - sum(count for _, count in shown)
    rows = [(_cell(name), f"{count:,}") for name, count in shown] + ([("others", f"{rest:,}")] if rest else [])
    text = "## Licences\n\nOf the training documents, as their sources state them; nobody checked these statements.\n\n"
    return text + _table(("licence", "documents"), rows) + (f"\n\n{LANGUAGE_MODEL}" if facts.language else "")


def _figures(facts: Facts) -> str:
    if not facts.evaluation:
        return "## Figures\n\nNothing was measured."
    parts = ["## Figures", "On held-out text: no document of the same group was trained on. Where an interval is given, it is of 95 %."]
    loose = {key: value for key, value in facts.evaluation.items() if not isinstance(value, dict) or _is_interval(value)}
    if rows := _leaves(loose):
        parts.append(_table(("figure", "value"), rows))
    for key, value in sorted(facts.evaluation.items()):
        if key not in loose and (rows := _leaves(value)):
            parts += [f"### {key.replace('_', ' ')}", _table(("figure", "value"), rows)]
    return "\n\n".join(parts)


def _is_interval(value: Any) -> bool:
    return isinstance(value, dict) and {"mean", "low", "high"} <= value.keys()


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(name, value) of every figure below `value`; lists, which are samples and curves, are left to the report."""
    name = " / ".join(path)
    if _is_interval(value):
        return [(name, f"{_number(value['mean'])} ({_number(value['low'])} to {_number(value['high'])})")]
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*path, key.replace("_", " ")))]
    if value is None or isinstance(value, list):
        return []
    return [(name, _number(value))]


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _cell(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _limits(facts: Facts) -> str:
    millions = facts.shape.num_parameters() / 1e6
    language = f"Its text was chosen to be in the language `{facts.language}`" if facts.language else "Its text was not chosen by language"
    limits = [
        f"It has {millions:,.1f} million parameters and saw the tokens above, no more: it states falsehoods fluently. Do not rely on it.",
        f"It was never trained beyond {facts.shape.context:,} tokens; longer inputs give nonsense.",
        f"{language}; what was rare in it, the model does badly.",
        "Personal data (mail addresses, telephone and account numbers) was searched for by patterns, unwanted words by a lexicon: "
        "both miss some. What it writes can offend, and can repeat its training text.",
        "It was not examined for safety or bias, and its figures are of held-out text from the same sources, not of other text.",
    ]
    if facts.method not in ("pretrain", "sft"):
        limits.append("Its preferences are those of the preference data alone; it is not safer for them.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Licences come from strangers' metadata: one line, and no mark that ends a cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")[:120]
