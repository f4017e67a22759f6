"""export: the chosen model as a folder that transformers loads, held to our own model before it is published."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from contract.config import Frozen
from contract.errors import InputError, IntegrityError
from contract.ledger import Ledger
from evaluation.config_export import ExportConfig
from models.conversion import load_folder, save_folder, save_tokenizer
from models.generation import generate
from models.transformer import Transformer
from store.artifact import Artifact
from tasks.model_card import Facts, model_card
from tasks.stage import Output, stage
from tokens.trainer import END, END_ID, PAD, PAD_ID

MAX_LOGIT_DIFFERENCE = 1e-4
"""In fp32. Two correct implementations differ by the order of their sums: 1e-6 to 1e-5 at the sizes tried."""
PROMPT_TOKENS, NEW_TOKENS, LOGIT_PROMPTS = 24, 32, 8

FIXED_TEXTS = (
    "The first thing that one notices is",
    "def read_lines(path):\n    ",
    "  Two spaces before, a tab\tand a line\n\nbetween:",
    f"A literal {END} and {PAD} are text here",
    "Größe, naïveté, 日本語 and 👩‍👩‍👧",
    "1, 2, 3, 4,",
)
"""Compared besides the corpus's own: white space, code, literal control tokens and text beyond ASCII."""


class Exporting(Frozen):
    export: ExportConfig
    language: str | None
    """What the language rule keeps; None where no domain has one, and then the card does not name fastText's model."""


def _slice(config: Any) -> Exporting:
    has_rule = any(rules.min_language_probability is not None for rules in config.filters.select.rules().values())
    return Exporting(export=config.export, language=config.filters.language.target if has_rule else None)


@stage(version=1, config=_slice)
def export(
    model: Artifact, tokenizer: Artifact, documents: Artifact, blocks: Artifact, evaluation: Artifact, config: Exporting, out: Output
) -> Ledger:
    """The folder export/: weights, tokenizer, generation settings and a model card.

    It is loaded again by transformers, in fp32: tokens, logits and greedy continuations must be our own model's.
    Raises IntegrityError where they are not (nothing is published), InputError for a model that is no language model.
    """
    ours = _language_model(model)
    tokenizer_json = tokenizer.read("tokenizer.json")
    folder = out.scratch / "export"
    save_folder(ours, folder, END_ID, PAD_ID)
    save_tokenizer(tokenizer_json, folder, ours.shape.context, END_ID, PAD_ID)
    out.figures |= verify(ours, folder, prompts(tokenizer_json, blocks, config.export.prompts))
    out.figures |= {"parameters": ours.shape.num_parameters(), "exported": model.stage}
    documents_by_domain, licenses = _census(blocks)
    facts = Facts(
        shape=ours.shape,
        method=model.stage,
        language=config.language,
        read=documents.ledger,
        mixed=blocks.ledger,
        domains=blocks.figures.get("domains", {}),
        documents=documents_by_domain,
        licenses=licenses,
        evaluation=evaluation.figures,
        tolerance=MAX_LOGIT_DIFFERENCE,
        prompts=out.figures["greedy_prompts"],
    )
    (folder / "README.md").write_text(model_card(config.export, facts))
    for path in sorted(folder.iterdir()):
        out.file(f"export/{path.name}", path)
    return Ledger()


def _language_model(model: Artifact) -> Transformer:
    loaded = load_folder(model.folder("model"))
    if not isinstance(loaded, Transformer):
        raise InputError(f"{model.where()} holds a scalar model, not a language model; set align.export to pretrain, sft, ppo or dpo")
    return loaded


