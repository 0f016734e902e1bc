"""The protocol that all processes share, and the only code that speaks Redis.

A module enters this package when two packages need it. `docs/protocol.md` explains what is decided here.
"""
