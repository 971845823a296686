"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every machine and run; a loaded machine fails no test by being slow.
settings.register_profile("anisoalign", deadline=None, derandomize=True)
settings.load_profile("anisoalign")
