"""The worker: one process per GPU (or tensor-parallel group) with an engine inside. Imports `shared` only."""
