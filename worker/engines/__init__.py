"""Engines. Each third-party engine is imported only inside its own module, and only on demand."""
