"""This machine: runs in the foreground, and a queue that outlives the terminal."""
