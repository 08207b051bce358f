"""What has been trained, looked at: runs as tables, comparisons, what a run has seen."""
