"""Settings of the signals, of the rules that read them, and of the gates.

A signal's own settings decide what is measured; `select` decides what that means. So a changed threshold re-runs no measurement.
"""

from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, field_validator, model_validator

from contract.config import Fraction, Frozen
from contract.schemas import DOMAINS

LANGUAGES = (  # noqa: SIM905 (a list would be a page of quotation marks)
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq dsb dty "
    "dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka "
    "kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne "
    "new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg "
    "th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh "
).split()
"""What fastText's lid.176 tells apart."""
NonNegative = Annotated[float, Field(ge=0)]


class RulesConfig(Frozen):
    """What the heuristics count. Their bounds are in `select`."""

    unwanted_phrases: tuple[str, ...] = (
        "click here to subscribe",
        "subscribe to our newsletter",
        "sign up for our newsletter",
        "accept all cookies",
        "we use cookies",
        "enable javascript",
        "javascript is disabled",
        "terms of use | privacy policy",
        "all rights reserved. powered by",
        "lorem ipsum",
    )
    """Phrases of page furniture, in any case and with any white space between the words (C4's list, and the usual banners)."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that prose of the target language cannot do without (Gopher, table A1, for English)."""

    @field_validator("unwanted_phrases", "stop_words")
    @classmethod
    def _not_blank(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not phrase.strip() for phrase in value):
            raise ValueError("holds an empty phrase, which every document would match; leave it out")
        return value


class LanguageConfig(Frozen):
    target: str = "en"
    """The language to keep, as fastText's lid.176 names it (ISO 639)."""
    max_chars: PositiveInt = 2000
    """How much prose of a document is looked at; the label of running text settles within some hundred characters."""

    @field_validator("target")
    @classmethod
    def _can_be_told(cls, value: str) -> str:
        if value not in LANGUAGES:
            raise ValueError(f"{value[:20]!r} is no language that lid.176 knows; codes are such as en, de, zh, als")
        return value


class PerplexityConfig(Frozen):
    order: int = Field(default=5, ge=2, le=6)
    """Words of an n-gram of the KenLM model (CCNet has 5; 6 is what our build of KenLM can hold)."""
    max_train_bytes: PositiveInt = 32 * 2**20
    """Trusted text that the model is trained on, at most; an ARPA file takes about ten times that on disk."""
    max_chars: PositiveInt = 50_000
    """How much of a document is scored."""


class ToxicityConfig(Frozen):
    model: str | None = Field(default=None, min_length=1)
    """A fastText classifier (.bin or .ftz; path, file:// or s3://) whose probability is used beside the lexicon."""
    labels: tuple[str, ...] = ("toxic", "nsfw", "1")
    """The model's labels, without `__label__`, that mean toxic."""
    exempt: tuple[str, ...] = (
        # Commoner in abstracts, novels, C4 and Python's library than in 6,000 toxic comments (rate × 4; our count, 2026-11-21).
        *("autoerotic", "bondage", "dummy", "enlargement", "facial", "fanny", "fingering", "gai", "glans", "gonad", "guido", "herpes"),
        *("hiv", "hymen", "jerked", "loin", "meth", "murder", "nads", "nob", "oral", "orally", "organ", "ovary", "pcp", "penetrate"),
        *("penetration", "penile", "pms", "pubic", "pubis", "rectal", "rectum", "revue", "rum", "screw", "scrotum", "seaman", "seamen"),
        *("slave", "slope", "snuff", "strip", "stroke", "testes", "testicle", "testis", "thrust", "tramp", "urine", "vodka", "vomit"),
        *("wang", "xx", "xxx", "yury"),
        # Who people are and what they believe is no insult.
        *("gay", "gays", "god", "homosexual", "lesbian", "lesbians", "sex", "sexual", "transsexual"),
    )
    """Words of the lexicon that are not counted."""

    @model_validator(mode="after")
    def _model_has_labels(self) -> "ToxicityConfig":
        if self.model is not None and not self.labels:
            raise ValueError("model has an effect with labels only; name those of its labels that mean toxic, or leave it out")
        return self


PiiLabel = Literal["EMAIL", "IBAN", "CREDIT_CARD", "SSN", "IP", "PHONE"]


class PiiConfig(Frozen):
    labels: tuple[PiiLabel, ...] = ("EMAIL", "IBAN", "CREDIT_CARD", "SSN", "IP", "PHONE")
    """What is looked for, in this order of right where two meet."""
    action: Literal["redact", "drop"] = "redact"
    """Put `<EMAIL>` and the like in their place, or drop the documents that hold any."""


class ContaminationConfig(Frozen):
    ngram_words: int = Field(default=13, ge=4, le=64)
    """Words in a row that count as overlap with an item that will be scored (GPT-3, appendix C)."""
    max_overlap_fraction: Fraction = 0.3
    """A document with more of its words in such overlaps is dropped, else they are cut out. Ours: what remains is then still most of it."""
    boilerplate_documents: PositiveInt = 10
    """An n-gram in more documents than this is boilerplate: always cut, never a reason to drop (GPT-3, appendix C)."""


