"""The one loop that drives every method, over lanes of jobs and chains."""
