"""export: the chosen model as a folder that transformers loads, held to our own model before it is published."""

from collections import Counter
from typing import Any

from tokenizers import Tokenizer

from contract.config import Frozen
from contract.errors import InputError
from contract.ledger import Ledger
from engine.stage import Output, stage
from evaluation.claims import MAX_LOGIT_DIFFERENCE
from evaluation.config_export import ExportConfig
from store.artifact import Artifact
from tasks.model_card import Facts, model_card
from tokens.trainer import END, END_ID, PAD, PAD_ID
from training.config import POLICIES

PROMPT_TOKENS = 24

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
    # Here, not above: they load torch and transformers, for which a run whose export is cached would wait too.
    from models.conversion import load_folder, save_folder, save_tokenizer
    from models.transformer import Transformer
    from tasks.export_check import verify

    ours = load_folder(model.folder("model"))
    if not isinstance(ours, Transformer):
        *names, last = "pretrain", *POLICIES
        raise InputError(f"{model.where()} holds a scalar model, not a language model; set align.export to {', '.join(names)} or {last}")
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
