"""`each`: what a folded test reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.each import each


def test_every_failing_value_is_listed_and_the_first_is_cause() -> None:
    @each("number, root", [(1, 1), (4, 2), (9, 4), (16, 5)])
    def squares(number: int, root: int) -> None:
        assert root**2 == number

    with pytest.raises(AssertionError) as raised:
        squares()
    lines = str(raised.value).splitlines()
    assert lines[0] == "2 of 4 fail"
    assert [line.partition(":")[0] for line in lines if line.startswith("number=")] == [
        "number=9, root=4",
        "number=16, root=5",
    ]
    assert raised.value.__cause__ is not None
    assert "number=9" not in str(raised.value.__cause__)


@each("name", ["one", "two"])
@each("text", ["a", "b"])
def test_every_pair_has_a_folder_and_patches_of_its_own(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(tmp_path.iterdir()) == []
    assert not hasattr(each, "patched")
    monkeypatch.setattr(each, "patched", True, raising=False)
    (tmp_path / name).write_text(text)


def test_a_fold_over_nothing_is_refused() -> None:
    with pytest.raises(AssertionError, match="there are no values for kind"):
        each("kind", [])
