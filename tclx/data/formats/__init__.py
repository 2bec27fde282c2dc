"""The formats of annotation files, a file each: what is written in them, as rows with the keys of a form."""
