"""Recordings through the real engine, with random weights: what is fed, what is asked, what is reported."""

from __future__ import annotations

import json

import cv2
import pytest
from rich.console import Console

from support.replay_media import (
    MILLISECOND,
    TOPIC,
    compressed_cdr,
    image_bag,
    image_cdr,
    pictures,
    write_bag,
    write_video,
)
from vstream_ros.cli import main
from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.replay.ask import Reply, answer_questions, camera_names, feed
from vstream_ros.replay.bags import COMPRESSED_IMAGE, IMAGE
from vstream_ros.replay.sources import open_source
from vstream_ros.replay.terminal import metrics_table, print_reply
from vstream_ros.synthetic.random_model import random_model, write_random_checkpoint

REAR = "/rear/compressed"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_engine():
    engines = []

    def make(cameras, rate_hz=2.0):
        model, processor = random_model()
        memory = MemoryConfig(sample_rate_hz=rate_hz)
        engines.append(
            DelayedBatchInferenceEngine(
                model, processor, device="cpu", memory=dict.fromkeys(cameras, memory), max_new_tokens=3
            )
        )
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def video(tmp_path):
    """2 s at 10 Hz."""
    return write_video(tmp_path / "v.mkv", pictures(20, 60, 80), [i * 100 for i in range(20)])


@pytest.fixture
def two_cameras(tmp_path):
    """A bag of 2 s at 10 Hz: raw images in front, JPEGs at the back, of which the sixth is damaged."""
    messages = []
    for index, picture in enumerate(pictures(20, 60, 80)):
        stamp = 100 * NANOSECONDS + index * 100 * MILLISECOND
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        messages.append((TOPIC, IMAGE, stamp, image_cdr(picture, stamp)))
        messages.append((REAR, COMPRESSED_IMAGE, stamp + 1, compressed_cdr(jpeg[: 40 if index == 5 else None], stamp)))
    return write_bag(tmp_path / "bag", messages)


def test_only_sampled_frames_are_decoded_and_kept(make_engine, video, monkeypatch):
    with open_source(video) as source:
        cameras = camera_names(source.topics)
        engine = make_engine(cameras.values())
        decoded = []
        frame_class = type(next(iter(source)))
        original = frame_class.rgb
        monkeypatch.setattr(frame_class, "rgb", lambda self, size=None: decoded.append(1) or original(self, size))
        progress = []
        fed = feed(engine, source, cameras, lambda *call: progress.append(call))
    assert (fed.read, fed.damaged) == (20, 0)
    assert fed.kept in (4, 5)  # 2 s at 2 Hz, from slot to slot
    assert len(decoded) == fed.kept
    assert [read for read, _ in progress] == list(range(1, 21))
    (status,) = engine.status().cameras
    assert (status.camera, status.frames_offered, status.frames_kept) == ("video", 20, fed.kept)


def test_each_topic_is_a_camera_and_a_damaged_image_is_counted(make_engine, two_cameras):
    with open_source(two_cameras) as source:
        cameras = camera_names(source.topics)
        assert cameras == {TOPIC: "camera/image_raw", REAR: "rear/compressed"}
        engine = make_engine(cameras.values(), rate_hz=10.0)
        fed = feed(engine, source, cameras)
    assert (fed.read, fed.kept, fed.damaged) == (40, 39, 1)
    assert "jpeg" in fed.last_fault
    front, rear = engine.status().cameras
    assert (front.frames_kept, front.frames_rejected) == (20, 0)
    assert (rear.frames_kept, rear.frames_rejected) == (19, 1)


def test_a_damaged_message_is_counted_as_well(make_engine, tmp_path):
    cdrs = [image_cdr(picture, (i + 1) * NANOSECONDS) for i, picture in enumerate(pictures(4, 60, 80))]
    cdrs[2] = cdrs[2][:100]
    with open_source(write_bag(tmp_path / "bag", ((TOPIC, IMAGE, i + 1, cdr) for i, cdr in enumerate(cdrs)))) as source:
        cameras = camera_names(source.topics)
        fed = feed(make_engine(cameras.values()), source, cameras)
    assert (fed.read, fed.kept, fed.damaged) == (3, 3, 1)
    assert TOPIC in fed.last_fault


