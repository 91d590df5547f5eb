"""Which model there is: loading, adopting and freeing it, and saying so to every thread."""

from __future__ import annotations

import gc
import threading
from typing import Any

import torch

from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import ModelState
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.errors import ConfigError, ModelFailedError, NotReadyError, VStreamError
from vstream_ros.models.base import VideoModel


class ModelHost:
    """The state machine of the model. ``load``, ``free`` and ``adopt`` run in the model's thread, the rest anywhere.

    Loads and frees are announced first (``announce_load``, ``announce_unload``), which changes the state at once, and
    carried out later; one that was overtaken by a newer announcement is not carried out.
    """

    def __init__(
        self,
        name: str,
        config: EngineConfig,
        cameras: CameraMemories,
    ) -> None:
        self._config = config
        self._cameras = cameras
        self._lock = threading.Lock()
        self._name = name
        self._state = ModelState.UNLOADED
        self._error = ""
        self._announced = 0
        self.answerer: ClipAnswerer | None = None

    def describe(self) -> tuple[str, ModelState, str]:
        """Name, state, and why the last load failed."""
        with self._lock:
            return self._name, self._state, self._error

    def require(self) -> None:
        """Raise ``NotReadyError`` or ``ModelFailedError`` unless there is a model to ask."""
        name, state, error = self.describe()
        if state is ModelState.LOADING:
            raise NotReadyError(f"{name} is still being loaded; ask again in a moment")
        if state is ModelState.UNLOADED:
            raise NotReadyError("no model is loaded; load one first (a node: activate it or call reload_model)")
        if state is ModelState.FAILED:
            raise ModelFailedError(error)

    def announce_load(self, name: str | None) -> int:
        """Be LOADING from now on (``name``: another checkpoint); returns the ticket for ``load``."""
        with self._lock:
            self._name = self._name if name is None else name
            return self._announce(ModelState.LOADING)

    def announce_unload(self) -> int:
        """Be UNLOADED from now on; returns the ticket for ``free``."""
        with self._lock:
            return self._announce(ModelState.UNLOADED)

    def load(self, ticket: int) -> None:
        """Load the named checkpoint; raises ``VStreamError`` where it can't be, which is then the state too."""
        name, _, _ = self.describe()
        if ticket != self._announced:
            return
        config = self._config
        try:
            # Imported here, in the model's thread: transformers takes seconds, which a node's start need not wait for.
            from vstream_ros.models.loader import load_model

            self.free()  # two models at a time may not fit
            if not name:
                raise ConfigError("no model is named; set the parameter model to a hub id or a folder")
            model = load_model(
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
            if ticket == self._announced:
                self.adopt(model)
        except Exception as error:
            with self._lock:
                if ticket == self._announced:
                    self._state = ModelState.FAILED
                    known = isinstance(error, VStreamError)
                    self._error = str(error) if known else f"{type(error).__name__}: {error}"
            raise

    def free(self) -> None:
        """Give the weights and the caches back to the device."""
        self.answerer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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

    def adopt(self, model: VideoModel) -> None:
        """Be READY with this model; raises ``ConfigError`` where a full memory would not fit into its context."""
        self._check_context(model)
        self._cameras.use_frame_spec(model.frame_spec, f"{model.name} takes other frame sizes")
        answerer = ClipAnswerer(model, self._config, self._cameras.names)
        with self._lock:
            self._name = model.name
            self.answerer = answerer
            self._state, self._error = ModelState.READY, ""

    def _check_context(self, model: VideoModel) -> None:
        tubelets = self._cameras.max_tubelets
        needed = tubelets * model.max_tokens_per_tubelet + self._config.max_new_tokens
        if needed >= model.context_length:
            raise ConfigError(
                f"a full memory of {tubelets} tubelets takes up to {needed} tokens with its answer, more than the "
                f"{model.context_length} of {model.name}; lower max_pixels, star_memory_size, stream_window_size, "
                "stream_slide or max_new_tokens"
            )

    def _announce(self, state: ModelState) -> int:
        self._state, self._error = state, ""
        self._announced += 1
        return self._announced
