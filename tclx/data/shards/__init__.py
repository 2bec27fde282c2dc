"""Shards: images in a few large tar files, with an index of where each one lies."""
