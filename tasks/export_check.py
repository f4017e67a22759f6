"""The exported folder, as a stranger loads it, held against our own model."""

import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from contract.errors import IntegrityError
from evaluation.claims import MAX_LOGIT_DIFFERENCE
from models.generation import generate
from models.transformer import Transformer
from tokens.trainer import END_ID, PAD_ID

NEW_TOKENS, LOGIT_PROMPTS = 32, 8


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
