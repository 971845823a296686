"""Measurements of whole runs, each beside a baseline in the same session."""
