"""From annotation files, images and generated scenes to batches of tensors."""
