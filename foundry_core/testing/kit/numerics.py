"""Checks of the group numerics."""
