"""Turn configurations into records in the store: jobs, groups of jobs, sweeps and their executors."""
