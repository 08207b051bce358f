"""Checks of what a plugin adds besides an architecture: objectives, optimizers, tokenizer types, corpus steps, ...

`subjects` finds an extension by name, `check` defines checks and `run` runs them. `packages` contains the checks that
all kinds share, and the module of each kind its own. `experiment` has a small model, `retrained` a corpus for them.
"""
