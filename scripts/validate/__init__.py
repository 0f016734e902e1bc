"""`make validate`: everything that is no Python, read by the tools that will read it in earnest."""
