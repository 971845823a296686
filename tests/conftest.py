"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.object_store import ObjectStore, forget_connections, running_object_store

# No test reaches for the hub: where there is no network, its client tries for a minute.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples on every machine and run; a loaded machine fails no test by being slow.
settings.register_profile("anisoalign", deadline=None, derandomize=True)
settings.load_profile("anisoalign")


_TAKES_MINUTES = (
    "cluster/test_nights.py",
    "benchmarks/test_runs.py",
    "benchmarks/test_faults.py",
    "demo/test_demo.py",
    "test_tutorial.py",
    "cluster/test_training.py",
    "cluster/test_nodes.py",
    "cluster/test_downstream.py",
    "jobs/test_jobs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: processes that share the suite end together then."""
    folder = Path(__file__).parent
    order = {folder / name: place for place, name in enumerate(_TAKES_MINUTES)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session", autouse=True)
def rays_of_its_own() -> Iterator[None]:
    """Keep the Rays that tests start apart from those of the process beside this one."""
    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Return a folder for a Ray of the test's own; the path of a Unix socket may have 107 bytes."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def local_ray(object_store: ObjectStore) -> Iterator[None]:
    """Keep one Ray of two CPUs running, which every flow of the session uses and leaves running.

    Its workers know the object store; the driver does inside `bucket_folder`.
    """
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
            with pytest.MonkeyPatch.context() as of_workers:
                object_store.use(of_workers)
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


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """Keep one S3 server running, with a proxy before it that makes 5 % of the requests fail."""
    with running_object_store() as store:
        yield store


_FOLDERS = itertools.count(1)


@pytest.fixture
def bucket_folder(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a fresh `s3://` folder that this process, and those it starts, can use.

    The workers of `local_ray` can; for those of another Ray see tests/object_store.py.
    """
    object_store.use(monkeypatch)
    object_store.proxy.reset()
    forget_connections()
    yield f"s3://{object_store.bucket}/folder-{next(_FOLDERS)}"
    object_store.proxy.reset()
    forget_connections()


@pytest.fixture(params=["folder", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty folder, once on this machine and once on a failing S3 store."""
    if request.param == "folder":
        return str(tmp_path)
    return str(request.getfixturevalue("bucket_folder"))
