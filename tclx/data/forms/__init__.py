"""Rows of downstream tasks: what each kind of annotation holds, read from files or generated from scenes."""
