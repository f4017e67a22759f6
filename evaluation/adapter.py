"""Our model as an lm-eval model: it answers the harness's three kinds of request, in process, without transformers.

Requests are answered in batches of like length, and a context that several continuations share (the choices of an item) is read once.
What a request scores depends on the request alone, apart from a matmul's last bits: no padding is ever attended to, and which
requests share a context does not depend on the batch size. Text is text: a literal "<|endoftext|>" in it is not the control token.

Importing this imports lm_eval: settings that it reads at import (evaluation/lm_eval_run.py, `quiet`) come first.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer
from torch import Tensor

from evaluation.passes import Each, batches
from models.generation import generate, left_pad
from models.losses import token_log_probs
from models.transformer import Cache, Transformer

Ids = tuple[int, ...]
Piece = tuple[Ids, Ids]
"""(context, continuation): both not empty, and all but the last token fit the model's context."""
Score = tuple[float, bool]
"""(log probability in nats, whether greedy decoding would have written it)."""


class Adapter(LM):
    """lm-eval's `LM` over a `Transformer` and its tokenizer.json.

    batch_tokens: positions in one forward pass, padding included, at most. seed: of sampled generations. each: evaluation/passes.py.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        end_id: int = 0,
        pad_id: int = 1,
        batch_tokens: int = 16_384,
        seed: int = 1,
        each: Each = map,
    ) -> None:
        super().__init__()
        self.model, self.end_id, self.pad_id, self.batch_tokens, self.seed = model, end_id, pad_id, batch_tokens, seed
        self.each = each
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy: the next line is a setting of the object
        self.tokenizer.encode_special_tokens = True
        self.context: int = model.shape.context
        self._device = model.model.embed_tokens.weight.device

    # --- lm-eval's three kinds of request ---------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance]) -> list[Score]:
        """log p(continuation | context) of each; an empty context is the end token, as `hf` has it where bos is eos."""
        pairs = [request.args for request in requests]
        scores = self._score(self._encode_pairs(pairs))
        for pair, score in zip(pairs, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, score)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p of each whole text after an end token; a text longer than the context in windows, every token predicted once."""
        texts = [request.args[0] for request in requests]
        totals = [score for score, _ in self._score([((self.end_id,), ids) for ids in self._encode(texts)])]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A continuation of each text, cut before its first stop string. Raises ValueError for settings that are not computed here."""
        answers: list[str] = [""] * len(requests)
        prompts = [ids or (self.end_id,) for ids in self._encode([request.args[0] for request in requests])]
        by_settings: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            by_settings[json.dumps(request.args[1], sort_keys=True)].append(i)
        for settings, rows in by_settings.items():
            for i, text in self._generate({i: prompts[i] for i in rows}, json.loads(settings)):
                answers[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return answers

    @property
    def tokenizer_name(self) -> str:
        return f"bessemer-{self.tokenizer.get_vocab_size()}"

    # --- text to ids ------------------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        return [tuple(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_pairs(self, pairs: list[tuple[str, str]]) -> list[Piece]:
        """As lm-eval splits: the context's trailing spaces go to the continuation, and the whole is encoded in one piece."""
        split = [(context[: len(context.rstrip())], context[len(context.rstrip()) :] + rest) for context, rest in pairs]
        contexts = self._encode([context for context, _ in split])
        wholes = self._encode([context + rest for context, rest in split])
        return [self._split(whole, len(context)) for whole, context in zip(wholes, contexts, strict=True)]

    def _split(self, whole: Ids, at: int) -> Piece:
        if at >= len(whole) > 0:
            at = len(whole) - 1  # the end of the context merged with all of the continuation: `hf` stops here; we score that token
        return whole[:at] or (self.end_id,), whole[at:]

    # --- log probabilities ------------------------------------------------------------------------------------------------------

    def _score(self, pairs: list[Piece]) -> list[Score]:
        pieces = [list(self._pieces(*pair)) for pair in pairs]
        found: dict[Piece, Score] = {}
        alone, shared = _by_context({piece for group in pieces for piece in group}, self.context)
        rows = batches(sorted(alone, key=_longest_first), lambda piece: (1, len(piece[0]) + len(piece[1])), self.batch_tokens)
        groups = batches(shared, lambda group: (len(group), len(group[0][0]) + max(len(c) for _, c in group)), self.batch_tokens)
        for scores in itertools.chain(self.each(self._score_alone, rows), self.each(self._score_shared, groups)):
            found |= scores
        return [(float(sum(found[p][0] for p in group)), all(found[p][1] for p in group)) for group in pieces]

    def _pieces(self, context: Ids, continuation: Ids) -> Iterator[Piece]:
        """What is scored: the context cut from the left to fit, or, of a continuation that alone does not fit, rolling windows."""
        if not continuation:
            return
        if len(continuation) <= self.context:
            room = self.context + 1 - len(continuation)
            yield context[-room:], continuation
            return
        for window in get_rolling_token_windows(list(continuation), context[-1], max_seq_len=self.context, context_len=1):
            before, scored = make_disjoint_window(window)
            yield tuple(before), tuple(scored)

    @torch.inference_mode()
    def _score_alone(self, batch: list[Piece]) -> dict[Piece, Score]:
        """Padded on the right, so plain causal attention: a real token never looks at padding."""
        width = max(len(context) + len(continuation) for context, continuation in batch) - 1
        rows = [[*context, *continuation[:-1]] for context, continuation in batch]
        hidden = self.model.hidden(self._right_pad(rows, width))
        spans = [(len(context) - 1, len(row)) for (context, _), row in zip(batch, rows, strict=True)]
        at = torch.cat([hidden[i, start:end] for i, (start, end) in enumerate(spans)])
        return self._compare(batch, at)

    @torch.inference_mode()
    def _score_shared(self, groups: list[list[Piece]]) -> dict[Piece, Score]:
        """Contexts once, padded on the left; then each one's keys and values beside each of its continuations."""
        tokens, mask = left_pad([list(group[0][0]) for group in groups], self.pad_id, self._device)
        batch = [piece for group in groups for piece in group]
        width = max(len(continuation) for _, continuation in batch) - 1
        cache = Cache(self.model.shape, len(groups), tokens.shape[1] + width, self.model.model.embed_tokens.weight)
        first = self.model.hidden(tokens, mask, cache=cache)[:, -1:]
        owner = torch.tensor([i for i, group in enumerate(groups) for _ in group], device=self._device)
        hidden = first[owner]
        if width:
            cache.keep(owner)
            rest = self._right_pad([list(continuation[:-1]) for _, continuation in batch], width)
            hidden = torch.cat(
                (hidden, self.model.hidden(rest, torch.cat((mask[owner], torch.ones_like(rest, dtype=torch.bool)), 1), cache=cache)), 1
            )
        return self._compare(batch, torch.cat([hidden[i, : len(continuation)] for i, (_, continuation) in enumerate(batch)]))

    def _right_pad(self, rows: list[list[int]], width: int) -> Tensor:
        return torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows], device=self._device)

    def _compare(self, batch: list[Piece], hidden_ND: Tensor) -> dict[Piece, Score]:
        """Scores of the continuations, whose predictions' hidden states stand one after the other in `hidden_ND`."""
        targets = torch.tensor([token for _, continuation in batch for token in continuation], device=self._device)
        log_probs, is_greedy = token_log_probs(hidden_ND, self.model.head_VD, targets)
        lengths = [len(continuation) for _, continuation in batch]
        sums = [float(part.sum()) for part in log_probs.split(lengths)]
        greedy = [bool(part.all()) for part in is_greedy.split(lengths)]
        return dict(zip(batch, zip(sums, greedy, strict=True), strict=True))

    # --- generation -------------------------------------------------------------------------------------------------------------

    def _generate(self, prompts: dict[int, Ids], settings: dict[str, Any]) -> Iterator[tuple[int, str]]:
        """(place, text) of each prompt, the longest first."""
        until, most, temperature, top_k = self._settings(settings)
        room = self.context - most
        cut = {i: list(ids[-room:]) for i, ids in prompts.items()}
        order = sorted(cut, key=lambda i: (-len(cut[i]), cut[i]))

        def is_done(response: list[int]) -> bool:
            text = self.tokenizer.decode(response)
            return any(stop in text for stop in until)

        generator = torch.Generator().manual_seed(self.seed)
        for rows in batches(order, lambda i: (1, len(cut[i]) + most), self.batch_tokens):
            generated = generate(
                self.model,
                [cut[i] for i in rows],
                most,
                self.end_id,
                self.pad_id,
                temperature,
                top_k,
                generator,
                is_done if until else None,
            )
            for i, response in zip(rows, generated.responses(self.end_id), strict=True):
                text = self.tokenizer.decode(response)
                for stop in until:
                    text = text.split(stop)[0]
                yield i, text

    def _settings(self, settings: dict[str, Any]) -> tuple[list[str], int, float, int]:
        """(stop strings, most new tokens, temperature, top_k). 256 tokens by default as `hf`, half the context where that is less."""
        known = dict(normalize_gen_kwargs(settings, min(256, self.context // 2)))
        until, most, do_sample = known.pop("until"), int(known.pop("max_gen_toks")), known.pop("do_sample", False)
        asked = known.pop("temperature", None)
        temperature = float(1.0 if asked is None else asked) if do_sample else 0.0
        top_k = int(known.pop("top_k", 0) or 0)
        unknown = {key: value for key, value in known.items() if (key, value) not in (("top_p", 1.0), ("num_beams", 1))}
        if unknown:
            raise ValueError(
                f"generation settings {unknown} are not computed here; until, max_gen_toks, do_sample, temperature and top_k are"
            )
        if most >= self.context:
            raise ValueError(f"max_gen_toks {most} leaves no room for a prompt in a context of {self.context}; ask for fewer")
        return [stop for stop in until if stop], most, temperature, top_k


def _longest_first(piece: Piece) -> tuple[int, Piece]:
    """Like lengths beside each other, and what memory runs out on comes at the start."""
    return -len(piece[0]) - len(piece[1]), piece


def _by_context(pieces: set[Piece], context: int) -> tuple[list[Piece], list[list[Piece]]]:
    """(pieces to score alone, groups of pieces that have their context in common), the groups longest first."""
    by_context: dict[Ids, list[Piece]] = defaultdict(list)
    for piece in sorted(pieces):
        by_context[piece[0]].append(piece)
    alone = [piece for group in by_context.values() if len(group) == 1 for piece in group]
    shared = [group for group in by_context.values() if len(group) > 1]
    return alone, sorted(shared, key=lambda group: _longest_first(max(group, key=lambda piece: len(piece[1]))))
