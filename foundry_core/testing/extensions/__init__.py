"""Checks of what a plugin adds besides an architecture: objectives, optimizers, tokenizer types, observers, commands.

`subjects` finds an extension by name, `check` defines and runs checks, `packages` contains those that all kinds share,
and the module of each kind contains its own. `experiment` has a small model and a corpus for them.
"""
