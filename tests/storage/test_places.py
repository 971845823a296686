import pytest

from pipeline.storage import locations


@pytest.mark.parametrize(
    "relative",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        ".",
        "a/./b",
        "a\0b",
        "a\\..\\b",
        "~/x",
        "s3://b/x",
        "z::x",
    ],
)
def test_join_inside_refuses_to_leave(relative):
    with pytest.raises(ValueError, match="refused"):
        locations.join_inside("/root", relative)


def test_join_inside_stays():
    assert locations.join_inside("/root/", "data/x.parquet") == "/root/data/x.parquet"


def test_links_below_a_root_are_refused_and_the_root_may_be_one(tmp_path):
    real, outside = tmp_path / "real", tmp_path / "outside"
    (real / "data").mkdir(parents=True)
    outside.mkdir()
    (outside / "x").write_bytes(b"outside")
    (tmp_path / "root").symlink_to(real)
    root = str(tmp_path / "root")
    (real / "data" / "file").symlink_to(outside / "x")
    (real / "folder").symlink_to(outside)
    (real / "dangling").symlink_to(outside / "none")
    for relative in ("data/file", "folder/x", "folder/new/x", "dangling"):
        for shape in (root, f"file://{root}"):
            with pytest.raises(ValueError, match=r"symbolic link.*refused"):
                locations.join_inside(shape, relative)
    assert locations.join_inside(root, "data/new/x") == f"{root}/data/new/x"


@pytest.mark.parametrize("url", ["", "a\0b", "nosuchprotocol://x"])
def test_what_is_no_location(url):
    with pytest.raises(ValueError):
        locations.resolve(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/local/path?x=1", "/local/path?x=1"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("s3://id:secret@bucket/key", "s3://***@bucket/key"),
        ("https://h/x?X-Amz-Signature=secret", "https://h/x?***"),
        ("sftp://me:se@cret@host/x and s3://b", "sftp://***@host/x and s3://b"),
    ],
)
def test_credentials_are_masked(text, shown):
    assert locations.redact_url(text) == shown


def test_local_places_are_told_from_stores():
    for place in ("data", "/data/*.parquet", "file:///data"):
        assert locations.is_local(place)
    for place in ("s3://bucket/x", "memory://x"):
        assert not locations.is_local(place)


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locations.absolute("data") == str(tmp_path / "data")
    assert locations.absolute("s3://bucket/x/") == "s3://bucket/x"
