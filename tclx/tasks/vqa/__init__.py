"""Questions about images: an answer decoder, ranking of a list of answers, open generation, VQA's accuracy."""
