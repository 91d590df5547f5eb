"""Which model there is: loading, installing and freeing it, and saying so to every thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import ModelState
from vstream_ros.engine.device_memory import read_device_memory, release_unused_memory
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.feature_importance import FeatureImportance
from vstream_ros.engine.model_thread import CLOSED
from vstream_ros.engine.recovery import first_line, forget_frames
from vstream_ros.errors import CanceledError, ConfigError, ModelFailedError, NotReadyError, VStreamError
from vstream_ros.memory.memory_config import MaxTubelets
from vstream_ros.models.base import VideoModel

logger = logging.getLogger(__name__)

ROOM_FACTOR = 1.2
"""A load takes more than its weights while it goes on: buffers, and copies of single tensors."""
ROOM_BYTES = 256 << 20
_ONE_LOAD_AT_A_TIME = threading.Lock()
"""For all engines of the process: two loads may not fit, and transformers changes torch's defaults during one. Only
model threads take it, and hold no other lock then."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """An announcement. It is carried out unless a later one was made meanwhile."""

    name: str
    """Hub id or folder."""


def why_not_beside(needed: int | None, free: int) -> str:
    """Why a checkpoint can't be loaded beside the model that is there, by estimate; "" where it can.

    Args:
        needed: bytes of its weights, None where that is unknown.
        free: bytes left on the device.
    """
    if needed is None:
        return "its size is unknown before it is loaded"
    with_margin = int(needed * ROOM_FACTOR) + ROOM_BYTES
    if with_margin <= free:
        return ""
    return f"it needs about {with_margin / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"


class ModelHost:
    """The state machine of the model. ``load``, ``install``, ``finish`` and ``free`` run in the model's thread, the
    rest anywhere.

    Loads and frees are announced first, which changes the state at once, and carried out later; one that was overtaken
    by another announcement is not carried out: ``CanceledError``. What was announced and what is there are two things.
    """

    def __init__(
        self,
        name: str,
        config: EngineConfig,
        cameras: Sequence[str],
        max_tubelets: MaxTubelets,
        new_importance: Callable[[], FeatureImportance | None] = lambda: None,
        free_bytes: Callable[[torch.device], int] = lambda device: read_device_memory(device).free,
    ) -> None:
        """
        Args:
            name: the checkpoint that is loaded where ``announce_load`` names none; "" for none.
            cameras: names, in prompt order.
            max_tubelets: most tubelets that a question can be about.
            new_importance: what judges the features of a model that is loaded; called once for each.
            free_bytes: what is left of a device.
        """
        self._config = config
        self._cameras = tuple(cameras)
        self._max_tubelets = max_tubelets
        self._new_importance = new_importance
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        """Guards all below. Nothing slow is done and no other lock is taken while it is held."""
        self._ticket = Ticket(name)
        self._state = ModelState.UNLOADED
        self._error = ""
        self._answerer: ClipAnswerer | None = None
        """Set in the model's thread only."""
        self._closed = False

    @property
    def answerer(self) -> ClipAnswerer | None:
        """The model that is there, with its caches; None where there is none. Belongs to the model's thread."""
        with self._lock:
            return self._answerer

    def describe(self) -> tuple[str, ModelState, str]:
        """Name, state, and why the last load failed.

        READY: the name of the model that answers, else of the checkpoint that was named last.
        """
        with self._lock:
            name, answerer = self._ticket.name, self._answerer
            if self._state is ModelState.READY and answerer is not None:
                name = answerer.model.name
            return name, self._state, self._error

    def require(self) -> ClipAnswerer:
        """The model to ask; raises ``NotReadyError`` or ``ModelFailedError`` where there is none."""
        with self._lock:
            state, answerer, name, error = self._state, self._answerer, self._ticket.name, self._error
            closed = self._closed
        if closed:
            raise NotReadyError(CLOSED)
        if state is ModelState.LOADING:
            raise NotReadyError(f"{name} is still being loaded; ask again in a moment")
        if state is ModelState.FAILED:
            raise ModelFailedError(error)
        if state is ModelState.UNLOADED or answerer is None:
            raise NotReadyError("no model is loaded; load one first (a node: activate it or call reload_model)")
        return answerer

    # -- announcing --------------------------------------------------------------------------------------------------

    def announce_load(self, name: str | None) -> Ticket:
        """Be LOADING from now on; ``name``: default the one that was named last."""
        with self._lock:
            return self._announce(ModelState.LOADING, name)

    def announce_unload(self) -> Ticket:
        """Be UNLOADED from now on."""
        with self._lock:
            return self._announce(ModelState.UNLOADED)

    def announce_end(self) -> Ticket:
        """Be UNLOADED from now on, for ever: later announcements change nothing and are not carried out."""
        with self._lock:
            ticket = self._announce(ModelState.UNLOADED)
            self._closed = True
            return ticket

    def _announce(self, state: ModelState, name: str | None = None) -> Ticket:
        ticket = Ticket(self._ticket.name if name is None else name)
        if not self._closed:
            self._ticket, self._state, self._error = ticket, state, ""
        return ticket

    def _check_current(self, ticket: Ticket) -> None:
        """With ``_lock`` held."""
        if ticket is not self._ticket:
            raise CanceledError(f"{ticket.name or 'the model'}: overtaken by a later load or unload")

    # -- carrying out ------------------------------------------------------------------------------------------------

    def load(self, ticket: Ticket) -> VideoModel:
        """Load the ticket's checkpoint and ``install`` it.

        The model that is there stays until the new one is, and for good where that can't be loaded; where the device
        has no room for both, by estimate, it is freed first, and the log says so.

        Raises ``VStreamError``; state and error then say the same.
        """
        try:
            with _ONE_LOAD_AT_A_TIME:
                return self._load_and_install(ticket)
        except Exception as error:  # noqa: BLE001  (raised again, below)
            text = forget_frames(error)  # they hold a model that is half loaded
            if not isinstance(error, VStreamError):
                logger.error("a load failed unexpectedly:\n%s", text)
            failure = self._note_failure(ticket, error)
        release_unused_memory()
        raise failure

    def _load_and_install(self, ticket: Ticket) -> VideoModel:
        with self._lock:
            self._check_current(ticket)
        self._make_room_for(ticket)
        model = self._load_checkpoint(ticket.name)
        self.install(model, ticket)
        return model

    def install(self, model: VideoModel, ticket: Ticket) -> None:
        """Put the model in the old one's place, which is freed. The state stays as it is until ``finish``.

        Raises ``ConfigError`` where a full memory would not fit into the model's context.
        """
        needed = self._check_context(model)
        answerer = ClipAnswerer(model, self._config, self._cameras, self._new_importance())
        with self._lock:
            self._check_current(ticket)
            self._answerer = answerer
        release_unused_memory()
        if self._config.decode_graphs == "auto":
            model.prepare(needed)

    def finish(self, ticket: Ticket) -> str:
        """Be READY with what was installed; returns its name."""
        with self._lock:
            self._check_current(ticket)
            assert self._answerer is not None  # only this thread takes it away
            self._state = ModelState.READY
            return self._answerer.model.name

    def free(self, ticket: Ticket) -> None:
        """Give the weights and the caches back to the device."""
        with self._lock:
            self._check_current(ticket)
            self._answerer = None
        release_unused_memory()

    def wrap(self, model: Any, processor: Any) -> VideoModel:
        """A loaded transformers model behind the family's interface, moved to the configured device."""
        if processor is None:
            raise ConfigError("a loaded model needs its processor: pass processor=AutoProcessor.from_pretrained(…)")
        from vstream_ros.models.loader import resolve_device, wrap_model

        config = self._config
        if config.vision_device or config.device_map or config.quantization != "none":
            raise ConfigError(
                "vision_device, device_map and quantization are for a model that is loaded here by its name; load this "
                "one with transformers' own device_map and quantization_config instead"
            )
        if config.device != "auto":
            if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
                raise ConfigError(f"device {config.device!r}: the loaded model has a device_map; leave device at auto")
            model = model.to(resolve_device(config.device))
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        return wrap_model(
            model,
            processor,
            name=name,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            kv_cache=config.kv_cache,
        )

    def _make_room_for(self, ticket: Ticket) -> None:
        """Free the model that is there, unless the ticket's can be loaded beside it."""
        name = ticket.name
        if not name:
            raise ConfigError("no model is named; set the parameter model to a hub id or a folder")
        old = self.answerer
        if old is None or not (why := self._why_not_beside(name)):
            return
        logger.warning(
            "%s can't be loaded beside %s: %s. %s is freed first: if the load fails, no model is left",
            name, old.model.name, why, old.model.name,
        )  # fmt: skip
        del old
        self.free(ticket)

    def _why_not_beside(self, name: str) -> str:
        """See ``why_not_beside``. Raises ``ConfigError`` for a device or dtype that can't be."""
        from vstream_ros.models.checkpoint_size import checkpoint_bytes
        from vstream_ros.models.loader import resolve_dtype, resolve_placement

        config = self._config
        if config.device_map:
            return "device_map spreads it over devices"
        device, _ = resolve_placement(config.device, config.vision_device, None)
        release_unused_memory()
        return why_not_beside(
            checkpoint_bytes(name, resolve_dtype(config.torch_dtype, device)), self._free_bytes(device)
        )

    def _load_checkpoint(self, name: str) -> VideoModel:
        # Imported here, in the model's thread: transformers takes seconds, which a node's start need not wait for.
        from vstream_ros.models.loader import load_model

        config = self._config
        return load_model(
            name,
            device=config.device,
            vision_device=config.vision_device,
            device_map=config.parsed_device_map(),
            torch_dtype=config.torch_dtype,
            attn_implementation=config.attn_implementation,
            quantization=config.quantization,
            kv_cache=config.kv_cache,
            local_files_only=config.local_files_only,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
        )

    def _note_failure(self, ticket: Ticket, error: Exception) -> Exception:
        """State and error after a failed load, unless it was overtaken; the error to raise."""
        if isinstance(error, CanceledError):
            return error
        if not isinstance(error, VStreamError):
            defect = f"{first_line(error)} (this is a defect, the log has the traceback)"
            error, cause = ModelFailedError(f"{ticket.name} could not be loaded: {defect}"), error
            error.__cause__ = cause
        with self._lock:
            old = self._answerer
            told = error
            if old is not None:
                told = type(error)(f"reload of {ticket.name} failed: {error}; {old.model.name} still answers")
                told.__cause__ = error
            if ticket is self._ticket:
                self._state, self._error = ModelState.READY if old is not None else ModelState.FAILED, str(told)
        return told

    def _check_context(self, model: VideoModel) -> int:
        """Tokens of a full memory with a question's answer."""
        most, star_tokens = self._max_tubelets, model.max_tokens_per_tubelet
        if self._config.star_max_pixels:
            star_tokens = min(model.max_tokens(self._config.star_max_pixels), star_tokens)
        needed = most.star * star_tokens + (most.total - most.star) * model.max_tokens_per_tubelet
        needed += self._config.max_new_tokens
        if needed >= model.context_length:
            raise ConfigError(
                f"a full memory of {most.total} tubelets takes up to {needed} tokens with its answer, more than the "
                f"{model.context_length} of {model.name}; lower max_pixels, star_memory_size, stream_window_size, "
                "stream_slide or max_new_tokens"
            )
        return needed
