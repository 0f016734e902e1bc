"""The replica: a stateless FastAPI application between HTTP clients and the queue. Imports `shared` only."""
