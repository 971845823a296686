"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine and run; a loaded machine fails no test by being slow.
settings.register_profile("anisoalign", deadline=None, derandomize=True)
settings.load_profile("anisoalign")


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Return a folder for a Ray of the test's own; the path of a Unix socket may have 107 bytes."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Keep one Ray of two CPUs running, which every flow of the session uses and leaves running."""
    import ray

    # Not below tmp_path: the path of a Unix socket may have 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else a file in the home folder
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_TRAIN_V2_ENABLED", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=folder,
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with unpaired precomputed embeddings: texts.parquet and images.parquet."""
    from tests.cluster.samples import write_clouds

    return write_clouds(tmp_path_factory.mktemp("clouds"))


@pytest.fixture(scope="session")
def cloud_run(
    local_ray: None, clouds: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    """Return the output of a run on the precomputed clouds, and its summary; to be left alone."""
    from tests.cluster.samples import cloud_config, execute

    output = tmp_path_factory.mktemp("cloud-run") / "run"
    return output, execute(cloud_config(clouds, output))
