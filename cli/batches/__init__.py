"""`penstock batch`: batches as a client of the HTTP API sees them."""
