"""The content of a safetensors file in pieces, most of them the memory of its tensors: nothing is copied to be saved.

Byte for byte what `safetensors.torch.save` returns, which holds two copies of all tensors at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch

from foundry_core.errors import CheckpointError

_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The types by their names in a file, in the order in which their tensors stand there."""
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


def weights_file(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Return the content of a safetensors file of tensors on any device, piece by piece.

    Raises:
        CheckpointError: Two of the tensors share memory, and would not any more when the file is read, or one has a
            type that such a file does not store.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            raise CheckpointError(f"'{name}' cannot be saved: a {tensor.dtype} tensor with layout {tensor.layout}")
    _refuse_shared(tensors)
    ordered = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    return _pieces({name: tensors[name] for name in ordered})


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        content: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield memoryview(content)


def _refuse_shared(tensors: Mapping[str, torch.Tensor]) -> None:
    whole = [(name, tensor) for name, tensor in tensors.items() if tensor.nbytes and tensor.is_contiguous()]
    places = sorted((str(tensor.device), tensor.data_ptr(), tensor.nbytes, name) for name, tensor in whole)
    for (device, start, size, name), (other_device, other, _, other_name) in pairwise(places):
        if device == other_device and other < start + size:
            raise CheckpointError(f"'{name}' and '{other_name}' share memory, which a file of tensors does not keep")
