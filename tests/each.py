"""`each`: one test over many values, which lists those that fail.

For values that read as one rule. `pytest.mark.parametrize` remains for cases that need a report of their own: because
each takes long, or because what each one counts is printed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

Test = Callable[..., None]
CAPTURED = {"capsys", "capfd"}


def each(names: str | Sequence[str], values: Iterable[Any]) -> Callable[[Test], Test]:
    """Run a test with every value, as `pytest.mark.parametrize` takes them, and report all that fail in one error.

    Every value has an empty `tmp_path`, a `monkeypatch` of its own and nothing captured yet; other fixtures are the
    same for all.

    Args:
        names: Parameters of the test, separated by commas or as a sequence.
        values: A value for each run, or a tuple of as many as there are names.
    """
    parts = [part.strip() for part in names.split(",")] if isinstance(names, str) else list(names)
    rows = [(value,) if len(parts) == 1 else tuple(value) for value in values]
    assert rows, f"there are no values for {names}"

    def fold(test: Test) -> Test:
        signature = inspect.signature(test)
        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in parts]

        @functools.wraps(test)
        def folded(**given: Any) -> None:
            failures: list[tuple[str, BaseException]] = []
            for number, row in enumerate(rows):
                named = dict(zip(parts, row, strict=True))
                with pytest.MonkeyPatch.context() as own:
                    fresh = dict(given)
                    if "monkeypatch" in given:
                        fresh["monkeypatch"] = own
                    if "tmp_path" in given:
                        fresh["tmp_path"] = given["tmp_path"] / str(number)
                        fresh["tmp_path"].mkdir()
                    for captured in CAPTURED & fresh.keys():
                        fresh[captured].readouterr()
                    try:
                        test(**fresh, **named)
                    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - a failure of this value
                        failures.append((_values(named), error))
            if failures:
                lines = [f"{which}: {type(error).__name__}: {error}" for which, error in failures]
                raise AssertionError("\n".join([f"{len(failures)} of {len(rows)} fail", *lines])) from failures[0][1]

        folded.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return folded

    return fold


def _values(named: dict[str, Any]) -> str:
    texts = {name: getattr(value, "__name__", None) or repr(value) for name, value in named.items()}
    return ", ".join(f"{name}={text if len(text) <= 60 else f'{text[:57]}...'}" for name, text in texts.items())
