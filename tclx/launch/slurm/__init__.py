"""A SLURM cluster: submission, its commands, what a job does."""
