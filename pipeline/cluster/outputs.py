"""Where a run's results lie."""

from __future__ import annotations

from typing import Literal

from pipeline.config import ConfigError, RunConfig
from pipeline.storage import locations

Side = Literal["text", "image"]

_JOB_WORKING_DIRECTORY = "/runtime_resources/working_dir_files/"


def output(config: RunConfig, *parts: str) -> str:
    """Return a URL inside the run's output.

    Raises:
        ConfigError: for a relative path inside a submitted job, whose working directory is a copy
            that Ray throws away.
    """
    root = locations.absolute(config.output.path)
    if _JOB_WORKING_DIRECTORY in root:
        raise ConfigError(
            f"output.path is {config.output.path}, relative to the job's own copy of the working "
            "directory, which is lost when it ends; give an absolute path or a URL"
        )
    return locations.join(root, *parts)


def embeddings_root(config: RunConfig, side: Side) -> str:
    """Return where the encoded embeddings of a side are written."""
    return output(config, "embeddings", side)
