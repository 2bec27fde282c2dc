"""What is missing on this machine, or on the cluster, for tclx to work."""