def test_a_question_that_fails_is_a_reply_and_the_next_is_asked(make_engine, video):
    with open_source(video) as source:
        cameras = camera_names(source.topics)
        engine = make_engine(cameras.values())
        feed(engine, source, cameras)
    first, empty, last = answer_questions(engine, ["What?", "  ", "Who?"])
    assert not first.error_code
    assert first.metrics["encoding_latency"] > 0
    assert (empty.error_code, empty.metrics) == ("INVALID_REQUEST", {})
    assert empty.message
    assert last.metrics["cache_hit"]
    assert "encoding_latency" not in last.metrics


def test_the_command_prints_answers_and_metrics(video, checkpoint, capsys):
    assert main(["ask", str(video), "What?", "Who?", "--model", str(checkpoint), "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "Question 1: What?" in out
    assert "Question 2: Who?" in out
    assert "nothing to encode" in out


def test_the_command_s_json_is_one_document_on_stdout(two_cameras, checkpoint, capsys):
    arguments = ["ask", str(two_cameras), "What?", "", "--model", str(checkpoint), "--max-new-tokens", "2", "--json"]
    assert main([*arguments, "--topic", REAR, "--sample-rate", "10"]) == 1  # one question failed
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["frames"]["read"] == 20
    assert document["frames"]["damaged"] == 1
    answered, failed = document["answers"]
    assert answered["metrics"]["new_tokens"] <= 2
    assert answered["metrics"]["frames"] == document["frames"]["kept"]
    assert (failed["question"], failed["error_code"]) == ("", "INVALID_REQUEST")
    assert failed.keys() == {"question", "answer", "error_code", "message"}
    assert "1 damaged frames left out" in captured.err


def test_choices_on_the_command_line(video, checkpoint, capsys):
    arguments = ["ask", str(video), "Red?", "Blue?", "--model", str(checkpoint)]
    arguments += ["--choice", "y\x1b[2J", "--choice", "no"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("%") == 4
    assert "\x1b" not in out
    assert main([*arguments, "--json"]) == 0
    for answer in json.loads(capsys.readouterr().out)["answers"]:
        assert answer["probabilities"].keys() == {"y\x1b[2J", "no"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
        assert answer["confidence"] == max(answer["probabilities"].values())
        assert answer["probabilities"][answer["answer"]] == answer["confidence"]
    assert main([*arguments, "--json", "--choice", "no "]) == 1
    failed = json.loads(capsys.readouterr().out)["answers"]
    assert [reply["error_code"] for reply in failed] == ["INVALID_REQUEST"] * 2
    assert failed[0].keys() == {"question", "answer", "error_code", "message"}


def test_the_json_says_which_frames_were_shown_and_which_were_asked_about(tmp_path, checkpoint, capsys):
    """A bag in a folder, whose stamps are 99.999 s, 100.099 s, ...; memory keeps one of each half second."""
    bag = image_bag(tmp_path / "scene" / "0-2s", pictures(20, 60, 80))
    arguments = ["ask", str(tmp_path / "scene"), "What?", "--model", str(checkpoint), "--max-new-tokens", "2", "--json"]
    first, last = (100_000 - 1) * MILLISECOND, (100_000 + 1900 - 1) * MILLISECOND
    assert main(arguments) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["recording"] == str(bag)
    assert (whole["frames"]["first_stamp_ns"], whole["frames"]["last_stamp_ns"]) == (first, last)
    assert (whole["start_time_ns"], whole["end_time_ns"]) == (None, None)
    (answered,) = whole["answers"]
    stamps = answered["frame_stamps_ns"]
    assert len(stamps) == answered["metrics"]["frames"] == whole["frames"]["kept"] >= 4
    assert first == min(stamps) <= max(stamps) <= last
    assert set(answered["frame_cameras"]) == {"camera/image_raw"}
    assert len(answered["frame_cameras"]) == len(stamps)
    assert 0.0 < answered["confidence"] <= 1.0
    assert "error_code" not in answered

    assert main([*arguments, "--start-time", "101", "--end-time", "101.999999999"]) == 0
    part = json.loads(capsys.readouterr().out)
    assert (part["start_time_ns"], part["end_time_ns"]) == (101 * NANOSECONDS, 102 * NANOSECONDS - 1)
    shown = part["answers"][0]["frame_stamps_ns"]
    assert shown
    assert set(shown) < set(stamps)
    assert min(shown) > 100.5 * NANOSECONDS  # a tubelet of which one frame lies in the range is shown whole

    assert main([*arguments, "--start-time", "500"]) == 1
    (failed,) = json.loads(capsys.readouterr().out)["answers"]
    assert failed["error_code"] == "NO_FRAMES"


def test_a_model_that_is_not_there_is_one_line(video, tmp_path, capsys):
    assert main(["ask", str(video), "What?", "--model", str(tmp_path / "nothing")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("vstream: ")] == lines[-1:]
    assert "nothing" in lines[-1]


def test_an_answer_can_not_steer_the_terminal(capsys):
    console = Console(highlight=False, width=200)
    print_reply(console, 1, Reply("[red]Is that markup?", "\x1b[2J[bold]gone"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[2J[bold]gone" in out
    assert "[red]Is that markup?" in out


def test_the_table_tells_nothing_encoded_from_encoded_in_no_time(capsys):
    common = {
        "queue_latency": 0.0, "first_token_latency": 0.5, "generation_latency": 2.0, "total_latency": 2.5,
        "frames": 20, "tubelets": 10, "visual_tokens": 640, "prompt_tokens": 700, "new_tokens": 9,
        "passes": 4, "draft_tokens": 8, "draft_tokens_right": 5,
    }  # fmt: skip
    first = common | {"encoding_latency": 0.2, "cache_hit": False, "tubelets_reused": 0, "prompt_tokens_reused": 0}
    second = common | {"cache_hit": True, "tubelets_reused": 10, "prompt_tokens_reused": 660}
    Console(width=120).print(metrics_table([first, second]))
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "200.0 ms" in rows["encoding the frames"]
    assert "nothing to encode" in rows["encoding the frames"]
    assert "660 of 700" in rows["prompt tokens reused"]
    assert "5 of 8" in rows["drafted tokens right"]
    assert "2.50 s" in rows["question to answer"]


def test_a_recording_s_memory_is_drawn_without_a_model(two_cameras, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["memory", str(two_cameras), str(sheet), "--sample-rate", "10", "--star-memory-size", "2"]) == 0
    assert "40 frames were read" in capsys.readouterr().out
    few = cv2.imread(str(sheet))
    assert main(["memory", str(two_cameras), str(sheet), "--sample-rate", "1"]) == 0
    assert few.shape[1] == cv2.imread(str(sheet)).shape[1] == 1600
    assert few.shape[0] > cv2.imread(str(sheet)).shape[0] > 200  # two cameras of one row each


def test_answers_in_json_by_a_schema_given_as_text_or_as_a_file(checkpoint, video, tmp_path, capsys):
    schema = '{"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 3}'
    (tmp_path / "schema.json").write_text(schema)
    answers = []
    for given in (schema, str(tmp_path / "schema.json")):
        options = ["--model", str(checkpoint), "--device", "cpu", "--json", "--json-schema", given]
        assert main(["ask", str(video), "What?", "Who?", *options]) == 0
        answers.append([answer["answer"] for answer in json.loads(capsys.readouterr().out)["answers"]])
    assert answers[0] == answers[1]
    assert all(set(json.loads(answer)) <= {"red", "blue"} for answer in answers[0])


@pytest.mark.parametrize("name", ["sheet.txt", "sheet", "missing/sheet.png", "folder.png"])
def test_a_sheet_that_can_t_be_written_is_refused_before_the_work(video, tmp_path, capsys, name):
    (tmp_path / "folder.png").mkdir()
    for command in (["memory", str(video), str(tmp_path / name)],
                    ["ask", str(video), "What?", "--model", "/nowhere", "--memory-sheet", str(tmp_path / name)]):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert name in error
        assert "nowhere" not in error


def test_questions_and_the_sheet_are_about_one_memory(checkpoint, video, tmp_path, capsys):
    sheet = tmp_path / "sheet.jpg"
    options = ["--model", str(checkpoint), "--device", "cpu", "--max-new-tokens", "2", "--json"]
    assert main(["ask", str(video), "What?", *options, "--memory-sheet", str(sheet)]) == 0
    assert len(json.loads(capsys.readouterr().out)["answers"]) == 1
    assert cv2.imread(str(sheet)).shape[1] == 1600
