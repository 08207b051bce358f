"""How frequent each token is in the text that a model was trained on, as the measures `pmi` and `slor` need it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.state import read_state
from foundry_core.data.preparation import TOKENIZER_DATA, TRAINING_DATA, tokenizer_folder
from foundry_core.data.token_file import stored_tokens
from foundry_core.errors import DataError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.run_folder import CONFIG, TOKENIZER, TOKENS
from foundry_core.tokenization.encoding import separator_id

_WINDOW = 1 << 24  # tokens that are counted at a time


def unigram_scores(
    checkpoint: Path, model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast
) -> NDArray[np.float64]:
    """Return the log-probability of each token by its frequency in the training text, in nats (V,).

    Ends of documents are not counted, and one is added to every count (Laplace).

    Raises:
        DataError: The token file of the training text is gone.
    """
    run, data = checkpoint.parent, read_state(checkpoint).data
    folders = run / TOKENIZER / TOKENS, run / TOKENS, tokenizer_folder(model.config) / TOKENS
    found = stored_tokens(folders, data.get(TRAINING_DATA, ""), data.get(TOKENIZER_DATA, ""))
    if found is None:
        raise DataError(
            f"{run}: there is no token file of the text that {checkpoint.name} was trained on, whose tokens pmi and "
            f"slor count. If that text is unchanged, encode it again: foundry data prepare {run / CONFIG}"
        )
    counts = np.zeros(model.context.vocab_size, dtype=np.int64)
    for start in range(0, len(found.tokens), _WINDOW):
        counts += np.bincount(found.tokens[start : start + _WINDOW], minlength=len(counts))
    counts[separator_id(tokenizer)] = 0
    counts += 1
    logarithms: NDArray[np.float64] = np.log(counts / counts.sum())
    return logarithms
