"""What readers of ReVision's and LLaVA's shapes get of an export are the rows of the dataset."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.export.conversations import ConversationSettings, Exchange, templated
from pipeline.export.exporting import LAYOUTS
from pipeline.export.substitute_dataset import MOST_OPEN, SubstituteEmbeddings
from pipeline.schema import EMBEDDING
from tests.export.samples import captions, run, source_rows, write_substitutes


class Unpickler(pickle.Unpickler):
    """Knows the one name that numpy 1 and 2 share, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        assert (module, name) == ("numpy", "ndarray")
        return np.ndarray


def read_revision(folder):
    """What ReVision's dataset class does: all pickles to one mapping, then the list."""
    embeds = {}
    for path in sorted((folder / "embeddings").iterdir()):
        assert path.suffix == ".pkl"
        for item in Unpickler(io.BytesIO(path.read_bytes())).load():
            assert item.keys() == {"id", "embed"}
            embeds[item["id"]] = item["embed"]
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [(sample, embeds[sample["id"]]) for sample in samples]


def test_revision_reads_the_rows(rich_dataset, tmp_path):
    run(rich_dataset, tmp_path, "revision")
    wanted = source_rows(rich_dataset)
    found = read_revision(tmp_path)
    assert len(found) == len(wanted)
    for (sample, embed), row in zip(found, wanted, strict=True):
        turns = templated(ConversationSettings(), 0, row["id"], row["text"])
        assert sample == {"id": row["id"], "caption": row["text"], "conversations": turns}
        assert type(embed) is np.ndarray
        assert (embed.dtype, embed.shape) == (np.dtype("float32"), (8,))
        assert embed.tobytes() == row[EMBEDDING].astype(np.float32).tobytes()
        embed += 1  # it can be written to
        assert torch.from_numpy(embed).dtype == torch.float32


def test_pickles_name_nothing_that_a_numpy_lacks(dataset, tmp_path):
    run(dataset, tmp_path, "revision")
    for path in (tmp_path / "embeddings").iterdir():
        opcodes = list(pickletools.genops(path.read_bytes()))
        assert not {"GLOBAL", "INST", "OBJ"} & {one.name for one, _, _ in opcodes}
        names = [value for one, value, _ in opcodes if "UNICODE" in one.name]
        assert not [name for name in names if "_core" in name or "numpy." in name]
        with path.open("rb") as file:
            loaded = pickle.load(file)  # as a trainer does
        assert loaded[0]["embed"].flags.writeable


def test_revision_warns_of_pickles(dataset, tmp_path):
    run(dataset, tmp_path, "revision")
    assert "open only pickles that you trust" in (tmp_path / "README.md").read_text()


def shim(folder):
    """The dataset file of an export, imported from where it lies."""
    spec = importlib.util.spec_from_file_location("exported_shim", folder / "substitute_dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_llava_reads_the_rows(rich_dataset, tmp_path):
    run(rich_dataset, tmp_path, "llava")
    samples = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    rows = shim(tmp_path).SubstituteDataset(tmp_path)
    wanted = source_rows(rich_dataset)
    assert len(rows) == len(samples) == len(wanted)
    for index, row in enumerate(wanted):
        turns = templated(ConversationSettings(), 0, row["id"], row["text"])
        image = f"embeddings/{index // 10:05d}.npy#{index % 10}"
        assert samples[index] == {"id": row["id"], "image": image, "conversations": turns}
        found = rows[index]
        assert (found["id"], found["conversations"]) == (row["id"], turns)
        assert found["embedding"].dtype == torch.float32
        assert found["embedding"].numpy().tobytes() == row[EMBEDDING].astype("f4").tobytes()


def test_the_arrays_are_mapped_in_their_own_type(rich_dataset, tmp_path):
    run(rich_dataset, tmp_path, "llava")
    mapped = np.load(tmp_path / "embeddings" / "00000.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == source_rows(rich_dataset)[0][EMBEDDING].dtype


def test_the_shim_stands_alone_and_serves_workers(dataset, tmp_path):
    run(dataset, tmp_path, "llava")
    source = (tmp_path / "substitute_dataset.py").read_text()
    assert "pipeline" not in source
    rows = shim(tmp_path).SubstituteDataset(tmp_path)
    assert rows[3]["id"]
    assert rows.embeddings.__getstate__()["_files"] == {}
    loader = torch.utils.data.DataLoader(rows, batch_size=5, num_workers=2, collate_fn=list)
    ids = [one["id"] for batch in loader for one in batch]
    assert ids == [row["id"] for row in source_rows(dataset)]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("000.jpg", "is not like"),
        ("embeddings/00000.npy#-1", "is not like"),
        ("../out.npy#0", "leads out of"),
        ("/etc/passwd#0", "leads out of"),
        ("embeddings/00000.npy#10", "has 10 rows"),
    ],
)
def test_the_shim_refuses_what_is_no_row(dataset, tmp_path, image, said):
    run(dataset, tmp_path / "out", "llava")
    np.save(tmp_path / "out.npy", np.zeros((1, 8)))
    with pytest.raises(ValueError, match=said):
        shim(tmp_path / "out").SubstituteEmbeddings(tmp_path / "out")[image]


