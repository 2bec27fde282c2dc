"""What runs that have trained are used for: evaluated, exported, uploaded, arranged."""
