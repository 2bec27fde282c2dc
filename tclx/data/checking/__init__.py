"""What is in a data set? Every image looked at and compared with all others, captions counted, a cleaned list."""
