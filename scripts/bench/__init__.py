"""`make bench`: what Penstock costs, beside its peers, in one run. `docs/performance.md` explains the figures."""
