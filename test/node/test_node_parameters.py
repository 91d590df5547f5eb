"""Parameters as ROS declares them and clients set them."""

from __future__ import annotations

import pytest
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters, SetParametersAtomically

from vstream_ros.errors import ConfigError
from vstream_ros.node.settings import camera_specs, global_specs


def value(python):
    kinds = {
        bool: ("bool_value", ParameterType.PARAMETER_BOOL),
        int: ("integer_value", ParameterType.PARAMETER_INTEGER),
        float: ("double_value", ParameterType.PARAMETER_DOUBLE),
        str: ("string_value", ParameterType.PARAMETER_STRING),
        list: ("string_array_value", ParameterType.PARAMETER_STRING_ARRAY),
    }
    field, kind = kinds[type(python)]
    return ParameterValue(type=kind, **{field: python})


def set_parameters(planner, **changes):
    request = SetParameters.Request(
        parameters=[ParameterMsg(name=name, value=value(python)) for name, python in changes.items()]
    )
    return planner.call(SetParameters, "/vstream/set_parameters", request).results


def test_exactly_the_described_parameters_are_declared(start, planner):
    start(cameras=["front", "rear"])
    names = set(planner.call(ListParameters, "/vstream/list_parameters", ListParameters.Request()).result.names)
    specs = {s.name: s for s in global_specs() + camera_specs("front") + camera_specs("rear")}
    foreign = {n for n in names if n == "use_sim_time" or n.startswith(("qos_overrides.", "start_type_description"))}
    assert names - foreign == set(specs)
    request = DescribeParameters.Request(names=sorted(specs))
    descriptors = planner.call(DescribeParameters, "/vstream/describe_parameters", request).descriptors
    assert [d.description for d in descriptors] == [specs[name].description for name in sorted(specs)]
    ranged = {d.name for d in descriptors if d.integer_range or d.floating_point_range}
    assert ranged == {name for name, spec in specs.items() if spec.low is not None}


def test_what_may_change_changes_and_counts(start, planner):
    node = start()
    results = set_parameters(planner, max_new_tokens=5, timeout_s=7, silent_camera_timeout_s=2.5, model="another")
    assert [r.reason for r in results if not r.successful] == []
    settings = node.node.settings
    assert (settings.engine.max_new_tokens, settings.engine.timeout_s) == (5, 7.0)
    assert (settings.silent_camera_timeout_s, settings.model) == (2.5, "another")


@pytest.mark.parametrize(
    ("name", "python", "says"),
    [
        ("max_pixels", 100_000, "configured"),
        ("star_memory_size", 10, "configured"),
        ("front.image_topic", "/other", "configured"),
        ("cameras", ["front", "rear"], "restart"),
        ("autostart", False, "restart"),
        ("timeout_s", -1.0, "timeout_s"),
        ("timeout_s", 0.0, "timeout_s must be > 0"),
        ("timeout_s", "soon", "must be a number"),
        ("max_new_tokens", 0, "max_new_tokens"),
        ("qos_reliability", "maybe", "one of auto"),
    ],
)
def test_what_may_not_change_is_refused_with_a_sentence(start, planner, name, python, says):
    node = start()
    before = node.node.settings
    (result,) = set_parameters(planner, **{name: python})
    assert not result.successful
    assert says in result.reason
    assert node.node.settings == before


def test_the_rest_changes_while_the_node_is_unconfigured(start, planner):
    node = start(autostart=False)
    (result,) = set_parameters(planner, max_pixels=100_000)
    assert result.successful, result.reason
    (refused,) = set_parameters(planner, **{"front.image_topic": "no topic"})
    assert not refused.successful
    assert "front.image_topic" in refused.reason
    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    assert node.node.engine.config.max_pixels == 100_000
    height, width = node.node.engine.frame_size(1080, 1920)
    assert height * width <= 100_000


def test_values_that_only_fit_together_are_set_together(start, planner):
    node = start(autostart=False)
    both = {"min_pixels": 300_000, "max_pixels": 400_000}
    (alone,) = set_parameters(planner, min_pixels=300_000)
    assert not alone.successful
    request = SetParametersAtomically.Request(
        parameters=[ParameterMsg(name=name, value=value(python)) for name, python in both.items()]
    )
    result = planner.call(SetParametersAtomically, "/vstream/set_parameters_atomically", request).result
    assert result.successful, result.reason
    assert node.node.settings.engine.min_pixels == 300_000


def test_an_undeclared_parameter_harms_nothing(start, planner):
    start()
    (result,) = set_parameters(planner, nonsense=1)
    assert not result.successful
    request = GetParameters.Request(names=["max_new_tokens"])
    assert planner.call(GetParameters, "/vstream/get_parameters", request).values[0].integer_value == 8


def test_a_misspelt_parameter_is_told(start, capfd):
    start(star_memory_sise=10)
    assert "do you mean star_memory_size?" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"star_memory_size": 3}, "star_memory_size must be an even number"),
        ({"timeout_s": "soon"}, "timeout_s must be a number"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"front.image_topic": "no topic"}, "front.image_topic is no valid topic name"),
        ({"cameras": ["front", "model"]}, "choose another"),
        ({"selection_method": "semantic"}, "needs background_encoding 'vision' or 'full', got 'off'"),
    ],
)
def test_a_bad_start_value_is_one_line(start, parameters, says):
    with pytest.raises(ConfigError, match=says) as error:
        start(**parameters)
    assert "\n" not in str(error.value)


def test_semantic_selection_is_accepted_where_features_are_computed_as_frames_come(start, planner):
    node = start(autostart=False)
    (refused,) = set_parameters(planner, selection_method="semantic")
    assert not refused.successful
    assert "set one of these, or selection_method 'pixel'" in refused.reason
    for changes in ({"background_encoding": "vision"}, {"selection_method": "semantic"}):
        (result,) = set_parameters(planner, **changes)
        assert result.successful, result.reason
    (refused,) = set_parameters(planner, background_encoding="off")
    assert not refused.successful
    node.node.autostart()
    node.wait_ready()
    assert node.node.engine.config.background_encoding == "vision"
    assert node.node.settings.memory["front"].selection_method == "semantic"
