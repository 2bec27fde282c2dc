"""Pages for people: one HTML file that opens anywhere, without a network."""
