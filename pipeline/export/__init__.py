"""Exports: a version of a dataset as the files that a trainer reads."""

FORMATS = ("hf", "webdataset", "revision", "llava", "mds", "npy")
"""Every format of `anisoalign export --format`."""

CONVERSATIONAL_FORMATS = ("webdataset", "revision", "llava", "mds")
"""The formats that hold conversations, made as the `conversations` section says."""
