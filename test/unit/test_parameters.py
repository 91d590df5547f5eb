"""The node's parameters as plain data: complete, with the configs' own defaults, and explained in config/qa.yaml."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from vstream_ros.engine import EngineConfig
from vstream_ros.errors import ConfigError
from vstream_ros.memory import MemoryConfig
from vstream_ros.node.settings import Spec, build_settings, camera_specs, global_specs

CONFIG = Path(__file__).resolve().parents[2] / "config"


def specs(*cameras: str) -> list[Spec]:
    return global_specs() + [spec for camera in cameras or ("front",) for spec in camera_specs(camera)]


def values(*cameras: str, **changes) -> dict:
    found = {spec.name: spec.default for spec in specs(*cameras)}
    return {**found, "cameras": list(cameras or ("front",)), **changes}


def flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def yaml_values(name: str) -> dict:
    document = yaml.safe_load((CONFIG / name).read_text())
    assert list(document) == ["/**"]  # whatever the node's name and namespace
    return flatten(document["/**"]["ros__parameters"])


def test_every_field_of_the_configs_is_a_parameter_with_its_default():
    declared = {spec.name: spec.default for spec in specs()}
    different = {
        field.name: declared[field.name]
        for config in (EngineConfig, MemoryConfig)
        for field in dataclasses.fields(config)
        if declared[field.name] != field.default
    }
    # A node samples a live camera, where the API takes what it is given.
    assert different == {"sample_rate_hz": 2.0, "include_pending": False}


def test_no_parameter_is_declared_twice():
    names = [spec.name for spec in specs("front", "rear")]
    assert len(set(names)) == len(names)


def test_the_defaults_are_valid_and_arrive():
    settings = build_settings(values())
    assert settings.engine == EngineConfig()
    assert settings.memory == {"front": MemoryConfig(sample_rate_hz=2.0, include_pending=False)}
    assert settings.model == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_every_parameter_is_described():
    assert all(len(spec.description) > 10 for spec in specs())


def test_qa_yaml_names_exactly_the_parameters_with_their_defaults():
    assert yaml_values("qa.yaml") == {spec.name: spec.default for spec in specs()}


def test_qa_yaml_explains_each_parameter_beside_it():
    lines = (CONFIG / "qa.yaml").read_text().splitlines()
    for spec in specs():
        key = spec.name.rpartition(".")[2]
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        # Names that belong together may share the comment above them.
        above = next(line for line in reversed(lines[:at]) if ":" not in line or "#" in line)
        assert above.strip().startswith("#"), spec.name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("low_vram.yaml", {"star_memory_size": 14, "stream_window_size": 6, "decode_graphs": "off",
                           "max_pixels": 2 * 224 * 224}),
        ("long_video.yaml", {"star_memory_size": 60, "stream_window_size": 20}),
        ("low_latency.yaml", {"background_encoding": "full", "prefill_chunk_tubelets": 4}),
        ("high_quality.yaml", {"star_memory_size": 44, "stream_window_size": 16, "max_pixels": 720 * 480}),
    ],
)
def test_presets_hold_only_what_differs_and_take_effect_after_qa_yaml(name, changes):
    assert yaml_values(name) == changes
    settings = build_settings({**yaml_values("qa.yaml"), **yaml_values(name)})
    effective = {**vars(settings.engine), **vars(settings.memory["front"])}
    assert {key: effective[key] for key in changes} == changes


def test_whole_numbers_are_accepted_for_decimals():
    settings = build_settings(values(timeout_s=5, sample_rate_hz=4))
    assert settings.engine.timeout_s == 5.0
    assert isinstance(settings.engine.timeout_s, float)
    assert settings.memory["front"].sample_rate_hz == 4.0


def test_yamls_booleans_are_understood_where_a_word_is_meant():
    given = values(time_positions=True, background_encoding=False, drafts=False, decode_graphs=False)
    engine = build_settings(given).engine
    assert (engine.time_positions, engine.background_encoding) == ("true", "off")
    assert (engine.drafts, engine.decode_graphs) == ("off", "off")
    assert build_settings(values(drafts=True)).engine.drafts == "on"


def test_rate_zero_keeps_every_frame():
    assert build_settings(values(sample_rate_hz=0.0)).memory["front"].sample_rate_hz is None


def test_a_camera_has_its_own_memory_sizes_or_the_common_ones():
    changes = {"star_memory_size": 8, "rear.star_memory_size": 30}
    memory = build_settings(values("front", "rear", **changes)).memory
    assert list(memory) == ["front", "rear"]
    assert (memory["front"].star_memory_size, memory["rear"].star_memory_size) == (8, 30)
    assert memory["rear"].stream_window_size == MemoryConfig().stream_window_size


@pytest.mark.parametrize(
    ("topic", "transport", "subscribed"),
    [
        ("/cam/image", "raw", "/cam/image"),
        ("/cam/image", "compressed", "/cam/image/compressed"),
        ("/cam/image/compressed", "compressed", "/cam/image/compressed"),
    ],
)
def test_transports(topic, transport, subscribed):
    settings = build_settings(values(**{"front.image_topic": topic, "front.image_transport": transport}))
    assert settings.cameras[0].topic == subscribed
    assert settings.cameras[0].compressed == (transport == "compressed")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"star_memory_size": 3}, "star_memory_size must be an even number of frames >= 2, got 3"),
        ({"front.stream_window_size": 5}, r"stream_window_size .* got 5 \(camera front\)"),
        ({"sample_rate_hz": -1.0}, "sample_rate_hz .* got -1"),
        ({"sample_rate_hz": float("nan")}, "sample_rate_hz must be a number, got nan"),
        ({"timeout_s": "soon"}, "timeout_s must be a number, got 'soon'"),
        ({"timeout_s": True}, "timeout_s must be a number, got True"),
        ({"timeout_s": 0.0}, "timeout_s must be > 0, got 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be of type int, got 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens .* got 0"),
        ({"local_files_only": 1}, "local_files_only must be of type bool, got 1"),
        ({"time_positions": "later"}, "time_positions .* got 'later'"),
        ({"selection_method": "novel"}, "selection_method must be one of .*got 'novel'"),
        ({"selection_method": "semantic"}, "needs background_encoding 'vision' or 'full', got 'off'"),
        ({"qos_reliability": "maybe"}, "qos_reliability must be one of auto, reliable, best_effort, got 'maybe'"),
        ({"model": ""}, "model must name"),
        ({"cameras": []}, "at least one camera"),
        ({"cameras": None}, "at least one camera"),
        ({"cameras": ["front", "front"]}, "twice"),
        ({"cameras": ["model"]}, "choose another"),
        ({"front.image_transport": "h264"}, "front.image_transport must be one of raw, compressed, got 'h264'"),
        ({"front.image_topic": ""}, "front.image_topic must name a topic"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(changes, says):
    with pytest.raises(ConfigError, match=says) as error:
        build_settings(values(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a b", "1st", "front.left", "front-left", "_front"])
def test_impossible_camera_names(name):
    with pytest.raises(ConfigError, match="camera's name"):
        camera_specs(name)