class RuleSet(Frozen):
    """Bounds of what is kept; null leaves a rule out. Where not said otherwise: Gopher (Rae et al. 2021), table A1."""

    min_language_probability: Fraction | None = 0.7
    """Probability of `language.target`."""
    min_words: NonNegativeInt | None = 50
    max_punctuation_fraction: Fraction | None = 0.9
    """Share of the characters other than white space that are punctuation or symbols. Ours: only line noise exceeds it."""
    max_unwanted_phrases: NonNegativeInt | None = 0
    """Occurrences of `rules.unwanted_phrases`."""
    min_mean_word_chars: NonNegative | None = 3
    max_mean_word_chars: NonNegative | None = 10
    max_symbol_word_ratio: NonNegative | None = 0.1
    """Hash signs and ellipses to words."""
    min_alpha_word_fraction: Fraction | None = 0.8
    """Share of the words that hold a letter."""
    min_stop_words: NonNegativeInt | None = 2
    """Occurrences of `rules.stop_words`."""
    max_bullet_line_fraction: Fraction | None = 0.9
    max_ellipsis_line_fraction: Fraction | None = 0.3
    max_duplicate_line_fraction: Fraction | None = 0.3
    max_duplicate_line_char_fraction: Fraction | None = 0.2
    max_duplicate_paragraph_fraction: Fraction | None = 0.3
    max_duplicate_paragraph_char_fraction: Fraction | None = 0.2
    max_top_2gram_char_fraction: Fraction | None = 0.20
    max_top_3gram_char_fraction: Fraction | None = 0.18
    max_top_4gram_char_fraction: Fraction | None = 0.16
    max_duplicate_5gram_char_fraction: Fraction | None = 0.15
    max_duplicate_6gram_char_fraction: Fraction | None = 0.14
    max_duplicate_7gram_char_fraction: Fraction | None = 0.13
    max_duplicate_8gram_char_fraction: Fraction | None = 0.12
    max_duplicate_9gram_char_fraction: Fraction | None = 0.11
    max_duplicate_10gram_char_fraction: Fraction | None = 0.10
    max_toxic_words_per_1000: NonNegative | None = 10
    """Words of the lexicon in a thousand.

    Ours: none of 211 C4 pages and 1 % of medical abstracts exceed it, 84 % of offensive tweets do (2026-11-21).
    """
    max_toxic_probability: Fraction | None = 0.5
    """Only with `toxicity.model`."""
    perplexity_middle: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Share kept in the middle of the perplexities of a (language, domain)."""


Bounds = dict[str, int | float | None]

# Why a domain differs from RuleSet's defaults, which were made for web pages:
_REPETITION = tuple(name for name in RuleSet.model_fields if "duplicate_" in name or "top_" in name)
_LOOSE: Bounds = {name: None for name in _REPETITION if "line" in name} | {name: 0.5 for name in _REPETITION if "gram" in name}
DOMAIN_BOUNDS: dict[str, Bounds] = {
    # Programs are in no natural language, repeat their lines by nature, and a string in one may hold any phrase.
    "code": _LOOSE
    | {
        "min_language_probability": None,
        "min_words": 10,
        "max_unwanted_phrases": None,
        "min_mean_word_chars": 2,
        "max_mean_word_chars": 30,
        "max_symbol_word_ratio": None,
        "min_alpha_word_fraction": 0.4,
        "min_stop_words": None,
        "max_ellipsis_line_fraction": None,
        "max_duplicate_paragraph_fraction": 0.6,
        "max_duplicate_paragraph_char_fraction": 0.6,
        "perplexity_middle": None,  # the trusted text is prose
    },
    # Manuals are lists, tables and signatures, with headings that come again.
    # Names of commands and options belong to no language: English manual pages get 0.65 to 0.7 (2026-11-21), foreign text under 0.1.
    "reference": _LOOSE
    | {
        "min_language_probability": 0.5,
        "min_words": 20,
        "min_alpha_word_fraction": 0.6,
        "max_symbol_word_ratio": 0.3,
        "max_mean_word_chars": 15,
    },
    # An answer may be one sentence: shares over a dozen words say nothing, and fastText is unsure of them.
    "conversation": _LOOSE
    | {
        "min_language_probability": 0.3,
        "min_words": 3,
        "min_stop_words": None,
        "min_mean_word_chars": 2,
        "max_mean_word_chars": 20,
        "min_alpha_word_fraction": 0.5,
        "max_symbol_word_ratio": 0.5,
    },
    # LaTeX and references: more numbers and marks than a web page.
    "academic": {"min_alpha_word_fraction": 0.6, "max_mean_word_chars": 12},
    # Plays and verse repeat short lines (who speaks).
    "books": {"max_duplicate_line_fraction": 0.5, "max_duplicate_line_char_fraction": 0.3},
}


class SelectConfig(Frozen):
    """One rule set a domain: `default`, with what `domains` says otherwise."""

    default: RuleSet = RuleSet()
    domains: dict[str, Bounds] = DOMAIN_BOUNDS
    """Bounds that differ in a domain, by name: `filters.select.domains.web.min_words: 30`; null leaves the rule out there."""
    min_perplexity_group: PositiveInt = 50
    """A (language, domain) with fewer train documents takes its domain's percentiles; a domain with fewer has none (ours: 5 a tail)."""

    @field_validator("domains", mode="before")
    @classmethod
    def _over_our_own(cls, value: object) -> object:
        """What is given goes over the built-in bounds, domain by domain and rule by rule."""
        if not isinstance(value, dict):
            return value
        merged = {domain: dict(bounds) for domain, bounds in DOMAIN_BOUNDS.items()}
        for domain, bounds in value.items():
            if domain not in DOMAINS:
                raise ValueError(f"knows no domain {domain}; {nearest(str(domain), DOMAINS)}")
            if not isinstance(bounds, dict):
                raise ValueError(f"{domain} is to be a table of bounds, such as {{min_words: 30}}")
            for name in bounds:
                if name not in RuleSet.model_fields:
                    raise ValueError(f"{domain} has no rule {name}; {nearest(str(name), tuple(RuleSet.model_fields))}")
            merged[domain] = merged.get(domain, {}) | bounds
        return merged

    @model_validator(mode="after")
    def _words_can_be(self) -> "SelectConfig":
        for domain, rules in self.rules().items():
            low, high = rules.min_mean_word_chars, rules.max_mean_word_chars
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_mean_word_chars {low:g} is above max_mean_word_chars {high:g} in the domain {domain}: no text is so")
        return self

    @field_validator("domains")
    @classmethod
    def _within_bounds(cls, value: dict[str, Bounds]) -> dict[str, Bounds]:
        for bounds in value.values():
            RuleSet.model_validate(bounds)
        return value

    def rules(self) -> dict[str, RuleSet]:
        """The rule set of every domain, in full."""
        base = self.default.model_dump()
        return {domain: RuleSet.model_validate(base | self.domains.get(domain, {})) for domain in DOMAINS}