def given_columns():
    """Captions with conversations of their own, of which one is no good."""
    columns = captions(12)
    columns["conversations"] = [
        [
            {"from": "human", "value": f"Question {row}?"},
            {"from": "gpt", "value": f"Answer {row}."},
            {"from": "human", "value": "And?"},
            {"from": "gpt", "value": "No."},
        ][: 2 + 2 * (row % 2)]
        for row in range(12)
    ]
    return columns


@pytest.fixture
def talking(tmp_path):
    """Return what writes a dataset with given conversations: lists, or JSON text."""

    def write(columns, as_text=False):
        if as_text:
            texts = [None if one is None else json.dumps(one) for one in columns["conversations"]]
            columns = {**columns, "conversations": texts}
        root = str(tmp_path / "talking")
        write_substitutes(root, tmp_path / "talking-source", columns)
        return root

    return write


@pytest.mark.parametrize("as_text", [False, True], ids=["lists", "json"])
@pytest.mark.parametrize("name", ["revision", "llava"])
def test_given_conversations_are_passed_on(talking, tmp_path, name, as_text):
    columns = given_columns()
    run(talking(columns, as_text), tmp_path / "out", name)
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())
    given = dict(zip(columns["id"], columns["conversations"], strict=True))
    for sample in samples:
        first, *rest = sample["conversations"]
        wanted = given[sample["id"]]
        assert first == {"from": "human", "value": f"<image>\n{wanted[0]['value']}"}
        assert rest == wanted[1:]


def test_a_given_conversation_that_is_no_good_ends_it_or_gets_a_template(talking, tmp_path):
    columns = given_columns()
    columns["conversations"][4] = None
    columns["conversations"][5] = [{"from": "gpt", "value": "I begin."}] * 2
    root = talking(columns)
    with pytest.raises(ValueError, match=r"the conversation of id 'id-.*' cannot be trained on: "):
        run(root, tmp_path / "out", "llava")
    settings = ConversationSettings(
        invalid="template", templates=(Exchange(human="What?", gpt="{text}!"),)
    )
    run(root, tmp_path / "other", LAYOUTS["llava"](settings=settings))
    samples = json.loads((tmp_path / "other" / "samples.json").read_text())
    found = {one["id"]: one["conversations"] for one in samples}
    for row in (4, 5):
        answer = columns["text"][row].replace("<image>", "(image)") + "!"
        assert found[columns["id"][row]] == [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": answer},
        ]
    assert found[columns["id"][6]][1] == {"from": "gpt", "value": "Answer 6."}


def test_pretraining_wants_two_turns(talking, tmp_path):
    root = talking(given_columns())
    settings = ConversationSettings(pretraining=True)
    with pytest.raises(ValueError, match=r"it has 4 turns; conversations.pretraining wants two"):
        run(root, tmp_path / "out", LAYOUTS["revision"](settings=settings))
    settings = ConversationSettings(pretraining=True, invalid="template")
    run(root, tmp_path / "other", LAYOUTS["revision"](settings=settings))
    samples = json.loads((tmp_path / "other" / "samples.json").read_text())
    assert {len(one["conversations"]) for one in samples} == {2}
    assert all(one["conversations"][0]["value"].startswith("<image>") for one in samples)


def test_columns_of_conversations(talking, tmp_path):
    root = talking({**captions(4), "dialogue": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match="the dataset has no column talks"):
        run(root, tmp_path / "o", LAYOUTS["mds"](settings=ConversationSettings(column="talks")))
    with pytest.raises(ValueError, match=r"conversations.column: dialogue holds int64"):
        run(root, tmp_path / "o", LAYOUTS["mds"](settings=ConversationSettings(column="dialogue")))


def test_no_column_means_templates(talking, tmp_path):
    columns = given_columns()
    settings = ConversationSettings(column=None)
    run(talking(columns), tmp_path / "out", LAYOUTS["llava"](settings=settings, seed=3))
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())
    texts = dict(zip(columns["id"], columns["text"], strict=True))
    for one in samples:
        assert one["conversations"] == templated(settings, 3, one["id"], texts[one["id"]])


def test_the_shim_keeps_few_files_open(tmp_path: Path):
    for number in range(MOST_OPEN + 20):
        np.save(tmp_path / f"{number}.npy", np.full((2, 3), number, np.float16))
    embeddings = SubstituteEmbeddings(tmp_path)
    for _ in range(2):
        for number in range(MOST_OPEN + 20):
            assert embeddings[f"{number}.npy#1"].tolist() == [number] * 3
            assert len(embeddings._files) <= MOST_OPEN
