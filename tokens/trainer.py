"""Byte-level BPE by the `tokenizers` library, and the sample of text that it learns from."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tokens.config import TokenizerConfig

END, PAD = "<|endoftext|>", "<|pad|>"
END_ID, PAD_ID = 0, 1

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Meta's published pattern, to the letter: libraries recognise it by comparing the string."""


def train(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """tokenizer.json of a vocabulary learned from `texts`. Their order does not matter: only counts of words enter.

    A text too small for `vocab_size` gives fewer entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(config.pattern)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END, PAD],  # these become ids 0 and 1
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode()


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def head(text: str, num_bytes: int) -> str:
    """The beginning of `text`, at most `num_bytes` of UTF-8, cut between characters."""
    return text if len(text) * 4 <= num_bytes else text.encode()[:num_bytes].decode(errors="ignore")
