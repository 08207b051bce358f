"""Checkpoints: saving a run and resuming it.

`checkpoint` saves, finds, loads and removes; `state` is where training stands, `optimizer_state` the optimizer's part.
`compatibility` compares a checkpoint with the run that resumes it. `verification` proves that each follows from the one
before. A checkpoint appears whole or not at all, and is loaded only when every file matches.
"""
