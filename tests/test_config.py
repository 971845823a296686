"""The run configuration: strict, typed, explained, fingerprinted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.demo import DEMO_SETTINGS
from pipeline.config import (
    ConfigError,
    RunConfig,
    apply_settings,
    known_keys,
    load_config,
    nearest_key,
    parse_config,
)
from pipeline.config.reading import NAME

OWN = {"model": "python:package.module:Class"}
CONFIGS = Path(__file__).parent.parent / "configs"

KEYS = [key for key in known_keys() if f".{NAME}." not in key]
"""Those of no section under a name of the user's own."""


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    return str(caught.value)


def test_an_empty_configuration_is_the_default():
    config = parse_config({})
    assert config == RunConfig()
    assert config.units.rows_per_shard == 32_768
    assert config.rejects.max_share == 0.01
    assert config.align.method == "anisoalign"


def test_names_that_others_rely_on():
    promised = {
        "text.path",
        "image.path",
        "encoder.model",
        "encoder.pretrained",
        "encoder.precision",
        "align.method",
        "align.rank",
        "align.mixing",
        "aligner.path",
        "output.path",
        "units.rows_per_shard",
        "rejects.max_share",
        "ray.address",
        "seed",
        "calibration",
    }
    assert promised <= set(known_keys())


def test_every_key_of_the_schema_has_a_line():
    schema = RunConfig.model_json_schema()

    def node_of(key: str) -> dict[str, Any]:
        node = schema
        for name in key.split("."):
            reference = node.get("$ref", "").rpartition("/")[2]
            found = schema["$defs"].get(reference, node)
            node = found["additionalProperties"] if name == NAME else found["properties"][name]
        return node

    assert [key for key in known_keys() if not node_of(key).get("description")] == []


def test_every_known_key_can_be_set_to_its_default():
    values = parse_config({}).to_mapping()
    for key in KEYS:
        node = values
        for part in key.split("."):
            node = node[part]
        settings = [f"{key}={json.dumps(node)}"]
        assert parse_config(apply_settings({}, settings)) == RunConfig(), key


