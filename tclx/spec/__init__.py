"""What to run, as data: pydantic sections and the YAML they are read from. Nothing heavy is imported here."""
