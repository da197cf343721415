"""From a configuration to a record in the store: jobs, groups of jobs, sweeps, and where they are executed."""