def test_plain_values_read_back():
    config = parse_config({"text": {"path": "x", "passed_through": ["a", "b"]}, "seed": 3})
    assert parse_config(config.to_mapping()) == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.to_mapping()))) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sead": 1}, "unknown key sead; did you mean seed?"),
        ({"align": {"rnk": 4}}, "unknown key align.rnk; did you mean align.rank?"),
        ({"rank": 4}, "unknown key rank; did you mean align.rank?"),
        ({"encoder": {"rank": 4}}, "unknown key encoder.rank; did you mean align.rank?"),
        ({"outputs": {"path": "x"}}, "unknown key outputs; did you mean output"),
        ({"align": {"prior": {"step": 1}}}, "did you mean align.prior.steps?"),
        ({"qqqq": 1}, "unknown key qqqq"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(values: dict[str, Any], said: str):
    assert refused(values).startswith(said) or said in refused(values)


def test_nothing_near_is_not_guessed():
    assert nearest_key("qqqq") is None
    assert refused({"qqqq": 1}) == "unknown key qqqq"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"seed": "1"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"units": {"rows_per_shard": 0}}, "units.rows_per_shard"),
        ({"units": {"rows_per_shard": True}}, "units.rows_per_shard"),
        ({"units": 3}, "units"),
        ({"rejects": {"max_share": 1.5}}, "rejects.max_share"),
        ({"rejects": {"max_share": "1%"}}, "rejects.max_share"),
        ({"encoder": {"precision": "fp8"}}, "encoder.precision"),
        ({"encoder": {"device": "gpu"}}, "encoder.device"),
        ({"encoder": {"device": "cuda:"}}, "encoder.device"),
        ({"encoder": {"compile": "yes"}}, "encoder.compile"),
        ({"encoder": {"options": [1]}}, "encoder.options"),
        ({"encoder": {"options": {"a": 1}}}, "encoder.options: these are for a class of your own"),
        ({"encoder": {"model": "python:a.b"}}, "encoder.model: python:a.b is not of the form"),
        ({"encoder": {"model": "python:a.b:"}}, "encoder.model: python:a.b: is not of the form"),
        ({"encoder": {"model": "python:a/b:C"}}, "encoder.model: python:a/b:C is not of the form"),
        ({"encoder": OWN | {"precision": "bf16"}}, "encoder.precision: a class of your own"),
        ({"encoder": OWN | {"pretrained": "x"}}, "encoder.pretrained: a class of your own"),
        ({"encoder": OWN | {"image_batch": 3}}, "encoder.image_batch: a class of your own"),
        ({"encoder": OWN | {"options": {"device": "cpu"}}}, "encoder.options.device: set"),
        (
            {"encoder": {"device": "cpu"}, "ray": {"gpus_per_actor": 0.5}},
            "ray.gpus_per_actor: 0.5 GPUs for an encoder.device that is cpu",
        ),
        ({"encoder": {"device": "cuda:1"}}, "encoder.device: cuda:1 is not among the GPUs of an"),
        (
            {"encoder": {"device": "cuda"}, "ray": {"gpus_per_actor": 0}},
            "encoder.device: cuda, but ray.gpus_per_actor is 0",
        ),
        (
            {"encoder": {"device": "cuda:2"}, "ray": {"gpus_per_actor": 2}},
            "encoder.device: cuda:2 is not among the GPUs of an actor",
        ),
        ({"output": {"dtype": "float64"}}, "output.dtype"),
        ({"text": {"path": 3}}, "text.path"),
        ({"text": {"passed_through": "conversations"}}, "text.passed_through"),
        ({"align": {"rank": 3}}, "align.rank"),
        ({"align": {"rank": -2}}, "align.rank"),
        ({"align": {"rank": 4.0}}, "align.rank"),
        ({"align": {"rank": "four"}}, "align.rank"),
        ({"align": {"mixing": "none"}}, "align.mixing"),
        ({"align": {"method": "anisoaling"}}, "align.method"),
        ({"align": {"method": "oracle"}}, "align.method: oracle is a diagnostic method"),
        ({"align": {"ridge": -0.1}}, "align.ridge"),
        ({"align": {"displacement": 1.5}}, "align.displacement"),
        ({"align": {"init": "bures"}}, "align.init"),
        ({"align": {"shrinkage": "oas"}}, "align.shrinkage"),
        ({"align": {"isometry_weight": -1.0}}, "align.isometry_weight"),
        ({"align": {"isometry_weight": float("inf")}}, "align.isometry_weight"),
        ({"align": {"refiner": {"bounds": "loose"}}}, "align.refiner.bounds"),
        ({"align": {"refiner": {"harmonics": 0}}}, "align.refiner.harmonics"),
        ({"align": {"prior": {"harmonics": 1.5}}}, "align.prior.harmonics"),
        ({"align": {"moment": {"map": "linear"}}}, "align.moment.map"),
        ({"align": {"permuted": {"images": 0}}}, "align.permuted.images"),
        ({"align": {"oracle": {"share": 2.0}}}, "align.oracle.share"),
        ({"align": {"oracle": {"directions": "all"}}}, "align.oracle.directions"),
        ({"align": {"c3": {"deviation": -0.1}}}, "align.c3.deviation"),
        ({"align": {"c3": {"sd": 0.1}}}, "unknown key align.c3.sd"),
        ({"align": {"prior": {"steps": "many"}}}, "align.prior.steps"),
        ({"align": {"prior": {"batch_size": 0}}}, "align.prior.batch_size"),
        ({"align": {"noise": {"smallest": 0.0}}}, "align.noise"),
        ({"align": {"noise": {"largest": 2.0}}}, "align.noise.largest"),
        ({"align": {"refiner": {"phase_bound": -1.0}}}, "align.refiner.phase_bound"),
        ({"ray": {"encode_actors": 0}}, "ray.encode_actors"),
        ({"ray": {"encode_actors": "many"}}, "ray.encode_actors"),
        ({"ray": {"gpus_per_actor": -1}}, "ray.gpus_per_actor"),
        ({"train": {"workers": -1}}, "train.workers"),
        ({"calibration": "none"}, "calibration"),
    ],
)
def test_wrong_values_name_their_key(values: dict[str, Any], key: str):
    message = refused(values)
    assert message.startswith(key), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"sources": {"a": {}}}, "text.sources.a.path is not set"),
        ({"sources": {"a b": {"path": "x"}}}, "the name 'a b' is not made of letters"),
        ({"sources": {"a": {"path": "x"}}, "path": "y"}, "text.path stands beside text.sources"),
        (
            {"sources": {"a": {"path": "x"}}, "text_column": "y"},
            "text.text_column stands beside text.sources; set it in each source "
            "(text.sources.NAME.text_column)",
        ),
        (
            {"sources": {"a": {"path": "x", "weight": 1}, "b": {"path": "y"}}},
            "text.sources.b has no weight while a has",
        ),
        ({"sources": {"a": {"path": "x"}}, "passed_through": ["source"]}, "text.passed_through"),
        ({"sources": {"a": {"path": "x", "weigth": 1}}}, "text.sources.a.weigth"),
    ],
)
def test_sources_that_cannot_be_mixed(text: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        parse_config({"text": text})
    assert said in str(caught.value)


def test_keys_of_before_are_told_where_they_went():
    with pytest.raises(ConfigError, match=r"did you mean text\.over_long"):
        parse_config({"rejects": {"truncated": "reject"}})


def test_a_glob_is_no_alias():
    assert apply_settings({}, ["text.path=*.csv"]) == {"text": {"path": "*.csv"}}


@pytest.mark.parametrize("side", ["text", "image"])
def test_data_sets_are_described_where_there_is_one(side: str):
    with pytest.raises(ConfigError, match=rf"{side}\.hub is for the format datasets"):
        parse_config({side: {"path": "a.txt", "hub": {"split": "val"}}})


def test_a_mixture_reads_back():
    sources = {"a": {"path": "x", "weight": 1}, "b": {"path": "y", "weight": 2.5, "max_rows": 9}}
    config = parse_config({"text": {"sources": sources}})
    assert parse_config(config.to_mapping()) == config
    assert apply_settings({}, ["text.sources.a.path=x"]) == {
        "text": {"sources": {"a": {"path": "x"}}}
    }


def test_every_mistake_is_named_once():
    message = refused({"sead": 1, "units": {"rows_per_shard": 0}, "align": {"rank": "x"}})
    assert message.count(";") >= 2
    for said in ("sead", "units.rows_per_shard", "align.rank"):
        assert said in message


def test_a_mixing_may_be_learned_and_every_start_be_named():
    for init in ("radial", "block", "subspace", "gromov"):
        config = parse_config({"align": {"mixing": "learned", "init": init}})
        assert (config.align.mixing, config.align.init) == ("learned", init)


@pytest.mark.parametrize("rank", ["auto", 2, 64])
def test_ranks_that_are_allowed(rank: Any):
    assert parse_config({"align": {"rank": rank}}).align.rank == rank


@pytest.mark.parametrize(
    ("device", "gpus"),
    [
        *(("auto", gpus) for gpus in ("auto", 0, 0.5, 2)),
        *(("cpu", gpus) for gpus in ("auto", 0)),
        *(("cuda", gpus) for gpus in ("auto", 0.5, 1)),
        ("cuda:0", "auto"),
        ("cuda:1", 2),
    ],
)
def test_devices_and_gpus_that_go_together(device: str, gpus: Any):
    values = {"encoder": {"device": device}, "ray": {"gpus_per_actor": gpus}}
    assert parse_config(values).encoder.device == device


def test_a_class_of_ones_own_takes_options_and_a_device():
    options = {"width": 8, "layers": [1, {"deep": None}]}
    config = parse_config({"encoder": OWN | {"options": options, "device": "cuda"}})
    assert config.encoder.options == options
    assert parse_config(config.to_mapping()) == config
    settings = ["encoder.model=python:mine:Encoder", "encoder.options.width=9"]
    assert parse_config(apply_settings({}, settings)).encoder.options == {"width": 9}


def test_an_integer_is_a_float():
    assert parse_config({"rejects": {"max_share": 1}}).rejects.max_share == 1.0


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3


# -- settings --------------------------------------------------------------------------------------


def test_settings_lie_over_values_and_leave_them_alone():
    values = {"align": {"rank": 8, "method": "realign"}, "seed": 1}
    settings = ["align.rank=32", "text.path=a=b.txt", "seed=2", "rejects.check_ids=false"]
    assert apply_settings(values, settings) == {
        "align": {"rank": 32, "method": "realign"},
        "seed": 2,
        "text": {"path": "a=b.txt"},
        "rejects": {"check_ids": False},
    }
    assert values == {"align": {"rank": 8, "method": "realign"}, "seed": 1}


def test_the_last_setting_counts():
    assert apply_settings({}, ["seed=1", "seed=2"]) == {"seed": 2}


def test_settings_are_yaml():
    settings = ["text.passed_through=[a, b]", "text.path=null", "align.rank=auto", "seed="]
    assert apply_settings({}, settings) == {
        "text": {"passed_through": ["a", "b"], "path": None},
        "align": {"rank": "auto"},
        "seed": None,
    }


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("align.rank", "--set takes KEY=VALUE"),
        ("=3", "--set takes KEY=VALUE"),
        ("seed.x=3", "seed is a value, not a section"),
        ("text.path=[a", "the value is not YAML"),
    ],
)
def test_settings_that_cannot_be_read(setting: str, said: str):
    with pytest.raises(ConfigError, match="--set") as caught:
        apply_settings({"seed": 1}, [setting])
    assert said in str(caught.value)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path):
    load_config(path)


