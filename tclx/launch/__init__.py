"""Where runs are started, and in which order."""
