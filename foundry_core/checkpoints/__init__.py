"""Checkpoints: saving, loading, optimizer state, retention, lineage and verification."""
