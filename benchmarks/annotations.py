"""Questions of published streaming benchmarks, read from the JSON files as their authors publish them.

Which of the formats a file has is seen from its fields; of these only the named ones are read, others are ignored:

- OVO-Bench (Li et al., 2025): a list of ``{"id", "task", "video", "realtime", "question", "options", "gt"}``: seconds,
  and the number of the right option. Its forward tasks have ``"test_info"``, a list of moments: REC (``"activity"``; of
  a moment ``"realtime", "count"``), SSR (``"step"`` of each moment), CRR (``"question"``), with ``"type"`` 1 for yes.
- StreamingBench (Lin et al., 2024): a list of ``{"video_path", "questions": [{"task_type", "question", "time_stamp",
  "answer", "options"}]}``: ``[hours:]minutes:seconds`` since the video's beginning, the letter of the right option.
- VStream-QA (Zhang et al., 2024): a list of ``{"id", "video_id", "question", "answer", "answer_type"}``, where the
  question is asked in the stream with ``"end_time"``, in seconds or as above; without, at the video's end. Or a list of
  ``{"video_id" or "video_path", "conversations": [{"question", "answer", "answer_type", "end_time"}]}``.

Paths in these files are of the authors' machines: a video is looked for below the given folder by its whole path, then
by ever shorter ends of it, with the usual suffixes where it has none.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vstream_ros.errors import InvalidRequestError
from vstream_ros.replay.sources import VIDEO_SUFFIXES

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Item:
    """One question about a video."""

    benchmark: str
    """OVO-Bench, StreamingBench or VStream-QA."""
    id: str
    task: str
    video: Path
    """An existing file."""
    question: str
    options: tuple[str, ...]
    """Without letters; empty for an open question."""
    answer: str
    """The letter of the right option, or the right text."""
    time_s: float | None
    """When it is asked, in seconds since the video's beginning; None: at its end."""

    @property
    def prompt(self) -> str:
        """The question as it is put to a model."""
        if not self.options:
            return self.question
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False))
        return f"{self.question}\n{listed}\nAnswer with the letter of the right option only."

    def right(self, text: str) -> bool:
        """Whether a model's answer is right.

        Of options: by the letter that it begins with or that it calls the answer, or by the option's words. Else the
        answer's words must be in it, one after another; the published figures of VStream-QA come from a judge (GPT) and
        are more forgiving.
        """
        if not self.options:
            return f" {_words(self.answer)} " in f" {_words(text)} "
        for pattern in (r"\W*([A-Za-z])\s*(?:$|[.):,])", r".*\b(?i:answer|option|choice)(?: is)?\W*([A-Z])\b"):
            letter = re.match(pattern, text.strip(), re.DOTALL)
            if letter:
                return letter[1].upper() == self.answer
        return _words(text) == _words(self.options[LETTERS.index(self.answer)])


def read_annotations(file: Path, videos: Path) -> list[Item]:
    """All questions of a file. Raises ``InvalidRequestError`` that names the entry and what is wrong with it."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequestError(f"{file} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidRequestError(f"{file} is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise InvalidRequestError(f"{file} must be a list of annotations, as the benchmark publishes it")
    if not videos.is_dir():
        raise InvalidRequestError(f"{videos} is no folder; pass the one with the benchmark's videos")
    find = _Finder(videos)
    items = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        if not isinstance(entry, dict):
            raise InvalidRequestError(f"{where}: must be an object, got {type(entry).__name__}")
        items += list(_reader(entry, where)(_Fields(entry, where), find))
    return items


class _Fields:
    """One JSON object, whose values are checked when they are taken."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def text(self, *names: str) -> str:
        """The first of these fields that is there, as text; a number becomes one."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
                return str(value).strip()
        raise InvalidRequestError(f"{self.where}: {' or '.join(names)} must be a text that is not empty")

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise InvalidRequestError(f"{self.where}: {name} must be a number >= 0, got {value!r}")
        return float(value)

    def time(self, name: str) -> float:
        """Seconds, or ``[hours:]minutes:seconds``."""
        value = self.values.get(name)
        if not isinstance(value, str):
            return self.number(name)
        if not re.fullmatch(r"\s*(\d+:){0,2}\d+(\.\d+)?\s*", value):
            raise InvalidRequestError(f"{self.where}: {name} must be seconds or hours:minutes:seconds, got {value!r}")
        return sum(float(part) * 60**k for k, part in enumerate(reversed(value.split(":"))))

    def options(self) -> tuple[str, ...]:
        """Without their letters; empty where there are none."""
        value = self.values.get("options") or []
        valid = isinstance(value, list) and all(isinstance(option, str | int | float) for option in value)
        if not valid or len(value) == 1 or len(value) > len(LETTERS):
            raise InvalidRequestError(f"{self.where}: options must be a list of 2 to 26 texts, got {value!r}")
        return tuple(re.sub(r"^\s*\(?[A-Z][.):]\s*", "", str(option)).strip() for option in value)

    def letter(self, options: tuple[str, ...]) -> str:
        """The right option's letter: ``gt`` is its number, ``answer`` its letter or its text."""
        if "gt" in self.values:
            number = self.number("gt")
            if number in range(len(options)):
                return LETTERS[int(number)]
            raise InvalidRequestError(f"{self.where}: gt must be the number of one of {len(options)} options")
        answer = self.text("answer")
        letter = answer[:1].upper() if re.fullmatch(r"\(?[A-Za-z]\W?", answer.strip("(")) else ""
        if letter and letter in LETTERS[: len(options)]:
            return letter
        if answer in options:
            return LETTERS[options.index(answer)]
        raise InvalidRequestError(f"{self.where}: answer must be the letter or the text of an option, got {answer!r}")

    def parts(self, name: str) -> Iterator[_Fields]:
        """The objects of a list."""
        value = self.values[name]
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
            raise InvalidRequestError(f"{self.where}: {name} must be a list of objects")
        for number, part in enumerate(value):
            yield _Fields(part, f"{self.where}, {name} {number}")


