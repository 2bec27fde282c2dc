"""Many runs of one experiment: which are tried next, who trains them, what they reached."""
