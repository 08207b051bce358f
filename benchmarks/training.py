"""Training: tokens per processor second, peak memory and loss curves of our run and of its peers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inputs import SIZES, Size
from benchmarks.measuring import Contender, Finding, NotMeasuredError, Ratio, Row, in_process, matmul_peak, race

BF16_PAYS = 1.3
"""From this ratio of the bf16 to the fp32 peak on, a processor counts as one with bf16."""

_OURS, _HF, _NANO, _PLAIN = "foundry", "transformers", "nanoGPT", "plain loop"
_HF_MASKED = "transformers, our masks"
_HF_BEST, _NANO_COMPILED = "transformers, best settings", "nanoGPT, compiled"

# Against whom, at least and aim, on a processor without bf16 and with it.
_LIMITS: dict[str, list[tuple[str, tuple[float, float], tuple[float, float]]]] = {
    "gpt2 tiny": [(_HF, (1.45, 1.7), (1.9, 2.5)), (_NANO_COMPILED, (1.05, 1.05), (1.4, 1.4))],
    "gpt2 small": [
        (_HF, (1.3, 2.3), (1.45, 2.8)),
        (_HF_BEST, (1.12, 1.3), (1.25, 1.6)),
        (_NANO_COMPILED, (1.12, 1.3), (1.25, 1.6)),
    ],
    "bert small, dropout 0.1": [(_HF, (1.7, 2.6), (2.0, 3.4))],
    "lstm 2x200": [(_PLAIN, (1.25, 1.5), (1.6, 2))],
    "lstm 2x650": [(_PLAIN, (1.05, 1.35), (1.2, 2))],
    "gru 2x650": [(_PLAIN, (1.15, 1.15), (1.4, 1.4))],
    "rnn 2x650": [(_PLAIN, (1.05, 1.05), (1.2, 1.2))],
}
_SHARE = {"gpt2 small": (0.78, 0.88), "gpt2 base": (0.78, 0.88)}
_MEMORY = {"gpt2 small": (0.62, 0.5), "gpt2 base": (0.62, 0.5)}


@dataclass(frozen=True)
class Options:
    """Extent of a measurement of training.

    variants: further runs of ours, by name, with overrides of the configuration. peers: False leaves all peers out.
    """

    folder: Path
    rounds: int = 5
    quick: bool = False
    sizes: tuple[str, ...] = tuple(SIZES)
    threads: int = 1
    nanogpt: str | None = None
    examples: str | None = None
    variants: tuple[tuple[str, tuple[str, ...]], ...] = ()
    peers: bool = True
    compiled: bool = True
    bf16: bool | None = None
    nano: bool = True


def measure(options: Options) -> Iterator[Finding]:
    """Measure the sizes one after the other."""
    pays = options.bf16
    if pays is None:
        probe = Contender("peak", _target(matmul_peak), threads=options.threads)
        race([probe], 1)
        pays = _bf16_pays(probe.warm_up.get("peak"))
    for name in options.sizes:
        size = SIZES[name].shrunk() if options.quick else SIZES[name]
        try:
            found = _measure_size(size, options, pays)
        except NotMeasuredError as error:
            yield name, [Row("train", name, "", None, note=str(error))], {"error": str(error)}
        else:
            yield name, _rows(name, found, pays), found


def _target(function: Any) -> str:
    return f"{function.__module__}:{function.__name__}"


def _bf16_pays(peak: dict[str, float] | None) -> bool:
    return peak is not None and peak["bf16"] >= BF16_PAYS * peak["fp32"]


def _measure_size(size: Size, options: Options, bf16: bool) -> dict[str, Any]:
    folder = options.folder / size.name.replace(" ", "-").replace(",", "")
    steps = size.warm_up + options.rounds * size.steps + 2
    needs = {"size": size, "folder": folder, "rows": steps * size.batch, "quick": options.quick}
    facts = in_process("benchmarks.contenders:prepared", needs, threads=2)
    contenders = _contenders(size, options, folder, facts["settings"], bf16)
    peak = Contender("peak", _target(matmul_peak), threads=options.threads)
    race([*contenders, peak], options.rounds, size.name)
    result: dict[str, Any] = {
        "tokens_per_step": size.tokens,
        "steps_per_round": size.steps,
        **{key: facts[key] for key in ("flops", "parameters", "vocabulary")},
        "peak": {name: [each["peak"][name] for each in peak.rounds] for name in ("fp32", "bf16")},
        "contenders": {each.name: _figures(each, size, facts["flops"]) for each in contenders},
    }
    result["largest_loss_difference"] = loss_differences(result["contenders"])
    return result


def _contenders(size: Size, options: Options, folder: Path, settings: dict[str, Any], bf16: bool) -> list[Contender]:
    made: list[Contender] = []

    def add(name: str, function: str, **arguments: Any) -> None:
        target = f"benchmarks.contenders:{function}"
        made.append(Contender(name, target, {"size": size, **arguments}, threads=options.threads))

    for name, overrides in ((_OURS, ()), *((f"{_OURS}, {name}", given) for name, given in options.variants)):
        output = folder / f"run {len(made)}"
        add(name, "ours", settings=settings, overrides=list(overrides), output=output)
    if not options.peers:
        return made
    if size.recurrent:
        add(_PLAIN, "examples_loop", folder=folder, checkout=options.examples)
        return made
    levers: list[tuple[str, dict[str, bool]]] = [("", {})]
    if size.name != "gpt2 base":  # of which six would not fit into memory
        levers += [(", compiled", {"compiled": True})] * options.compiled
        levers += [(", bf16", {"bf16": True})] * bf16
        levers += [(", bf16 compiled", {"bf16": True, "compiled": True})] * (bf16 and options.compiled)
    for suffix, on in levers:
        add(_HF + suffix, "transformers_trainer", folder=folder, output=folder / f"run {len(made)}", **on)
    if size.masked:
        add(_HF_MASKED, "transformers_trainer", folder=folder, output=folder / f"run {len(made)}", our_masks=True)
    if not size.masked and options.nano:
        for suffix, on in levers[:2]:
            add(_NANO + suffix, "nanogpt", folder=folder, checkout=options.nanogpt, **on)
    return made


def _figures(contender: Contender, size: Size, flops: int) -> dict[str, Any]:
    """Return what a contender has shown: rates by round, shares, memory, losses; or why it was not measured."""
    if contender.error is not None or not contender.rounds:
        return {"error": contender.error or "it took no turn"}
    seconds = [each["processor"] for each in contender.rounds]
    curve = [point for each in (contender.warm_up, *contender.rounds) for point in each["losses"]]
    return {
        "tokens_per_processor_second": [size.tokens * size.steps / each for each in seconds],
        "tokens_per_second": [size.tokens * size.steps / each["wall"] for each in contender.rounds],
        "gflops": [flops * size.steps / each / 1e9 for each in seconds],
        "warm_up": {key: contender.warm_up[key] for key in ("processor", "wall")},
        "peak_memory": contender.rounds[-1]["peak_memory"],
        "choices": contender.rounds[-1].get("choices"),
        "losses": curve,
    }


def loss_differences(contenders: dict[str, Any]) -> dict[str, float]:
    """Return for each contender the largest distance of its loss curve from ours."""
    curves = {name: dict(each["losses"]) for name, each in contenders.items() if "losses" in each}
    own = curves.get(_OURS, {})
    return {
        name: max(abs(loss - own[step]) for step, loss in curve.items() if step in own)
        for name, curve in curves.items()
        if name != _OURS and own.keys() & curve.keys()
    }


def _rows(name: str, found: dict[str, Any], bf16: bool) -> list[Row]:
    """Return the rows of a size: its limits, further peers, share of the peak, memory."""
    contenders, limits = found["contenders"], {against: each for against, *each in _LIMITS.get(name, [])}
    contenders = {peer: each for peer, each in contenders.items() if "error" not in each}
    errors = {peer: each["error"] for peer, each in found["contenders"].items() if "error" in each}
    own = contenders.get(_OURS)
    if own is None:
        return [Row("train", name, "", None, note=errors[_OURS])]
    compared = {peer: each for peer, each in contenders.items() if peer != _OURS}
    settings = [peer for peer in compared if peer.startswith(f"{_HF}, ") and peer != _HF_MASKED]
    if settings:
        best = max([_HF, *settings], key=lambda peer: statistics.median(_rates(compared.get(peer, {})) or [0]))
        compared[_HF_BEST] = compared[best]
    rows = []
    for peer in dict.fromkeys([*limits, *compared, *errors]):
        at_least, aim = (pair[bf16] for pair in limits[peer]) if peer in limits else (None, None)
        if peer not in compared:
            rows.append(Row("train", name, peer, None, at_least, aim, note=errors.get(peer, "not measured")))
            continue
        apart = found["largest_loss_difference"].get(peer)
        note = "" if apart is None else f"losses within {apart:.1g}"
        if peer == _HF_BEST:
            note = best
        ours, theirs = (own, compared[peer])
        if peer.startswith(f"{_OURS}, "):  # a variant of ours, against our defaults
            rows.append(Row("train", name, peer, Ratio.of(_rates(theirs), _rates(ours)), note="of the default's speed"))
            continue
        rows.append(Row("train", name, peer, Ratio.of(_rates(ours), _rates(theirs)), at_least, aim, note=note))
    best_peak = max(found["peak"], key=lambda precision: statistics.median(found["peak"][precision] or [0]))
    shares = Ratio.of(own["gflops"], found["peak"][best_peak])
    at_least, aim = _SHARE.get(name, (None, None))
    rows.append(Row("train", name, f"matmul peak, {best_peak}", shares, at_least, aim, unit="%"))
    return rows + memory_rows(name, contenders)


def _rates(figures: dict[str, Any]) -> list[float]:
    rates: list[float] = figures.get("tokens_per_processor_second", [])
    return rates


def memory_rows(name: str, contenders: dict[str, Any]) -> list[Row]:
    """Return the row of peak memory against transformers."""
    if not {_OURS, _HF} <= contenders.keys() or name not in _MEMORY:
        return []
    ours, theirs = (contenders[each]["peak_memory"] for each in (_OURS, _HF))
    note = f"{ours / 1e9:.2f} GB to {theirs / 1e9:.2f} GB"
    return [Row("memory", name, _HF, Ratio.of([ours], [theirs]), *_MEMORY[name], lower=True, note=note)]
