"""Scores of a model: loss on a corpus, and minimal pairs.

Evaluating is pure: it draws no random number, leaves the model in the mode it found, and gives the same figure twice.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundry_core.corpus.reader import Corpus
from foundry_core.data.batches import Batches, Collator
from foundry_core.data.collators import get_data_collator
from foundry_core.data.order import SampleOrder
from foundry_core.data.preparation import cut_rows
from foundry_core.data.rows import Rows
from foundry_core.data.token_file import TokenFile, prepare_tokens
from foundry_core.errors import DataError, UsageError
from foundry_core.models.base import IGNORED, BaseLanguageModel
from foundry_core.models.folder import undisturbed_random_state
from foundry_core.registry.hookspecs import EvaluationReport
from foundry_core.storage.files import scratch_reported
from foundry_core.tokenization.encoding import separator_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PAIRS_PER_BATCH = 64


@contextmanager
def _evaluating(model: BaseLanguageModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A collated batch on the device; the attention mask is left out when no row is padded.

    Without a mask the attention kernels need no mask tensor, and the result is the same.
    """
    if bool(batch["attention_mask"].all()):
        batch = {key: value for key, value in batch.items() if key != "attention_mask"}
    if device.type == "cuda":
        return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}
    return batch


def evaluate(
    model: BaseLanguageModel,
    tokens: TokenFile,
    rows: Rows,
    collate: Collator,
    *,
    batch_size: int,
    step: int = 0,
    autocast: Any = None,
) -> EvaluationReport:
    """Loss, perplexity and bits per byte over every row of a token file, in order.

    A causal loss covers each token but the stream's first separator once; the rows are scored independently. A masked
    loss covers the tokens that the collator hides, the same ones at each evaluation.
    """
    device = next(model.parameters()).device
    order = SampleOrder(len(rows), 0, shuffle=False)
    total, count = 0.0, 0
    with _evaluating(model), autocast() if autocast is not None else torch.autocast(device.type, enabled=False):
        for batch in Batches(rows, order, collate, batch_size, 0, len(rows)):
            output = model(**to_device(batch, device), reduction="sum", return_logits=False)
            total += float(output.loss)
            count += int(output.count)
    if not count:
        raise DataError("the test corpus gives nothing to predict: every token of it is special")
    loss = total / count
    causal = model.context.objective.causal
    return EvaluationReport(
        step=step,
        loss=loss,
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=total / math.log(2) / tokens.info.text_bytes if causal else None,
        tokens=count,
    )


@dataclass(frozen=True)
class PairScores:
    """Minimal pairs: how often the good sentence is the more probable one; a tie counts as wrong."""

    name: str
    accuracy: float
    pairs: int


def read_pairs(path: str | Path) -> list[dict[str, Any]]:
    """Minimal pairs in BLiMP's format: one JSON object a line with sentence_good and sentence_bad."""
    pairs = []
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                pair = json.loads(line)
                if not (isinstance(pair["sentence_good"], str) and isinstance(pair["sentence_bad"], str)):
                    raise TypeError("not text")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a minimal pair (a JSON object with sentence_good and sentence_bad)"
                ) from error
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} holds no minimal pair")
    return pairs


def score_pairs(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[dict[str, Any]]
) -> list[PairScores]:
    """Accuracy for each paradigm (`UID`, or all together), in the order of their first pair."""
    good = sentence_scores(model, tokenizer, [pair["sentence_good"] for pair in pairs])
    bad = sentence_scores(model, tokenizer, [pair["sentence_bad"] for pair in pairs])
    right: dict[str, list[bool]] = {}
    for pair, score_good, score_bad in zip(pairs, good, bad, strict=True):
        right.setdefault(str(pair.get("UID", "all")), []).append(score_good > score_bad)
    return [PairScores(name, sum(results) / len(results), len(results)) for name, results in right.items()]


def sentence_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> list[float]:
    """Log-probability of each sentence in nats: the sum over its tokens.

    Causal: each token given those before it, the first given the separator that opens a document in training.
    Masked: pseudo-log-likelihood, one token hidden at a time (Salazar et al. 2020).
    """
    with _evaluating(model):
        if model.context.objective.causal:
            return list(_causal_scores(model, tokenizer, sentences))
        return list(_pseudo_scores(model, tokenizer, sentences))