def test_the_demo_is_its_file():
    assert yaml.safe_load((CONFIGS / "demo.yaml").read_text()) == DEMO_SETTINGS
    assert load_config(CONFIGS / "demo.yaml") == parse_config(DEMO_SETTINGS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a\n- b\n", "must hold a mapping of sections, not list"),
        (b"seed: [1\n", "is not YAML"),
        (b"seed: \xff\n", "is not UTF-8 text"),
        (b"sead: 1\n", "unknown key sead; did you mean seed?"),
        (b"seed: 2020-01-01\n", "not plain YAML"),
        (b"!!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["lost.yaml", ""])
def test_files_that_are_not_there(tmp_path: Path, place: str):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / place)


def test_an_empty_file_takes_the_defaults(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("")
    assert load_config(tmp_path / "run.yaml", ["seed=4"]).seed == 4


# -- fingerprints ----------------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_sections_named():
    plain, other = parse_config({}), parse_config({"output": {"path": "elsewhere"}})
    assert plain.fingerprint() == parse_config({"seed": 0}).fingerprint()
    assert plain.fingerprint() != other.fingerprint()
    assert plain.fingerprint("align", "seed") == other.fingerprint("align", "seed")
    assert plain.fingerprint("align") != plain.fingerprint("seed")


@given(st.sampled_from(KEYS), st.data())
def test_a_misspelt_key_finds_its_way_back(key: str, data: st.DataObject):
    """A letter left out of a name of five or more leads back to a key of that or a close name."""
    name = key.rpartition(".")[2]
    if len(name) < 5:
        return
    at = data.draw(st.integers(0, len(name) - 1))
    misspelt = key[: len(key) - len(name)] + name[:at] + name[at + 1 :]
    if misspelt in known_keys():
        return
    assert nearest_key(misspelt) is not None
