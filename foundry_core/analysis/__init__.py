"""Analysis of trained runs: runs as tables, comparisons, and the text that a run has seen."""
