"""What is trained: modules that return embeddings and logits, never losses."""
