"""Fixtures that the storage tests share."""

import pytest


@pytest.fixture
def quiet(object_store, bucket_folder, monkeypatch):
    """Return a bucket folder whose requests fail only as the test says, and the proxy.

    s3fs tries nothing again by itself, so that what survives a fault does so by our doing.
    """
    import s3fs

    object_store.proxy.share = 0
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    return bucket_folder, object_store.proxy
