"""The contenders of training: our run, the Trainer of transformers, nanoGPT and the plain loop of pytorch/examples.

Each function runs in a process of its own. All of them begin with the same weights and read the same rows in the same
order with the same optimizer settings; `prepared` makes these. Code of the two checkouts is imported from there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inputs import Size, prose, write_text
from benchmarks.measuring import Gate, NotMeasuredError

_HALF_OF_PEAK = 80e9  # FLOP/s, for the length of a planned run; the budget decides what `auto` settings choose
_RUN_SECONDS = 600


def prepared(_: Gate, size: Size, folder: Path, rows: int, *, quick: bool = False) -> dict[str, Any]:
    """Write text, tokenizer, token file, initial weights and the first rows in their order; return the facts.

    Args:
        rows: How many rows the contenders will read.
        quick: Plan a run that is too short for a trial of torch.compile, which takes most of a smoke run.
    """
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    from foundry_core import create_model, load_config
    from foundry_core.cli.common import prepare_data
    from foundry_core.data.collators import get_data_collator
    from foundry_core.data.order import SampleOrder
    from foundry_core.random_streams import derive

    needed = 2 * rows * size.length
    text = prose(max(8 * needed, 24 * size.vocabulary), words=max(1000, size.vocabulary + size.vocabulary // 4))
    write_text(folder / "corpus.txt", text)
    settings = size.config(folder)
    tokenizer, data = prepare_data(load_config(settings))
    longest = data.train_rows.length
    for seed in range(42, 142):
        # The last row of an epoch may be shorter, which nanoGPT and pytorch/examples do not provide for.
        settings["random_seed"] = seed
        config = load_config(settings)
        order = SampleOrder(len(data.train_rows), derive(config.seed("data_order"), "data_order"))
        chosen = [data.train_rows.row(int(row)) for row in order.at(np.arange(rows))[1]]
        if all(len(row) == longest for row in chosen):
            break
    np.save(folder / "rows.npy", np.stack(chosen).astype(np.int32))
    if size.masked:
        collate, numbers = get_data_collator(config, tokenizer), order.at(np.arange(rows))[1].tolist()
        features = [{"input_ids": row, "epoch": 0, "row": n} for row, n in zip(chosen, numbers, strict=True)]
        np.savez(folder / "masked.npz", **{name: value.numpy() for name, value in collate(features).items()})
    model = create_model(config, tokenizer)
    save_file({name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, folder / "own.st")
    if not size.recurrent:
        model.to_transformers().save_pretrained(folder / "transformers")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(folder / "transformers")
    flops = 3 * model.flops(size.batch, size.length)
    settings["training"]["train_steps"] = max(1000, round((0 if quick else _RUN_SECONDS) * _HALF_OF_PEAK / flops))
    facts = {"vocabulary": model.context.vocab_size, "parameters": model.get_parameter_count().total}
    return {"settings": settings, "flops": flops, "rows": len(data.train_rows), **facts}


class _Rounds:
    """Counts steps, keeps the losses that are logged, and passes the gate after the warm-up and after each round."""

    def __init__(self, gate: Gate, size: Size):
        self._gate, self._size = gate, size
        self._losses: list[tuple[int, float]] = []
        self.facts: dict[str, Any] = {}

    def logs(self, step: int) -> bool:
        """Check whether the loss of this step, counted from 1, is wanted."""
        return step % self._size.log_every == 0

    def after(self, step: int, loss: Any) -> None:
        """Record a step, counted from 1, and its loss if it is logged."""
        if self.logs(step):
            self._losses.append((step, float(loss)))
        beyond = step - self._size.warm_up
        if beyond >= 0 and beyond % self._size.steps == 0:
            losses, self._losses = self._losses, []
            self._gate.pass_(losses=losses, **self.facts)


def ours(gate: Gate, size: Size, settings: dict[str, Any], overrides: list[str], output: Path) -> None:
    """Run an experiment as `foundry train` does; an observer stands at the gate."""
    from foundry_core import hookimpl, load_config, run

    rounds = _Rounds(gate, size)

    class Observer:
        @hookimpl
        def foundry_run_started(self, run: Any) -> None:
            rounds.facts = {"choices": {name: str(value) for name, value in run.facts.items()}}

        @hookimpl
        def foundry_step_ended(self, report: Any) -> None:
            rounds.after(report.step, report.loss)

    run(load_config(settings, [*overrides, f"training.output_dir={output}"]), extra_observers=[Observer()])


def transformers_trainer(
    gate: Gate,
    size: Size,
    folder: Path,
    output: Path,
    *,
    compiled: bool = False,
    bf16: bool = False,
    our_masks: bool = False,
) -> None:
    """Train with the Trainer of transformers and its collator; what is not named here has its default.

    Args:
        our_masks: Of a masked model: the rows are masked already, as ours are, so that the losses can be compared.
    """
    try:
        import accelerate  # noqa: F401 - the Trainer needs it
    except ImportError:
        raise NotMeasuredError("accelerate is not installed") from None
    from transformers import (
        AutoTokenizer,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        GPT2LMHeadModel,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )

    rounds = _Rounds(gate, size)
    # The Trainer divides a sum by all labels, also by the first of each row, which nothing predicts.
    scale = 1.0 if size.masked else size.length / (size.length - 1)

    class Measured(Trainer):  # type: ignore[misc]
        def training_step(self, *arguments: Any, **keywords: Any) -> Any:
            loss = super().training_step(*arguments, **keywords)
            self.last_loss = loss * scale
            return loss

    rows = {"input_ids": np.load(folder / "rows.npy")} if not our_masks else dict(np.load(folder / "masked.npz"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "transformers")
    model = (BertForMaskedLM if size.masked else GPT2LMHeadModel).from_pretrained(folder / "transformers")
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=size.batch,
        max_steps=10**6,
        learning_rate=size.training.get("learning_rate", 5e-4),
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",  # the rows are in the order that we have drawn
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        torch_compile=compiled,
        bf16=bf16,
    )
    masking = DataCollatorForLanguageModeling(tokenizer, mlm=size.masked)
    collator = default_data_collator if our_masks else masking
    trainer = Measured(model, arguments, train_dataset=_dataset(rows), data_collator=collator)
    trainer.add_callback(_callback(trainer, rounds))
    trainer.train()


def _dataset(rows: dict[str, NDArray[Any]]) -> Any:
    """Return rows as run_clm gives them to the Trainer: in Arrow, where `datasets` is installed."""
    columns = {name: values.tolist() for name, values in rows.items()}
    try:
        from datasets import Dataset
    except ImportError:
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Dataset.from_dict(columns)


def _callback(trainer: Any, rounds: _Rounds) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            rounds.after(state.global_step, trainer.last_loss)

    return Callback()


def _module(checkout: str | None, *parts: str) -> Any:
    """Import a module from a checkout that the user named."""
    path = Path(checkout or "", *parts)
    if checkout is None or not path.is_file():
        raise NotMeasuredError(f"no checkout with {'/'.join(parts)} was named")
    spec = importlib.util.spec_from_file_location(f"checkout_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _batches(folder: Path, size: Size) -> Iterator[NDArray[np.int64]]:
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    for start in range(0, len(rows) - size.batch + 1, size.batch):
        yield rows[start : start + size.batch].astype(np.int64)


def nanogpt(
    gate: Gate, size: Size, folder: Path, checkout: str | None, *, compiled: bool = False, bf16: bool = False
) -> None:
    """Train nanoGPT's GPT by the steps of its train.py, with AdamW from its own `configure_optimizers`.

    Its GELU is replaced by that of GPT-2, torch's tanh kernel, and each row keeps its last position without a target,
    so that the losses are those of the others.
    """
    code = _module(checkout, "model.py")
    import torch
    from safetensors.torch import load_file

    settings = size.model["transformer"]
    stored = load_file(folder / "transformers" / "model.safetensors")
    vocabulary, width = stored["transformer.wte.weight"].shape
    model = code.GPT(
        code.GPTConfig(
            block_size=size.length,
            vocab_size=vocabulary,
            n_layer=settings["layers"],
            n_head=settings["attention_heads"],
            n_embd=width,
            dropout=0.0,
        )
    )
    for block in model.transformer.h:
        block.mlp.gelu = torch.nn.GELU(approximate="tanh")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = stored[name if name in stored else f"transformer.{name}"]
            parameter.copy_(value.t() if value.ndim == 2 and ".h." in name else value)  # Conv1D is turned
    optimizer = model.configure_optimizers(0.0, size.training.get("learning_rate", 5e-4), (0.9, 0.999), "cpu")
    forward = torch.compile(model) if compiled else model
    cast: Any = torch.amp.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
    rounds = _Rounds(gate, size)
    batches = _batches(folder, size)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.from_numpy(next(batches))
        targets = torch.full_like(ids, -1)
        targets[:, :-1] = ids[:, 1:]
        return ids, targets

    x, y = batch()
    for step in range(1, sys.maxsize):
        with cast:
            _, loss = forward(x, y)
        x, y = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rounds.after(step, loss.item() if rounds.logs(step) else None)


def examples_loop(gate: Gate, size: Size, folder: Path, checkout: str | None) -> None:
    """Train the RNNModel of pytorch/examples by the steps of its main.py: SGD written out, clipping, a sum of losses.

    Each batch begins with a state of zeros, as our rows do.
    """
    code = _module(checkout, "word_language_model", "model.py")
    import torch
    from safetensors.torch import load_file

    settings, stored = size.model["rnn"], load_file(folder / "own.st")
    kind = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN_TANH"}[size.architecture]
    vocabulary, width = stored["embedding.weight"].shape
    units, layers = settings["hidden_size"], settings["num_layers"]
    model = code.RNNModel(kind, vocabulary, width, units, layers, size.dropout).train()
    names = {"encoder": "embedding", "rnn": "recurrent", "decoder": "output_layer"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, _, rest = name.partition(".")
            parameter.copy_(stored[f"{names[module]}.{rest}"])
    criterion = torch.nn.NLLLoss()
    rounds = _Rounds(gate, size)
    total = 0.0
    for step, ids in enumerate(_batches(folder, size), 1):
        source = torch.from_numpy(ids).t().contiguous()
        data, targets = source[:-1], source[1:].reshape(-1)
        model.zero_grad()
        hidden = model.init_hidden(size.batch)
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), size.training["max_grad_norm"])
        for parameter in model.parameters():
            parameter.data.add_(parameter.grad, alpha=-size.training["learning_rate"])
        total += loss.item()
        rounds.after(step, loss)
