import threading
import uuid

import pytest

from pipeline.storage import locations


@pytest.fixture(params=["local", "file", "memory"])
def root(request, tmp_path):
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/root"
    return str(tmp_path / "root") if request.param == "local" else f"file://{tmp_path}/root"


def test_what_is_written_is_read_and_listed(root):
    locations.write_bytes(locations.join(root, "b", "two.bin"), b"0123456789")
    locations.write_bytes(locations.join(root, "one.bin"), b"1")
    locations.write_bytes(locations.join(root, ".hidden"), b"1")
    listed = locations.list_files(root)
    assert [(entry.name, entry.size) for entry in listed] == [("b/two.bin", 10), ("one.bin", 1)]
    assert locations.read_bytes(listed[0].url) == b"0123456789"
    assert locations.read_bytes(listed[0].url, 2, 5) == b"234"
    assert locations.exists(locations.join(root, "one.bin"))
    assert locations.is_folder(root)
    assert [e.name for e in locations.glob_files(locations.join(root, "b", "*.bin"))] == ["two.bin"]
    locations.remove(listed[0].url)
    assert not locations.exists(listed[0].url)


def test_a_missing_folder_lists_nothing_and_a_missing_file_is_not_found(root):
    assert locations.list_files(root) == []
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing"):
        locations.read_bytes(locations.join(root, "nothing"))


def test_all_operations_at_every_place(place):
    where = locations.join(place, "a", "b?[x]*.bin")
    assert not locations.exists(where)
    assert not locations.is_folder(place + "/a")
    locations.write_bytes(where, b"0123456789")
    locations.write_bytes(where, b"9876543210")
    assert locations.exists(where)
    assert locations.is_folder(place + "/a")
    assert locations.read_bytes(where) == b"9876543210"
    assert locations.read_bytes(where, 2, 5) == b"765"
    assert locations.read_bytes(where, 8) == b"10"
    assert locations.read_bytes(where, 8, 99) == b"10"
    assert locations.read_bytes(where, 5, 5) == b""
    (entry,) = locations.list_files(place)
    assert (entry.url, entry.name, entry.size) == (where, "a/b?[x]*.bin", 10)
    assert [found.url for found in locations.glob_files(place + "/a/b*.bin")] == [where]
    locations.remove(where)
    locations.remove(where)
    assert not locations.exists(where)
    assert locations.list_files(place) == []
    for missing in (where, place):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            locations.file_entry(missing)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        locations.open_for_reading(where)


def test_identity_changes_with_the_content(place):
    url = locations.join(place, "one.bin")
    locations.write_bytes(url, b"same")
    first = locations.file_entry(url)
    assert first.identity
    assert locations.list_files(place)[0].identity == first.identity
    assert locations.glob_files(place + "/*.bin")[0].identity == first.identity
    assert locations.file_entry(url) == first
    locations.write_bytes(url, b"else")
    assert locations.file_entry(url).identity != first.identity


def test_of_many_creators_one_wins(place):
    for round_ in range(3 if place.startswith("s3:") else 30):
        url = locations.join(place, str(round_), "one.json")
        barrier = threading.Barrier(4)
        won = []

        def create(index, url=url, barrier=barrier, won=won):
            barrier.wait()
            if locations.create_exclusively(url, b"%d" % index):
                won.append(index)

        threads = [threading.Thread(target=create, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [locations.read_bytes(url)] == [b"%d" % index for index in won]
        assert [entry.name for entry in locations.list_files(place + f"/{round_}")] == ["one.json"]


def test_creating_in_memory():
    url = f"memory://{uuid.uuid4().hex}/one"
    assert locations.create_exclusively(url, b"ours")
    assert not locations.create_exclusively(url, b"theirs")
    assert locations.read_bytes(url) == b"ours"
