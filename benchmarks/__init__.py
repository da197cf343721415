"""Speed, measured and never asserted: each figure is a ratio of two things timed in turns in the same process."""