def prompts(tokenizer_json: bytes, blocks: Artifact, most: int) -> list[str]:
    """The fixed texts, then beginnings of validation blocks: text of the kind that the model was made for."""
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    texts = list(FIXED_TEXTS)
    if "validation.parquet" in blocks.names("validation"):
        column = blocks.table("validation.parquet", ["tokens"])["tokens"]
        step = max(1, len(column) // most)  # spread over the domains, which lie one after the other
        texts += [tokenizer.decode(column[i].as_py()[1 : 1 + PROMPT_TOKENS]) for i in range(0, len(column), step)]
    return [text for text in dict.fromkeys(texts) if text][:most]


def _census(blocks: Artifact) -> tuple[dict[str, int], dict[str, int]]:
    """Training documents by domain and by licence, counted in the curated text."""
    domains: Counter[str] = Counter()
    licenses: Counter[str] = Counter()
    for name in blocks.names("curated/"):
        table = blocks.table(name, ["domain", "license", "split"])
        for split, domain, license in zip(*(table[key].to_pylist() for key in ("split", "domain", "license")), strict=True):
            if split == "train":
                domains[domain] += 1
                licenses[license or "not stated"] += 1
    return dict(sorted(domains.items())), dict(sorted(licenses.items(), key=lambda item: (-item[1], item[0])))


# --- the folder, as a stranger loads it, against our own model -------------------------------------------------------------------


@torch.no_grad()
def verify(model: Transformer, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Load `folder` with transformers and compare. Returns the figures; raises IntegrityError that names what differs."""
    llama, auto_tokenizer = load_by_transformers(folder)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.encode_special_tokens = True
    ids = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    _same_ids(auto_tokenizer, texts, ids)
    fitting = [i for i, row in enumerate(ids) if 0 < len(row) < model.shape.context]
    difference = max(_logit_difference(model, llama, ids[i]) for i in fitting[:LOGIT_PROMPTS])
    if not difference <= MAX_LOGIT_DIFFERENCE:  # a NaN too
        raise IntegrityError(
            f"the exported folder's logits differ from the model's by {difference:.2g} on {len(fitting[:LOGIT_PROMPTS])} prompts; at most "
            f"{MAX_LOGIT_DIFFERENCE:.0e} is allowed. Nothing was published; this is a fault in the conversion, please report it."
        )
    return {"max_logit_difference": difference} | same_greedy(model, llama, auto_tokenizer, [(texts[i], ids[i]) for i in fitting])


def load_by_transformers(folder: Path) -> tuple[Any, Any]:
    """(model in fp32, tokenizer), quietly."""
    # Here, not above: it takes seconds, which a run whose export is cached would pay too.
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return llama, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _same_ids(auto_tokenizer: Any, texts: list[str], ids: list[list[int]]) -> None:
    for text, wanted in zip(texts, ids, strict=True):
        encoded = auto_tokenizer(text)
        if list(encoded) != ["input_ids", "attention_mask"] or encoded["input_ids"] != wanted:
            raise IntegrityError(
                f"the exported tokenizer makes {list(encoded)} of {text[:60]!r}, input_ids {encoded['input_ids'][:8]}; training saw "
                f"{wanted[:8]}. Nothing was published; this is a fault in the conversion, please report it."
            )


def _logit_difference(model: Transformer, llama: Any, ids: list[int]) -> float:
    tokens = torch.tensor([ids])
    return float((model(tokens) - llama(tokens).logits).abs().max())


@torch.no_grad()
def same_greedy(model: Transformer, llama: Any, auto_tokenizer: Any, prompts: list[tuple[str, list[int]]]) -> dict[str, Any]:
    """Continuations as a user makes them, `generate(**tokenizer(texts))` in one padded batch, against ours.

    Two rows may part where the two best logits of ours lie within the tolerance: counted, as either is then right.
    """
    new_tokens = min(NEW_TOKENS, model.shape.context - max(len(ids) for _, ids in prompts))
    batch = auto_tokenizer([text for text, _ in prompts], return_tensors="pt", padding=True)
    made = llama.generate(**batch, max_new_tokens=new_tokens, do_sample=False)[:, batch["input_ids"].shape[1] :].tolist()
    ours = generate(model, [ids for _, ids in prompts], new_tokens, END_ID, PAD_ID, temperature=0)
    ties = 0
    for (text, ids), theirs, tokens, mask in zip(prompts, made, ours.tokens_BR, ours.mask_BR, strict=True):
        own = tokens[mask].tolist()
        if own == theirs[: len(own)]:
            continue
        at = next(i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b)
        logits = model(torch.tensor([ids + own[:at]]))[0, -1]
        if float(logits[own[at]] - logits[theirs[at]]) > MAX_LOGIT_DIFFERENCE:
            raise IntegrityError(
                f"after {text[:60]!r} the exported folder writes {theirs[: at + 1]}, the model {own[: at + 1]}. "
                "Nothing was published; this is a fault in the conversion, please report it."
            )
        ties += 1
    return {"greedy_prompts": len(prompts), "greedy_tokens": int(ours.mask_BR.sum()), "greedy_ties": ties}
