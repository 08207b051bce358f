"""The conformance kit: what every architecture must be, as checks that a plugin's author takes with one import.

`case` has the models that are checked, `check` what a check is, `run` carries checks out; the other modules hold the
checks, one for each group of the table. Everything happens in fp32 with one thread.
"""
