"""Loss, perplexity, bits per byte and perplexity per word of a model on a corpus.

Evaluation draws no random number, leaves the model in the mode it was in, and gives the same figure twice.
"""

from __future__ import annotations

import math
import tempfile
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.reader import Corpus
from foundry_core.data.batches import Batches, Collator
from foundry_core.data.batching import cut_rows, row_lengths
from foundry_core.data.collators import get_data_collator
from foundry_core.data.order import LaneOrder, Order, SampleOrder
from foundry_core.data.rows import AnyRows, LaneRows
from foundry_core.data.token_file import TokenFile, prepare_tokens
from foundry_core.errors import DataError
from foundry_core.evaluation.inference import evaluating, to_device
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.carried import CarriedState
from foundry_core.processes import World
from foundry_core.registry.reports import EvaluationReport
from foundry_core.storage.files import scratch_reported


def evaluate(
    model: BaseLanguageModel,
    tokens: TokenFile,
    rows: AnyRows,
    collate: Collator,
    *,
    batch_size: int,
    step: int = 0,
    autocast: Any = None,
    world: World | None = None,
) -> EvaluationReport:
    """Compute the scores of an `EvaluationReport` over every row of a token file, in order.

    A causal loss covers each token but the stream's first separator once. The rows are scored independently, in
    contiguous batching each from the state after the row before. A masked loss covers the tokens that the collator
    hides, the same ones at each evaluation. Bits per byte need the whole text: each of those tokens predicted, none of
    them unknown. So does perplexity per word, where the unknown token is a word if the text is pretokenized.

    world: The processes that divide the rows between them; rows in contiguous batching, each of which continues from
        another, are read by each process.
    """
    device = next(model.parameters()).device
    order: Order = SampleOrder(len(rows), 0, shuffle=False)
    carried, world = None, world or World()
    if isinstance(rows, LaneRows):
        order, batch_size, carried = LaneOrder(len(rows), rows.lanes), rows.lanes, CarriedState()
        world = World()
    sums = torch.zeros(-(-len(rows) // batch_size), 2, dtype=torch.float64)
    own, most = world.part(len(sums)), -(-len(sums) // world.size)
    # All make equally many passes, each of which may put weights together that the processes hold in parts.
    first = min(own.start, len(sums) - most)
    read = range(first, first + most)
    part = Batches(rows, order, collate, batch_size, read.start * batch_size, min(read.stop * batch_size, len(rows)))
    with evaluating(model), autocast() if autocast is not None else torch.autocast(device.type, enabled=False):
        for number, batch in zip(read, part, strict=True):
            given = to_device(batch, device)
            if carried is not None:
                given = carried.given(given, row_lengths(rows, order, number * batch_size, batch_size))
            output = model(**given, reduction="sum", return_logits=False)
            if carried is not None:
                carried.advance(output.state)
            if number in own:
                sums[number] = torch.tensor([float(output.loss), int(output.count)], dtype=torch.float64)
    # One after the other, in the order of the rows: the same bits however many processes there are.
    total, counted = (reduce(add, column, 0.0) for column in world.sum(sums).T.tolist())
    count = int(counted)
    if not count:
        raise DataError("the text has nothing to predict: every token of it is special or unknown")
    loss = total / count
    info = tokens.info
    every = model.context.objective.causal and count == info.tokens - 1
    whole = every and info.unknown == 0
    by_words = whole or (every and model.config.tokenizer.pretokenized)
    return EvaluationReport(
        step=step,
        loss=loss,
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=total / math.log(2) / info.text_bytes if whole else None,
        tokens=count,
        unknown_share=info.unknown_share,
        perplexity_per_word=math.exp(min(total / (info.words + info.line_ends), 700)) if by_words else None,
    )


def evaluate_corpus(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, corpus: str | Path, *, batch_size: int | None = None
) -> EvaluationReport:
    """Score a saved model on any text; nothing is kept on the disk."""
    config = model.config
    held_out = (config.data.test_corpus, config.data.validation_corpus)
    pattern = config.data.files if str(corpus) in held_out else None
    keep = config.data.blank_lines == "keep"
    unit = config.data.documents
    documents = Corpus.open(corpus, unit=unit, name="corpus", pattern=pattern, keep_blank_lines=keep)
    with scratch_reported(), tempfile.TemporaryDirectory() as folder:
        tokens = prepare_tokens(documents, tokenizer, Path(folder))
        rows = cut_rows(tokens, config, tokenizer)
        collate = get_data_collator(config, tokenizer)
        return evaluate(model, tokens, rows, collate, batch_size=batch_size or config.data.batch_size)
