"""Where the numbers go: a JSON line a row, always, and a progress bar for whoever watches."""