def _ids(tokenizer: PreTrainedTokenizerFast, sentence: str) -> list[int]:
    return list(tokenizer(sentence, add_special_tokens=False)["input_ids"])


def _chunks(rows: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _causal_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> Iterator[float]:
    device = next(model.parameters()).device
    start = separator_id(tokenizer)
    rows = [[start, *_ids(tokenizer, sentence)] for sentence in sentences]
    for chunk in _chunks(rows, _PAIRS_PER_BATCH):
        ids, mask = _padded(chunk, start, device)
        labels = torch.where(mask.bool(), ids, IGNORED)
        output = model(ids, attention_mask=mask, labels=labels, reduction="none", return_logits=False)
        yield from (-output.token_losses.double().sum(dim=1)).tolist()


def _pseudo_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> Iterator[float]:
    device = next(model.parameters()).device
    variants: list[tuple[int, list[int], int, int]] = []
    for number, sentence in enumerate(sentences):
        framed = [tokenizer.cls_token_id, *_ids(tokenizer, sentence), tokenizer.sep_token_id]
        for place in range(1, len(framed) - 1):
            hidden = [*framed[:place], tokenizer.mask_token_id, *framed[place + 1 :]]
            variants.append((number, hidden, place, framed[place]))
    scores = np.zeros(len(sentences))
    # Rows of like length together: less padding, the sums do not depend on the order.
    variants.sort(key=lambda variant: len(variant[1]))
    for chunk in _chunks(variants, 4 * _PAIRS_PER_BATCH):
        ids, mask = _padded([hidden for _, hidden, _, _ in chunk], tokenizer.sep_token_id, device)
        labels = torch.full_like(ids, IGNORED)
        rows = torch.arange(len(chunk))
        labels[rows, [place for _, _, place, _ in chunk]] = torch.tensor([t for *_, t in chunk], device=device)
        output = model(ids, attention_mask=mask, labels=labels, reduction="none", return_logits=False)
        losses = output.token_losses.double().sum(dim=1).cpu().numpy()
        np.add.at(scores, [number for number, *_ in chunk], -losses)
    yield from scores.tolist()


def evaluate_corpus(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, corpus: str | Path, *, batch_size: int | None = None
) -> EvaluationReport:
    """Score a saved model on a text that it may never have seen; nothing is kept on the disk."""
    config = model.config
    documents = Corpus.open(corpus, unit=config.data.documents, name="corpus")
    with scratch_reported(), tempfile.TemporaryDirectory() as folder:
        tokens = prepare_tokens(documents, tokenizer, Path(folder))
        rows = cut_rows(tokens, config, tokenizer)
        collate = get_data_collator(config, tokenizer)
        return evaluate(model, tokens, rows, collate, batch_size=batch_size or config.data.batch_size)


def prompt_warnings(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int
) -> Iterator[str]:
    """What `continuations` will do otherwise than its caller may think: a line for each."""
    ids = _ids(tokenizer, prompt)
    unknown = ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    if unknown:
        yield f"the tokenizer does not know {unknown} of the {len(ids)} tokens of the prompt"
    room = _room(model, 1 + len(ids))
    if 0 < room < tokens:
        yield f"at most {room} tokens are added: the model was trained on {model.context.max_sequence_length}"


def _room(model: BaseLanguageModel, tokens: int) -> float:
    """How many tokens a text of so many may still grow by."""
    return math.inf if model.config.capabilities.any_length else model.context.max_sequence_length - tokens


def continuations(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    *,
    tokens: int,
    samples: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
) -> list[str]:
    """Texts that go on from a prompt, which is taken as the start of a document. temperature 0: greedy.

    Raises FoundryError for a model that does not generate. The process's random state is left as it was.
    """
    start = separator_id(tokenizer)
    device = next(model.parameters()).device
    ids = torch.tensor([[start, *_ids(tokenizer, prompt)]] * samples, device=device)
    room = _room(model, ids.shape[1])
    if room < 1:
        raise UsageError(
            f"the prompt has {ids.shape[1]} tokens; the model was trained on {model.context.max_sequence_length}"
        )
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {"do_sample": False}
    )
    with _evaluating(model), undisturbed_random_state():
        torch.manual_seed(seed)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=int(min(tokens, room)),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else start,
            **sampling,
        )
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in output.tolist()]