class _Finder:
    """Files below a folder by paths of another machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, fields: _Fields, *names: str) -> Path:
        """The video that the first of these fields names."""
        named = fields.text(*names)
        parts = [part for part in re.split(r"[\\/]+", named) if part not in ("", ".", "..")]
        for start in range(len(parts)):
            path = self._folder.joinpath(*parts[start:])
            for candidate in [path, *(Path(f"{path}{suffix}") for suffix in VIDEO_SUFFIXES)]:
                if candidate.is_file():
                    return candidate
        raise InvalidRequestError(f"{fields.where}: video {named!r} is not below {self._folder}")


def _reader(entry: Mapping[str, Any], where: str) -> Callable[[_Fields, _Finder], Iterator[Item]]:
    """Which format an entry has."""
    if "questions" in entry and "video_path" in entry:
        return _streaming_bench
    if "conversations" in entry or "video_id" in entry:
        return _vstream_qa
    if "task" in entry and "video" in entry:
        return _ovo_forward if "test_info" in entry else _ovo_bench
    raise InvalidRequestError(
        f"{where}: neither OVO-Bench (task, video), StreamingBench (video_path, questions) nor VStream-QA (video_id); "
        f"its fields are {', '.join(sorted(entry)) or 'none'}"
    )


def _ovo_bench(fields: _Fields, find: _Finder) -> Iterator[Item]:
    options = fields.options()
    if not options:
        raise InvalidRequestError(f"{fields.where}: options are missing")
    yield Item(
        "OVO-Bench", fields.text("id"), fields.text("task"), find(fields, "video"), fields.text("question"), options,
        fields.letter(options), fields.time("realtime"),
    )


def _ovo_forward(fields: _Fields, find: _Finder) -> Iterator[Item]:
    task, video = fields.text("task"), find(fields, "video")
    for number, moment in enumerate(fields.parts("test_info")):
        if task == "REC":
            question = f"How many times did they {fields.text('activity')}? Answer with a number only."
            answer = moment.text("count")
        elif task == "SSR":
            question = f"Is this step being performed right now: {moment.text('step')}? Answer only with Yes or No."
            answer = "Yes" if moment.number("type") else "No"
        else:
            asked = fields.text("question")
            question = f"{asked}\nIs what was seen enough to answer this? Answer only with Yes or No."
            answer = "Yes" if moment.number("type") else "No"
        name = f"{fields.text('id')}.{number}"
        yield Item("OVO-Bench", name, task, video, question, (), answer, moment.time("realtime"))


def _streaming_bench(fields: _Fields, find: _Finder) -> Iterator[Item]:
    video = find(fields, "video_path")
    for number, asked in enumerate(fields.parts("questions")):
        options = asked.options()
        answer = asked.letter(options) if options else asked.text("answer", "ground_truth_output")
        yield Item(
            "StreamingBench", f"{video.stem}.{number}", asked.text("task_type"), video, asked.text("question"), options,
            answer, asked.time("time_stamp"),
        )


def _vstream_qa(fields: _Fields, find: _Finder) -> Iterator[Item]:
    video = find(fields, "video_path", "video_id")
    many = "conversations" in fields.values
    for number, asked in enumerate(fields.parts("conversations") if many else [fields]):
        name = f"{video.stem}.{number}" if many else fields.text("id")
        task = asked.text("answer_type") if asked.values.get("answer_type") else "open"
        time_s = None if asked.values.get("end_time") is None else asked.time("end_time")
        yield Item("VStream-QA", name, task, video, asked.text("question"), (), asked.text("answer"), time_s)


def _words(text: str) -> str:
    """In small letters, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))
