"""Studies: many runs that differ in a grid of settings, their conditions checked.

`definition` reads a study's YAML into cells (`grid` expands it, `matching` finds widths), `folder` writes what they
share, and `running` trains them, each in a process of its own. A cell is an ordinary run in an ordinary folder.
"""
