"""The isolated runtime: one locked-down process per model; sealed files, unsealing, runtimes, wiping."""
