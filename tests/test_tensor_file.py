"""Tensors go into a safetensors file from their own memory, as the bytes that the library writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from foundry_core.errors import CheckpointError
from foundry_core.models.tensor_file import weights_file
from foundry_core.storage import files as storage
from foundry_core.storage.files import InPlaceFolder, publish_folder
from foundry_core.storage.manifest import read_manifest
from tests.faults.harness import ObservedDisk

TYPES = (
    *("uint64", "int64", "float64", "complex64", "float32", "uint32", "int32"),
    *("bfloat16", "float16", "uint16", "int16", "int8", "uint8", "bool"),
)
NAMES = ("a.weight", "Z", 'of "quotes" \\ and \n\x01\x7f', "\u00e9\u2028\U0001f600", "10", "9")


def tensors() -> dict[str, torch.Tensor]:
    """Tensors of every type and of odd shapes under odd names."""
    torch.manual_seed(0)
    found = {
        f"{name} {number}": torch.randint(0, 2, (3, number + 1)).to(getattr(torch, dtype))
        for number, dtype in enumerate(TYPES)
        for name in NAMES
    }
    for dtype in (torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e8m0fnu):
        found[f"{dtype}"] = torch.ones(7).to(dtype)
    whole = torch.randn(60, 40)
    return found | {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "turned": torch.randn(5, 7).t(),
        "upper": whole[:30],
        "lower": whole[30:],
        "large": torch.randn(1500, 1000),
    }


def test_a_tensor_file_is_what_safetensors_writes() -> None:
    for content in (tensors(), {}, {"one": torch.ones(3)}):
        expected = save({name: tensor.contiguous() for name, tensor in content.items()}, metadata={"format": "pt"})
        assert b"".join(weights_file(content)) == expected
    assert torch.equal(load(expected)["one"], torch.ones(3))


def test_a_tensor_is_not_copied_to_be_saved() -> None:
    tensor = torch.randn(100, 100)
    _, piece = weights_file({"one": tensor})
    assert np.shares_memory(np.asarray(piece), tensor.numpy())


def test_what_a_tensor_file_does_not_keep_is_refused() -> None:
    one = torch.randn(8)
    with pytest.raises(CheckpointError, match="'a' and 'b' share memory"):
        weights_file({"a": one, "c": torch.randn(8), "b": one[2:4]})
    with pytest.raises(CheckpointError, match=r"'odd' cannot be saved: a torch\.complex128 tensor"):
        weights_file({"odd": torch.zeros(2, dtype=torch.complex128)})


BLOCK, ROOM = 1 << 12, 1 << 24


@pytest.mark.parametrize("place", ["disk", "/dev/shm"])
@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, ROOM - BLOCK, ROOM, ROOM + 1, 2 * ROOM + 3 * BLOCK + 5])
def test_content_in_pieces_is_written_whole_in_few_operations(
    on_disk: Path,
    place: str,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a file system that writes past the page cache, and on one in memory that may not."""
    if place != "disk" and not Path(place).is_dir():
        pytest.skip(f"there is no {place}")
    content = np.random.default_rng(size).bytes(size)
    pieces = [content[start : start + 5_000_001] for start in range(0, size, 5_000_001)]
    folder = (on_disk if place == "disk" else Path(place)) / f"checkpoint-{on_disk.name}"
    disk = ObservedDisk(lambda told: None)
    monkeypatch.setattr(storage, "disk", disk)
    try:
        with publish_folder(folder, {}) as sink:
            sink.write("weights", iter(pieces))
        written = [operation for operation in disk.operations if operation.kind == "write"]
        assert len(written) == -(-size // ROOM) + 1
        assert (folder / "weights").read_bytes() == content
        assert read_manifest(folder)["files"]["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
        InPlaceFolder(folder).write("again", iter(pieces))
        assert (folder / "again").read_bytes() == content
    finally:
        storage.remove_tree(folder)
