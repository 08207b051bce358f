"""Atomic files and folders, locks, manifests: the only package that writes to the disk. Light."""
