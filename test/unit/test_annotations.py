"""Annotations of published benchmarks, in small files of their form."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import eval_memory
from benchmarks.annotations import Item, read_annotations
from support.replay_media import write_video
from vstream_ros.errors import InvalidRequestError
from vstream_ros.synthetic.shapes_world import Scene

OVO = {
    "id": 3, "task": "EPM", "video": "/data/someone/Ego4D/clips/kitchen.mkv", "realtime": 4, "question": "What came?",
    "answer": "a red circle", "options": ["a blue square", "a red circle", "nothing"], "gt": 1,
}
OVO_FORWARD = [
    {"id": 7, "task": "REC", "video": "clips/kitchen.mkv", "activity": "jump",
     "test_info": [{"realtime": 2.5, "count": 0}, {"realtime": 5, "count": 2}]},
    {"id": 8, "task": "SSR", "video": "kitchen.mkv", "tutorial": "tea",
     "test_info": [{"realtime": 3, "step": "pour water", "type": 1}]},
    {"id": 9, "task": "CRR", "video": "kitchen.mkv", "question": "Who came?", "answer": "x", "ask_time": 1,
     "test_info": [{"realtime": 4, "type": 0}]},
]
STREAMING = {
    "time": "[0:00:00 - 0:01:00]", "video_categories": "talk_show", "video_path": "./videos/kitchen.mkv",
    "questions": [
        {"task_type": "Object Recognition", "question": "What is there?", "time_stamp": "00:00:03", "answer": "C",
         "options": ["A. a cat", "B.a dog", "C. a bird", "D. nothing"], "required_ability": "working memory"},
        {"task_type": "Object Recognition", "question": "Which?", "time_stamp": "0:05", "answer": "B",
         "options": ["one", "two", "three", "four"]},
    ],
}
VSTREAM = [
    {"id": "q1", "video_id": "kitchen", "question": "Is there a circle?", "answer": "yes", "answer_type": "Existence"},
    {"id": "q2", "video_id": "kitchen", "question": "And now?", "answer": "no", "answer_type": "Existence",
     "start_time": 0, "end_time": "00:04"},
]
REKV = {
    "video_id": "kitchen", "video_path": "rvs/ego/kitchen.mp4", "duration": 6.0,
    "conversations": [{"question": "What?", "answer": "A cup.", "answer_type": "Object", "end_time": 2.5}],
}


@pytest.fixture
def videos(tmp_path):
    """A folder with the few seconds of video that all of these are about."""
    folder = tmp_path / "videos"
    (folder / "clips").mkdir(parents=True)
    scene = Scene(3, 6.0)
    times = scene.stamps_s(4.0)
    frames = [scene.frame(time_s, (84, 112)) for time_s in times]
    write_video(folder / "clips" / "kitchen.mkv", frames, [round(1000 * time_s) for time_s in times])
    (folder / "kitchen.mkv").symlink_to(folder / "clips" / "kitchen.mkv")
    (folder / "kitchen.mp4").symlink_to(folder / "clips" / "kitchen.mkv")
    return folder


def read(tmp_path, videos, entries):
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(entries))
    return read_annotations(file, videos)


def test_ovo_bench(tmp_path, videos):
    (item,) = read(tmp_path, videos, [OVO])
    assert (item.benchmark, item.id, item.task, item.time_s, item.answer) == ("OVO-Bench", "3", "EPM", 4.0, "B")
    assert item.video == videos / "clips" / "kitchen.mkv"
    assert item.prompt == (
        "What came?\nA. a blue square\nB. a red circle\nC. nothing\nAnswer with the letter of the right option only."
    )


def test_ovo_bench_forward(tmp_path, videos):
    items = read(tmp_path, videos, OVO_FORWARD)
    assert [(i.id, i.task, i.time_s, i.answer) for i in items] == [
        ("7.0", "REC", 2.5, "0"), ("7.1", "REC", 5.0, "2"), ("8.0", "SSR", 3.0, "Yes"), ("9.0", "CRR", 4.0, "No")
    ]
    assert "jump" in items[0].prompt
    assert "pour water" in items[2].prompt
    assert "Who came?" in items[3].prompt
    assert not any(item.options for item in items)


def test_streaming_bench(tmp_path, videos):
    one, other = read(tmp_path, videos, [STREAMING])
    assert (one.benchmark, one.task, one.time_s, one.answer) == ("StreamingBench", "Object Recognition", 3.0, "C")
    assert one.options == ("a cat", "a dog", "a bird", "nothing")
    assert (other.time_s, other.answer, other.options) == (5.0, "B", ("one", "two", "three", "four"))


def test_vstream_qa(tmp_path, videos):
    one, other, third = read(tmp_path, videos, [*VSTREAM, REKV])
    assert (one.benchmark, one.id, one.task, one.time_s) == ("VStream-QA", "q1", "Existence", None)
    assert one.video == videos / "kitchen.mp4"
    assert (other.time_s, third.time_s, third.answer, third.prompt) == (4.0, 2.5, "A cup.", "What?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", True), ("b.", True), ("(B) a red circle", True), ("B: a red circle", True), ("A", False), ("C.", False),
        ("A red circle", True), ("a red circle.", True), ("The answer is B", True), ("The best option is A.", False),
        ("", False), ("Z", False), ("a blue square", False), ("Between them", False),
    ],
)
def test_a_choice_is_right_by_letter_or_words(tmp_path, text, expected):
    item = Item("", "", "", tmp_path, "", ("a blue square", "a red circle", "nothing"), "B", None)
    assert item.right(text) is expected


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("yes", "Yes, there is.", True), ("yes", "no", False), ("2", "2", True), ("2", "12", False),
        ("a cup.", "It is a Cup", True), ("no", "nothing", False), ("yes", "", False),
    ],
)
def test_an_open_answer_is_right_by_its_words(tmp_path, answer, text, expected):
    assert Item("", "", "", tmp_path, "", (), answer, None).right(text) is expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": 1}, "must be a list"),
        ([], "must be a list"),
        ([OVO, 7], "entry 1: must be an object, got int"),
        ([{"id": 1, "caption": "x"}], "entry 0: neither OVO-Bench"),
        ([OVO | {"video": "elsewhere/none.mp4"}], "video 'elsewhere/none.mp4' is not below"),
        ([OVO | {"gt": 3}], "gt must be the number of one of 3 options"),
        ([OVO | {"gt": True}], "gt must be a number"),
        ([OVO | {"options": "abc"}], "options must be a list"),
        ([OVO | {"options": []}], "options are missing"),
        ([OVO | {"realtime": -1}], "realtime must be a number >= 0"),
        ([OVO | {"realtime": float("nan")}], "realtime must be a number >= 0"),
        ([OVO | {"question": " "}], "question must be a text"),
        ([OVO_FORWARD[0] | {"test_info": [3]}], "test_info must be a list of objects"),
        ([OVO_FORWARD[1] | {"test_info": [{"realtime": 3, "type": 1}]}], "test_info 0: step must be a text"),
        ([STREAMING | {"questions": [STREAMING["questions"][0] | {"time_stamp": "1:2:3:4"}]}], "hours:minutes:seconds"),
        ([STREAMING | {"questions": [STREAMING["questions"][0] | {"answer": "E"}]}], "answer must be the letter"),
        ([VSTREAM[0] | {"end_time": "soon"}], "hours:minutes:seconds"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, videos, entries, message):
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read(tmp_path, videos, entries)
    assert "annotations.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path, videos):
    with pytest.raises(InvalidRequestError, match="can't be read"):
        read_annotations(tmp_path / "none.json", videos)
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(InvalidRequestError, match="is not JSON"):
        read_annotations(tmp_path / "broken.json", videos)
    (tmp_path / "good.json").write_text(json.dumps([OVO]))
    with pytest.raises(InvalidRequestError, match="is no folder"):
        read_annotations(tmp_path / "good.json", tmp_path / "none")


def test_no_path_leads_out_of_the_folder(tmp_path, videos):
    (tmp_path / "secret.mkv").write_bytes(b"x")
    with pytest.raises(InvalidRequestError, match="is not below"):
        read(tmp_path, videos, [OVO | {"video": "../secret.mkv"}])


def test_a_benchmark_is_scored_by_the_same_command(tmp_path, videos):
    scene = Scene(3, 6.0)
    first = scene.visits[0].name
    asked = {"video_id": "kitchen", "question": f"Was there a {first}?", "answer": "yes", "answer_type": "seen"}
    file = tmp_path / "annotations.json"
    moments = [{"id": 1}, {"id": 2, "end_time": 3.0}, {"id": 3, "end_time": 0}]
    file.write_text(json.dumps([asked | moment for moment in moments]))
    out = tmp_path / "out.json"
    arguments = ["--annotations", str(file), "--videos", str(videos), "--strategies", "ours", "last_4", "uniform"]
    assert eval_memory.main([*arguments, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["rows"], report["events"]) == ([], [])
    assert [(row["strategy"], row["kind"], row["n"]) for row in report["answers"]] == [
        ("ours", "seen", 3), ("last_4", "seen", 3)
    ]
    answers = {answer["id"]: answer for answer in report["given"]["ours"]}
    assert answers["1"]["right"], answers
    assert answers["3"]["answer"] == "", "nothing had been seen by then"
    assert not answers["3"]["right"]
    assert np.isclose(report["answers"][0]["right"], sum(a["right"] for a in answers.values()))
    file.write_text("{}")
    assert eval_memory.main([*arguments, "--out", str(out)]) == 1
