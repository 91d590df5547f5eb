"""vstream-tiny in the installed node: a bag of the shapes world at 640x480, questions through the service, and the same
answers from the engine without ROS. ``make eval-node`` does it for many scenes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from support.node_agreement import CAMERA, PARAMETERS, SEED, ask_both, make_engine, questions, scenes
from support.ros_client import DOMAIN
from support.shapes_accuracy import clip_views
from vstream_ros.demo.scene import START_NS, record_scene
from vstream_ros.demo.session import TOPIC, node_session
from vstream_ros.demo.shapes import play_whole
from vstream_ros.engine.answers import Question
from vstream_ros.replay.ask import feed
from vstream_ros.replay.sources import open_source

OUT = Console(quiet=True)
ONCE = ("now", "direction", "first", "last", "ever", "before", "count", "total", "describe")
WANTED = Counter({**dict.fromkeys(ONCE, 1), "colour": 2, "where": 2})


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.setenv("VSTREAM_DOMAIN_ID", str(DOMAIN))  # the session would choose one of its own
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path))
    return tmp_path


def test_the_node_answers_as_offline_inference_does(workdir):
    scene, end_s = next(scenes(SEED))
    (bag,) = record_scene(scene, [end_s], workdir, TOPIC, OUT, compressed=False)
    with make_engine("vstream-tiny") as engine:
        with open_source(bag) as source:
            read = feed(engine, source, {TOPIC: CAMERA}).read
        (clip,) = engine.clips()
        qas = questions(clip_views(scene, clip.tubelets, START_NS), WANTED, np.random.default_rng(1))
        assert len(qas) >= 8
        with node_session(workdir, "vstream-tiny", OUT, compressed=False, parameters=PARAMETERS) as session:
            play_whole(session, bag, 4.0, OUT)
            assert session.client.frames_received() == read == 4 * end_s
            answers = list(ask_both(session, engine, scene, qas, OUT))
        assert [node for _, node, _ in answers] == [offline for _, _, offline in answers]

        # Would other frames be noticed? The same ones mirrored.
        engine.clear()
        for tubelet in clip.tubelets:
            for frame, stamp_ns in zip(tubelet.frames, tubelet.stamps_ns, strict=False):
                engine.add_frame(frame[:, ::-1], camera=CAMERA, stamp_ns=stamp_ns)
        mirrored = [engine.submit(Question(qa.question)).future.result().text for qa in qas]
        assert mirrored != [node for _, node, _ in answers]
