"""The command line: `penstock …`. Imports `shared` only; other processes are started, never imported."""
