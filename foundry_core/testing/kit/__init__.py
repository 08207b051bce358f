"""The conformance kit: checks that every architecture must pass, available to plugin authors with one import.

`case` builds the models that are checked, `check` defines a check, `run` runs checks, and `processes`, `surroundings`,
`reopened`, `keys` and `json_schema` are tools for them. The other modules contain the checks. Unless a check is about
something else, everything runs in fp32 with one thread.
"""
