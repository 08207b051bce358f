"""Other people's programs on checkpoints and exported folders: what they compute is what we do.

FOUNDRY_TEST_TRANSFORMERS names Pythons, `:` between them, of environments without foundry; `make peers` makes two.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docs.generator.peers import DATA, PAGE, peers_table, with_table
from tests.peers import CLOSE, OURS, Cases, checkpoints, exported, probed, wrong

OTHERS = os.environ.get("FOUNDRY_TEST_TRANSFORMERS", "").split(":")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return checkpoints(tmp_path_factory.mktemp("trained"))


def check(found: Any) -> None:
    present = [peer for peer, seen in found["peers"].items() if seen["version"] is not None]
    if not present:
        pytest.skip(f"none of {', '.join(found['peers'])} is installed")
    assert wrong(found) == []
    assert all(found["peers"][peer]["cases"] for peer in present)


@pytest.mark.slow
def test_programs_of_others_compute_the_same_on_checkpoints(cases: Cases, tmp_path: Path) -> None:
    check(probed(sys.executable, cases, tmp_path / "probe"))


def named(python: str) -> str:
    if not python:
        pytest.skip("FOUNDRY_TEST_TRANSFORMERS names no further Pythons")
    if not Path(python).exists():
        pytest.skip(f"{python} of FOUNDRY_TEST_TRANSFORMERS does not exist")
    return os.path.abspath(python)  # noqa: PTH100 - a link stays one


@pytest.mark.slow
@pytest.mark.parametrize("python", OTHERS)
def test_they_do_without_foundry_on_exported_folders(python: str, cases: Cases, tmp_path: Path) -> None:
    folders = exported(cases, tmp_path / "exported")
    check(probed(named(python), folders, tmp_path / "probe", without=OURS))


@pytest.mark.slow
@pytest.mark.parametrize("python", [sys.executable, *OTHERS])
def test_the_page_opens_folders_in_transformer_lens(python: str, cases: Cases, tmp_path: Path) -> None:
    def says(text: str) -> str:
        command = [named(python), "-I", "-c", text]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()

    found = says(
        "import importlib.metadata as m; print(*(d.version for d in m.distributions(name='transformer-lens')))"
    )
    if not found:
        pytest.skip("transformer-lens is not installed")
    for architecture in ("gpt2", "bert"):
        exported({architecture: cases[f"{architecture} bpe"]}, tmp_path / architecture)
        (tmp_path / "published").mkdir(exist_ok=True)
        (tmp_path / architecture / "0").rename(tmp_path / "published" / architecture)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    version = "TransformerBridge" if int(found.split(".")[0]) > 2 else "loading_from_pretrained"
    (example,) = [each for each in blocks if version in each]
    shown = "import torch; print(*(str(tuple(each(torch.arange(6)[None]).shape)) for each in (gpt2, bert)))"
    assert says(example + shown).endswith("(1, 6, 300) (1, 6, 300)")


def test_the_table_of_the_page_is_what_was_measured() -> None:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    assert peers_table(data) in text
    assert with_table(text, data) == text


def test_what_was_measured_covers_both_versions_and_is_close() -> None:
    environments = json.loads(DATA.read_text(encoding="utf-8"))["environments"]
    without = {each["transformers"]: each["peers"] for each in environments if each["folders"] != "checkpoint"}
    assert "4.51.3" in without
    assert any(version.startswith("5.") for version in without)
    for peers in without.values():
        assert set(peers) == {"minicons", "lm-eval", "captum", "nnsight", "TransformerLens"}
        assert {"gpt2", "bert"} == set(peers["TransformerLens"]["differences"])
        for peer in ("minicons", "captum", "nnsight"):
            assert {"gpt2", "bert", "lstm", "mamba"} <= set(peers[peer]["differences"])
        assert all(value <= CLOSE for seen in peers.values() for value in seen["differences"].values())
