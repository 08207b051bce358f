"""Checkpoints: what a run saves, and going on from it.

`checkpoint` saves, finds and loads; `state` is where training stands, `tensors` and `optimizer_state` what it holds,
`compatibility` what may have changed since. `retention` removes old ones. `lineage` and `verification` prove that each
follows from the one before. A checkpoint appears whole or not at all, and is loaded only when every file matches.
"""
