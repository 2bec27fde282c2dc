"""What does a GPU do with tclx? Every check that needs one, in one command of less than ten minutes; see docs/gpu.md."""
