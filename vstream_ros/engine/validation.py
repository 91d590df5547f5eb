"""Is a question one that can be asked at all? Whatever Python object a caller passes, before anything is touched."""

from __future__ import annotations

import dataclasses
import numbers
import reprlib

from vstream_ros.engine.answers import Question
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.errors import InvalidRequestError
from vstream_ros.models.json_schema import check_schema

MAX_CHOICES = 100
MIN_TEMPERATURE = 1e-3
"""Logits are divided by it in float32, which overflows below 1e-34 for logits of 1e4; at this one already the likeliest
token takes nearly all of the probability."""
MAX_TEMPERATURE = 10.0


def checked_question(question: object, config: EngineConfig, cameras: CameraMemories) -> Question:
    """``question`` in plain types, with the defaults of ``config`` where it says nothing. Any thread; O(its bytes).

    Cameras come in prompt order, and empty where all are named. Raises ``InvalidRequestError`` for a question that
    can't be answered, whatever memory holds.
    """
    if not isinstance(question, Question):
        raise InvalidRequestError(f"a question must be a Question, got {_kind(question)}; write Question(text)")
    names = _texts("cameras", question.cameras, config.max_question_bytes)
    choices = _texts("choices", question.choices, config.max_question_bytes)
    texts = {"question": (question.text,), "cameras": names, "choices": choices, "json_schema": (question.json_schema,)}
    _check_texts(texts, config.max_question_bytes)
    if not question.text.strip():
        raise InvalidRequestError("the question is empty; put a sentence into question")
    _check_choices(choices)
    if question.json_schema:
        if choices:
            raise InvalidRequestError("choices and json_schema exclude each other; put the choices into an enum")
        check_schema(question.json_schema)
    start_ns = _whole("start_time", question.start_ns, 2**63, "ns (0: unbounded)")
    end_ns = _whole("end_time", question.end_ns, 2**63, "ns (0: unbounded)")
    if end_ns and end_ns < start_ns:
        raise InvalidRequestError("end_time lies before start_time; swap them")
    return dataclasses.replace(
        question,
        cameras=_part_of(cameras, names),
        start_ns=start_ns,
        end_ns=end_ns,
        choices=choices,
        max_new_tokens=_whole("max_new_tokens", question.max_new_tokens, 2**32, "(0: the default)")
        or config.max_new_tokens,
        temperature=_temperature(question.temperature),
        seed=_whole("seed", question.seed, 2**64, "(0: drawn)"),
        timeout_s=_timeout(question.timeout_s) or config.timeout_s,
    )


def _check_choices(choices: tuple[str, ...]) -> None:
    if len(choices) > MAX_CHOICES:
        raise InvalidRequestError(f"choices holds {len(choices)} texts; give {MAX_CHOICES} at most")
    if any(not choice.strip() for choice in choices):
        raise InvalidRequestError("one of choices is empty; write out each answer, or leave choices empty")
    bare = [choice.strip() for choice in choices]  # white space around a choice does not count
    if len(set(bare)) != len(bare):
        twice = next(choice for k, choice in enumerate(bare) if choice in bare[:k])
        raise InvalidRequestError(f"choices holds {reprlib.repr(twice)} twice; give each answer once")


def _texts(name: str, values: object, max_bytes: int) -> tuple[str, ...]:
    """A list of texts as a tuple; what is in it is checked by ``_check_texts``."""
    if not isinstance(values, list | tuple):
        raise InvalidRequestError(f"{name} must be a list or tuple of texts, got {_kind(values)}")
    if len(values) > max_bytes:
        raise InvalidRequestError(f"{len(values)} {name} exceed the {max_bytes} bytes of max_question_bytes")
    return tuple(values)


def _check_texts(texts: dict[str, tuple[str, ...]], max_bytes: int) -> None:
    """Raise where one is no text or not valid Unicode, or where all of them are too long together."""
    count = 0
    for name, values in texts.items():
        for text in values:
            if not isinstance(text, str):
                raise InvalidRequestError(f"{name} must be text, got {_kind(text)}")
            try:
                # A character takes a byte at least: what is far too long need not be encoded to be refused.
                count += len(text) if len(text) > max_bytes else len(text.encode())
            except UnicodeEncodeError as error:
                raise InvalidRequestError(
                    f"{name} is not valid Unicode, character {error.start} is a lone surrogate; decode the text with "
                    "errors='replace' where it comes from"
                ) from None
    if count > max_bytes:
        raise InvalidRequestError(
            f"question, cameras, choices and json_schema exceed the {max_bytes} bytes of max_question_bytes; shorten "
            "them, or raise the parameter"
        )


def _part_of(cameras: CameraMemories, names: tuple[str, ...]) -> tuple[str, ...]:
    cameras.require(names)
    if len(set(names)) != len(names):
        raise InvalidRequestError(f"cameras names one camera twice: {reprlib.repr(names)}")
    return () if len(names) == len(cameras.names) else tuple(name for name in cameras.names if name in names)


def _whole(name: str, value: object, end: int, unit: str) -> int:
    """An integer in [0, end)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidRequestError(f"{name} must be a whole number, got {_kind(value)}")
    number = int(value)
    if not 0 <= number < end:
        shown = str(number) if number.bit_length() <= 128 else f"one of {number.bit_length()} bits"
        raise InvalidRequestError(f"{name} must be in [0, 2^{end.bit_length() - 1}) {unit}, got {shown}")
    return number


def _temperature(value: object) -> float:
    temperature = _real("temperature", value)
    if temperature != 0.0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise InvalidRequestError(
            f"temperature must be 0 (greedy) or in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}], got {temperature:g}"
        )
    return temperature


def _timeout(value: object) -> float:
    timeout_s = _real("timeout", value)
    if not timeout_s >= 0.0:  # nan neither
        raise InvalidRequestError(f"timeout must be > 0 s, or 0 for the default, got {timeout_s:g}")
    return timeout_s


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidRequestError(f"{name} must be a number, got {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequestError(f"{name} is out of every range; use a smaller number") from None


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
