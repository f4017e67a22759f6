"""What is evaluated and how much of it. Everything here changes the figures, so all of it is identity."""

from pydantic import Field, field_validator

from contract.config import Frozen, Seed
from store.address import address
from store.config import usable_uri

CONTINUATION = "continuation"
"""The name of the local task; no named task may take it."""


class NamedTask(Frozen):
    """A multiple-choice task from a JSON Lines file: {"query": text, "choices": [text, ...], "gold": index} a line."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_]*$")
    """The task's name in the results."""
    uri: str = Field(min_length=1)
    """The file: a path, file:// or s3://; .gz and .zst are read too."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first so many lines of it; all when unset."""

    @field_validator("uri")
    @classmethod
    def _usable(cls, value: str) -> str:
        address(usable_uri(value))
        return value


class ItemsConfig(Frozen):
    """The local multiple-choice items: which continues the document, its own next piece or one of another document?"""

    seed: Seed = 1
    """Chooses documents, places and the order of the choices."""
    items: int = Field(default=600, ge=0)
    """Local items at most, in sets of as many as an item has choices. 600 of two a document give the 500 from 250 documents that a
    2-standard-error claim needs (issue 8)."""
    items_per_document: int = Field(default=2, ge=1)
    """Windows of one document are correlated, so intervals are clustered by document and more documents help more than more windows."""
    context_characters: int = Field(default=300, ge=1)
    """Text that is given; 96 tokens of a 4096-token vocabulary in the trial that reached 45 % (laptop.md, 6)."""
    continuation_characters: int = Field(default=100, ge=8)
    """Text of each choice; 32 tokens in the same trial."""
    choices: int = Field(default=4, ge=2, le=16)
    """The true piece and so many less one from other documents."""
    tasks: tuple[NamedTask, ...] = ()
    """Named tasks to score beside the local one."""

    @field_validator("tasks")
    @classmethod
    def names_differ(cls, tasks: tuple[NamedTask, ...]) -> tuple[NamedTask, ...]:
        names = [task.name for task in tasks]
        twice = sorted({name for name in names if names.count(name) > 1 or name == CONTINUATION})
        if twice:
            raise ValueError(
                f"evaluate.items.tasks: the name {twice[0]} is taken (the local task is {CONTINUATION}); give each task its own"
            )
        return tasks


class EvaluateConfig(Frozen):
    """Bits per byte, multiple choice, gold reward and reward-model accuracy: how much of each, and with which seed."""

    items: ItemsConfig = ItemsConfig()
    validation_tokens: int | None = Field(default=100_000, ge=1)
    """Validation tokens scored in each domain, at most; whole documents in the order of their ids (hashes: a fair sample). All if unset."""
    scored: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Models that read text and answer items; every one that there is, if unset. Answers to prompts are compared of all in any case."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Share of a window that repeats the one before, as context only. 0.5: tokens of long documents see half a context at least."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens in one forward pass. In the identity since it can move the last bits."""
    gold_prompts: int = Field(default=256, ge=2)
    """Test prompts for the gold reward; at least 200 for the claim of issue 8."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest response to a test prompt (laptop.md, 5)."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """1: the distribution that was trained, which is what KL is measured on."""
    top_k: int = Field(default=0, ge=0)
    """0: no cut."""
    seed: Seed = 1
    """Of the sampled responses. The same for every model, so that before and after are paired as closely as they can be."""
    samples: int = Field(default=8, ge=0)
    """Responses kept for reading, from before and after alignment."""
    baseline_order: int = Field(default=5, ge=2, le=6)
    """Order of the KenLM baseline."""
    baseline_tokens: int = Field(default=20_000_000, ge=1)
    """Training tokens that bigram and KenLM are made of, at most; fewer than the model saw is said beside their figures."""
    baselines: bool = True
    """Bigram, gzip -9 and KenLM beside the model, on the same bytes."""
