"""Past this machine: what part of the speed of N GPUs a run of N processes has, by published speeds of their links.

    python -m benchmarks.extrapolation      # the table of docs/training/scaling.md

The same run on every number of GPUs: a step of 64 micro-batches of 8 rows of 1,024 tokens, divided between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from foundry_core.training.division import consecutive

MICRO_BATCHES, ROWS, LENGTH = 64, 8, 1024
LINK_SHARE = 0.75
"""Share of the published speed of a link that a collective operation reaches."""
KERNEL_SECONDS, KERNELS_PER_LAYER = 5e-6, 60
"""Least time of a kernel, and the number that the two passes start for a layer: a small model waits for them."""
BACKWARD = 2 / 3
"""Share of a micro-batch's time that is the backward pass, which `fast` communicates beside."""


@dataclass(frozen=True)
class Model:
    """A GPT-2 with tied embeddings and gradients in fp32."""

    name: str
    layers: int
    width: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Return their number, without biases, norms and positions."""
        return 12 * self.layers * self.width**2 + self.vocabulary * self.width

    @property
    def gradient(self) -> int:
        """Return the bytes of a gradient."""
        return 4 * self.parameters

    @property
    def flops(self) -> int:
        """Return the operations of a micro-batch, forward and backward, attention included."""
        return ROWS * LENGTH * (6 * self.parameters + 12 * self.layers * LENGTH * self.width)


@dataclass(frozen=True)
class Gpu:
    """A GPU: 40 % of its bf16 operations per second without sparsity, and bytes per second of its memory."""

    name: str
    flops: float
    memory: float


@dataclass(frozen=True)
class Link:
    """Describes a link: bytes per second in one direction by its data sheet, and the seconds that a message takes."""

    name: str
    speed: float
    latency: float

    def seconds(self, volume: float, messages: int) -> float:
        """Return the time in which a GPU sends messages of so many bytes together."""
        return volume / (LINK_SHARE * self.speed) + messages * self.latency if messages else 0.0


@dataclass(frozen=True)
class Cluster:
    """Machines of some GPUs each; `inside` connects those of a machine, `between` those of several."""

    gpu: Gpu
    machines: int
    per_machine: int
    inside: Link
    between: Link

    @property
    def gpus(self) -> int:
        """Return how many there are."""
        return self.machines * self.per_machine

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        links = [self.inside.name] * (self.per_machine > 1) + [self.between.name] * (self.machines > 1)
        return f"{self.machines} x {self.per_machine} {self.gpu.name}, {' and '.join(links)}"


H100, A100 = Gpu("H100", 0.4 * 989e12, 3.35e12), Gpu("A100", 0.4 * 312e12, 1.935e12)
NVLINK, PCIE = Link("NVLink 4", 450e9, 2e-6), Link("PCIe 4 x16", 32e9, 5e-6)
NDR, ETHERNET = Link("InfiniBand NDR", 50e9, 5e-6), Link("100 Gbit Ethernet", 12.5e9, 30e-6)
SHARED_ETHERNET = Link("100 Gbit Ethernet", ETHERNET.speed / 8, ETHERNET.latency)
"""One port for the eight GPUs of a machine."""

CLUSTERS = (
    Cluster(H100, 1, 8, NVLINK, NDR),
    Cluster(A100, 1, 8, PCIE, ETHERNET),
    Cluster(A100, 8, 1, PCIE, ETHERNET),
    Cluster(H100, 8, 8, NVLINK, NDR),
    Cluster(A100, 8, 8, PCIE, SHARED_ETHERNET),
)
MODELS = (
    Model("tiny, 2M", 4, 128, 8_192),
    Model("GPT-2, 124M", 12, 768, 50_257),
    Model("350M", 24, 1_024, 50_257),
)


def micro_batch_seconds(model: Model, gpu: Gpu) -> float:
    """Return the time of forward and backward pass of one micro-batch."""
    return max(model.flops / gpu.flops, KERNEL_SECONDS * KERNELS_PER_LAYER * model.layers)


def by_machine(model: Model, cluster: Cluster) -> float:
    """Return the seconds of an all-reduce inside machines, then between them, and back: a ring, or the exact tree.

    Inside, each GPU gets one share of the sum over its machine, (g - 1) / g of a gradient; between m machines that
    share is added up, 2 (m - 1) / m of it; then the machine collects all shares.
    """
    g, m, gradient = cluster.per_machine, cluster.machines, model.gradient
    inside = cluster.inside.seconds(2 * gradient * (g - 1) / g, 2 * (g - 1))
    return inside + cluster.between.seconds(2 * gradient / g * (m - 1) / m, 2 * (m - 1))


def all_at_once(model: Model, cluster: Cluster) -> float:
    """Return the seconds of what `exact` does: all-to-all over all GPUs, whatever lies between, and an all-gather.

    In the first, each GPU sends 1 / N of its gradient to each other one: (N - g) / N of it leave the machine. In the
    second, what leaves a machine does so once, over the ports of all its GPUs.
    """
    n, g, gradient = cluster.gpus, cluster.per_machine, model.gradient
    exchanged = max(
        cluster.inside.seconds(gradient * (g - 1) / n, g - 1), cluster.between.seconds(gradient * (n - g) / n, n - g)
    )
    across = cluster.between.seconds(gradient / g * (n - g) / n, cluster.machines - 1)
    return exchanged + max(cluster.inside.seconds(gradient * (n - 1) / n, g - 1), across)


def adding(model: Model, cluster: Cluster, own: int) -> float:
    """Return the seconds in which memory is read and written for the exact sum, of `own` micro-batches.

    Joining two sums reads both and writes one; the exchange copies a gradient and adds up as much.
    """
    joins = own // consecutive(own) - 1
    return model.gradient * (3 * joins + 4 * (cluster.gpus > 1)) / cluster.gpu.memory


@dataclass(frozen=True)
class Efficiency:
    """Holds the share of the speed of N GPUs without communication that a run reaches.

    Attributes:
        exact: `training.reduction: exact` as it is.
        exact_by_machine: The same sum, exchanged inside machines first: their processes are subtrees of the tree.
        fast: A ring by machine, beside the last backward pass.
    """

    exact: float
    exact_by_machine: float
    fast: float


def efficiency(model: Model, cluster: Cluster) -> Efficiency:
    """Return the efficiency of a run on a cluster, its optimizer's update aside."""
    own = MICRO_BATCHES // cluster.gpus
    each = micro_batch_seconds(model, cluster.gpu)
    computed, ring, memory = own * each, by_machine(model, cluster), adding(model, cluster, own)
    return Efficiency(
        computed / (computed + all_at_once(model, cluster) + memory),
        computed / (computed + ring + memory),
        computed / (computed + max(ring - BACKWARD * each, 0.0)),
    )


def lines() -> Iterator[tuple[str, ...]]:
    """Yield the cells of the table: model, cluster, seconds of computing and of an all-reduce, efficiencies."""
    for cluster in CLUSTERS:
        for model in MODELS:
            found, own = efficiency(model, cluster), MICRO_BATCHES // cluster.gpus
            seconds = own * micro_batch_seconds(model, cluster.gpu), by_machine(model, cluster)
            shares = found.exact, found.exact_by_machine, found.fast
            times = (f"{1000 * each:.2g} ms" if each < 0.1 else f"{1000 * each:.0f} ms" for each in seconds)
            yield cluster.name, model.name, *times, *(f"{each:.0%}" for each in shares)


def markdown() -> str:
    """Return the table of the documentation."""
    header = ("GPUs", "model", "computing", "all-reduce", "exact", "exact by machine", "fast")
    rows = ["| " + " | ".join(cells) + " |" for cells in (header, *lines())]
    return "\n".join((rows[0], "|" + "---|" * len(header), *rows[1:]))


if __name__ == "__main__":
    print(markdown())
