"""Load on a Penstock that runs, as its clients see it. The standard library is enough; rich makes it pretty."""
