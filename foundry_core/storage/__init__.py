"""The one door to the disk: atomic files and folders, locks, manifests. Light.

Whatever the project writes goes through here, so that it appears whole or not at all.
"""
