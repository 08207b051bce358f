"""What observers receive: a run at its start, a step of training, an evaluation on a text or on a suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class RunInfo:
    """A run at its start; `config` is the resolved configuration as plain data.

    facts: parameters, device, threads, precision, compile, kernels, and unknown_share if tokens of the training corpus
    are unknown, started_from with training.start_from. wandb_run_id: stays the same when the run is resumed. budget:
    the whole run in epochs, steps, tokens, words and bytes; of the last three it sees no more than these.
    """

    experiment_name: str
    output_dir: Path
    config: Mapping[str, Any]
    total_steps: int
    first_step: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    wandb_run_id: str | None = None
    budget: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. loss: nats per predicted token of this step. grad_norm: before clipping.

    tokens_per_second: since the last report. *_seen: since the start of the experiment, without padding and overlap.
    seconds_left: at the present speed. auxiliary: the auxiliary terms of the model, by name. optimised_loss: what the
    gradient is of, with these terms or by the objective's own loss; None where that is `loss`. data_wait: share of the
    time since the last report that went into waiting for batches. communication: share of it in which process 0 waited
    for others or exchanged numbers with them; what overlaps with a backward pass does not count. tokens_by_corpus:
    where there are several.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_seen: int
    words_seen: int
    tokens_per_second: float
    seconds_left: float
    auxiliary: Mapping[str, float] = field(default_factory=dict)
    optimised_loss: float | None = None
    data_wait: float = 0.0
    tokens_by_corpus: Mapping[str, int] = field(default_factory=dict)
    bytes_seen: int = 0
    communication: float | None = 0.0


@dataclass(frozen=True)
class EvaluationReport:
    """Scores on the validation or the test corpus. loss: nats per predicted token; perplexity: its exponential.

    bits_per_byte: all nats over the UTF-8 bytes of the documents, in bits. None where they are not the probability of
    that text: of a masked model, of an objective that leaves labels out, and where unknown tokens hide text.

    tokens: number of predictions. unknown_share: unknown tokens among those of the documents.

    corpus: what was scored. *_seen: how much of the training text the model has seen; 0 for a model that was opened.

    perplexity_per_word: the exponential of all nats over the words of the documents and the predicted ends of lines,
    which makes tokenizers comparable. None where bits_per_byte is, except that unknown tokens of a pretokenized text
    are words of it.
    """

    step: int
    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    unknown_share: float = 0.0
    corpus: Literal["validation", "test"] = "test"
    tokens_seen: int = 0
    words_seen: int = 0
    bytes_seen: int = 0
    perplexity_per_word: float | None = None


@dataclass(frozen=True)
class SuiteReport:
    """Scores on an evaluation suite of `training.suites`.

    accuracy: share of the items that are right, with the 95 % `interval` of a bootstrap over items; ties are wrong.
    macro: mean over the paradigms' accuracies. phenomena: their accuracies, each the mean over its paradigms. left_out:
    items that cannot be scored. *_seen: how much of the training text the model has seen. suite_digest: the sha256 of
    what was scored (hex); suites of one name may be different ones.
    """

    step: int
    suite: str
    accuracy: float
    macro: float
    items: int
    interval: tuple[float, float]
    ties: int = 0
    left_out: int = 0
    unknown_share: float = 0.0
    phenomena: Mapping[str, float] = field(default_factory=dict)
    tokens_seen: int = 0
    words_seen: int = 0
    bytes_seen: int = 0
    suite_digest: str = ""
