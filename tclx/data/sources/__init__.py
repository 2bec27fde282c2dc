"""The kinds of data that `data.train`, `data.val` and `data.test` may name, a file each."""
