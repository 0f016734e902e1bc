"""The demo model: the corpus it is taught, and the code that trains, checks and describes it."""
