"""From annotation files, pictures and generated scenes to batches of tensors."""
