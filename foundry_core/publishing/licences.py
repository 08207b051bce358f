"""The licences that the Hugging Face hub has an identifier for, as far as models and their texts use them. Light."""

from __future__ import annotations

from foundry_core.errors import UsageError, did_you_mean

LICENCES = {
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
    "bsd-2-clause": "BSD, 2 clauses",
    "bsd-3-clause": "BSD, 3 clauses",
    "gpl-2.0": "GNU GPL 2",
    "gpl-3.0": "GNU GPL 3",
    "lgpl-3.0": "GNU LGPL 3",
    "agpl-3.0": "GNU AGPL 3",
    "mpl-2.0": "Mozilla 2.0",
    "cc0-1.0": "CC0 1.0, no rights reserved",
    "cc-by-3.0": "CC BY 3.0",
    "cc-by-4.0": "CC BY 4.0",
    "cc-by-sa-3.0": "CC BY-SA 3.0",
    "cc-by-sa-4.0": "CC BY-SA 4.0",
    "cc-by-nc-4.0": "CC BY-NC 4.0",
    "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0",
    "cc-by-nd-4.0": "CC BY-ND 4.0",
    "cc-by-nc-nd-4.0": "CC BY-NC-ND 4.0",
    "odc-by": "ODC-BY",
    "odbl": "ODbL",
    "openrail": "OpenRAIL",
    "unlicense": "Unlicense",
    "unknown": "not known",
    "other": "another one",
}
"""Names by identifier."""


def check_licence(identifier: str) -> str:
    """Return the identifier of a licence in small letters.

    Raises:
        UsageError: The hub would refuse it.
    """
    small = identifier.strip().lower()
    if small not in LICENCES:
        near = did_you_mean(small, LICENCES) or " Such as apache-2.0, mit, cc-by-4.0, cc-by-sa-4.0, cc0-1.0 or other"
        raise UsageError(f"--licence {identifier}: the hub has no such identifier.{near}")
    return small
