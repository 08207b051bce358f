"""Saving a full checkpoint of GPT-2 base with its optimizer, against torch.save with and without fsync."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import SIZES, Size
from benchmarks.measuring import Contender, Finding, Gate, NotMeasuredError, Ratio, Row, in_process, race

_LIMITS = (1.2, 0.9)


def ours(gate: Gate, settings: dict[str, Any], output: Path) -> None:
    """Train with a checkpoint after each step; its time is that from the end of the step to its announcement."""
    from foundry_core import hookimpl, load_config, run

    class Observer:
        began = 0.0, 0.0

        @hookimpl
        def foundry_step_ended(self) -> None:
            self.began = time.perf_counter(), time.process_time()

        @hookimpl
        def foundry_checkpoint_saved(self, step: int, folder: Path) -> None:
            if step > 0:
                seconds = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
                size = sum(path.stat().st_size for path in folder.iterdir())
                gate.pass_(seconds=seconds[0], processor_seconds=seconds[1], bytes=size)

    overrides = [f"training.output_dir={output}", "training.checkpoints={every_steps: 1}", "logging.log_every_steps=1"]
    run(load_config(settings, overrides), extra_observers=[Observer()])


def torch_save(gate: Gate, folder: Path, *, fsync: bool) -> None:
    """Save model and optimizer with torch.save, as most training loops do."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder / "transformers").train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.zeros(1, 8, dtype=torch.long)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    path = folder / f"saved {fsync}.pt"
    while True:
        path.unlink(missing_ok=True)
        start, processor = time.perf_counter(), time.process_time()
        with path.open("wb") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        seconds = time.perf_counter() - start, time.process_time() - processor
        gate.pass_(seconds=seconds[0], processor_seconds=seconds[1], bytes=path.stat().st_size)


def measure(folder: Path, rounds: int, *, quick: bool) -> Iterator[Finding]:
    """Measure the seconds of each."""
    full: Size = replace(SIZES["gpt2 base"], batch=1, length=16)
    size = full.shrunk() if quick else full
    try:
        facts = in_process("benchmarks.contenders:prepared", {"size": size, "folder": folder, "rows": 32}, threads=2)
    except NotMeasuredError as error:
        yield size.name, [Row("save", size.name, "torch.save", None, *_LIMITS, lower=True, note=str(error))], {}
        return
    arguments = {"settings": facts["settings"], "output": folder / "run"}
    own = Contender("foundry", "benchmarks.saving:ours", arguments)
    peers = [
        Contender(name, "benchmarks.saving:torch_save", {"folder": folder, "fsync": fsync})
        for name, fsync in (("torch.save, fsync", True), ("torch.save", False))
    ]
    race([own, *peers], rounds, "saving")
    found = {each.name: _figures(each) for each in (own, *peers)}
    rows = []
    for peer, limits in zip(peers, (_LIMITS, (None, None)), strict=True):
        problem = own.error or peer.error
        ratio = None if problem else Ratio.of(found[own.name]["seconds"], found[peer.name]["seconds"])
        note = problem or f"{found[own.name]['bytes'] / 1e9:.2f} GB to {found[peer.name]['bytes'] / 1e9:.2f} GB"
        rows.append(Row("save", size.name, peer.name, ratio, *limits, lower=True, note=note))
    yield size.name, rows, found


def _figures(contender: Contender) -> dict[str, Any]:
    if contender.error is not None:
        return {"error": contender.error}
    keys = ("seconds", "processor_seconds")
    figures: dict[str, Any] = {key: [each[key] for each in contender.rounds] for key in keys}
    last = contender.rounds[-1]
    return figures | {"bytes": last["bytes"], "peak_memory": last["peak_memory"]}