def nearest(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


class SignalBounds(Frozen):
    """What documents must keep of a signal of your own."""

    bounds: Bounds = Field(default_factory=dict)
    """Such as max_mark_fraction: 0.02, by the signal's columns."""
    domains: dict[str, Bounds] = Field(default_factory=dict)
    """Bounds that differ in a domain; null leaves one out there."""

    def by_domain(self) -> dict[str, Bounds]:
        return {domain: {**self.bounds, **self.domains.get(domain, {})} for domain in DOMAINS}


class SignalConfig(SignalBounds):
    """A signal of your own (filters/signals.py)."""

    use: str = Field(min_length=1)
    """`package.module:OBJECT`, or the name of an entry point in the group bessemer.signals."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """What its `measure` is given."""


class FiltersConfig(Frozen):
    rules: RulesConfig = RulesConfig()
    language: LanguageConfig = LanguageConfig()
    perplexity: PerplexityConfig = PerplexityConfig()
    toxicity: ToxicityConfig = ToxicityConfig()
    pii: PiiConfig = PiiConfig()
    contamination: ContaminationConfig = ContaminationConfig()
    select: SelectConfig = SelectConfig()
    signals: tuple[SignalConfig, ...] = ()
    """Signals of your own."""

    @model_validator(mode="after")
    def _stop_words_are_named(self) -> "FiltersConfig":
        asking = [domain for domain, rules in self.select.rules().items() if rules.min_stop_words]
        if asking and not self.rules.stop_words:
            raise ValueError(f"rules.stop_words is empty, and min_stop_words asks for some in {', '.join(asking)}; set that to null")
        return self


class GatesConfig(Frozen):
    """Bounds on statistics, far from what a healthy corpus shows: a gate stops the absurd, rules do the sorting. All ours."""

    min_documents: NonNegativeInt = 1
    """After ingest."""
    max_quarantined_fraction: Fraction = 0.1
    """After ingest: records that could not be read."""
    max_empty_fraction: Fraction = 0.05
    """After ingest: documents without a character other than white space, in any domain."""
    min_train_documents: NonNegativeInt = 1
    """After select."""
    min_kept_fraction: Fraction = 0.02
    """After select: of the documents that deduplication kept, over all domains."""
    max_reason_fraction: Fraction = 0.9
    """After select: of those documents, dropped for any one reason; more means that a rule does not fit the text."""
    min_mean_language_probability: Fraction = 0.7
    """After select: of what is kept for training in domains with a language rule, mean probability of the target language."""
    max_toxic_words_per_1000: NonNegative = 5
    """After select: mean over what is kept for training, in any domain."""
    min_blocks: NonNegativeInt = 1
    """After mix."""
    max_share_deviation: Fraction = 0.5
    """After mix: a domain's share of the tokens, off from the wanted one; short domains are made up for by others."""
