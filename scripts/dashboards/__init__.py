"""Grafana's dashboards, generated: `python -m scripts.dashboards`. One module for each, `panels.py` is what they share.

A panel names its queries, says what it shows and which runbook says what to do. What is committed under
`monitoring/grafana/dashboards` is what this makes; a test compares the two.
"""
