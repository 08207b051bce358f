"""Fixtures for the tests of core: distributions as an installer leaves them, made by hand."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path: the `*.dist-info` that an installer would leave, and its modules.

    What is imported from there is gone after the test. place: another folder, before those so far. sources: those of
    an editable installation, which get the modules.
    """

    def put(
        distribution: str,
        architectures: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        version: str = "1.0",
        extensions: Mapping[str, str] | None = None,
        place: str = "site",
        requires: Sequence[str] = (),
        summary: str = "",
        sources: Path | None = None,
    ) -> None:
        site = tmp_path / place
        folder = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        headers = [f"Name: {distribution}", f"Version: {version}"]
        headers += [f"Summary: {summary}"] if summary else []
        headers += [f"Requires-Dist: {requirement}" for requirement in requires]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *headers, "", "Name: of the README"]))
        groups = {"foundry.architectures": architectures or {}, "foundry.plugins": extensions or {}}
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
            for group, points in groups.items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        if sources is not None:
            origin = {"url": sources.as_uri(), "dir_info": {"editable": True}}
            (folder / "direct_url.json").write_text(json.dumps(origin))
            sources.mkdir(exist_ok=True)
        for name, text in (modules or {}).items():
            ((sources or site) / f"{name}.py").write_text(textwrap.dedent(text))
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))  # this puts back the whole path when the test ends
        if sources is not None:
            sys.path.append(str(sources))
        importlib.invalidate_caches()

    yield put
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
