"""LogSettings and TraceSetting by Triton's protocol, with what is true of this server.

Log: `log_info`, `log_warning` and `log_error` switch the lines of that level on and off, `log_verbose_level` above 0
adds debug lines. The log goes to stderr in one format, so `log_file` and `log_format` only tell that. Everybody may
read them; changing them is for the admin socket, or for every client where [security] model_control says so.

Trace: there is no tracing that this call could switch on, so the level is OFF and stays so.
"""

from __future__ import annotations

import logging
from typing import Any

from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import Denied, InvalidRequest, NotFound, Unsupported
from trimtab.server.served import Registry
from trimtab.server.transport import Call, Handler

__all__ = ["LogControl", "LogSwitch"]

_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_FIXED = {"log_file": "", "log_format": "default"}
_VERBOSE = "log_verbose_level"


class LogSwitch(logging.Filter):
    """Which of this process' log lines are written. One per process, on the handlers of the root logger."""

    def __init__(self) -> None:
        super().__init__()
        self.on = dict.fromkeys(_LEVELS, True)
        self.verbose = 0

    def attach(self) -> None:
        """Filters what the root's handlers write from now on."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.levelno < logging.INFO:
            return self.verbose > 0
        name = max((name for name in _LEVELS if _LEVELS[name] <= record.levelno), key=_LEVELS.__getitem__)
        return self.on[name]

    def set(self, name: str, value: object) -> None:
        """Changes a setting. Raises InvalidRequest."""
        if name in _LEVELS:
            if not isinstance(value, bool):
                raise InvalidRequest(f"log setting {name!r}: expected a boolean, came {value!r}")
            self.on[name] = value
        elif name == _VERBOSE:
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidRequest(f"log setting {name!r}: expected a number, came {value!r}")
            self.verbose = value
            logging.getLogger("trimtab").setLevel(logging.DEBUG if value else logging.INFO)
        elif name in _FIXED:
            if value != _FIXED[name]:
                raise InvalidRequest(
                    f"log setting {name!r}: expected {_FIXED[name]!r}, the only one here, came {value!r}"
                )
        else:
            known = ", ".join([*_LEVELS, _VERBOSE, *_FIXED])
            raise InvalidRequest(f"log setting {name[:80]!r}: expected one of {known}")


class LogControl:
    """The two calls; `allowed`: whether a client of this listener may change anything."""

    def __init__(self, switch: LogSwitch, registry: Registry, *, allowed: bool) -> None:
        self._switch = switch
        self._registry = registry
        self._allowed = allowed

    @property
    def offered(self) -> bool:
        """Whether log settings can be changed."""
        return self._allowed

    def handlers(self) -> dict[str, Handler]:
        """By method of GRPCInferenceService."""
        return {"LogSettings": self.log_settings, "TraceSetting": self.trace_setting}

    async def log_settings(self, request: pb.LogSettingsRequest, _call: Call) -> pb.LogSettingsResponse:
        """Changes the settings that are given, all or none, and returns all."""
        changes: dict[str, Any] = {}
        for name, setting in request.settings.items():
            kind = setting.WhichOneof("parameter_choice")
            if kind is not None:
                changes[name] = getattr(setting, kind)
        if changes and not self._allowed:
            raise Denied("log settings are changed on the admin socket ([security] model_control)")
        trial = LogSwitch()
        for name, value in changes.items():
            _check(trial, name, value)
        for name, value in changes.items():
            self._switch.set(name, value)
        response = pb.LogSettingsResponse()
        for name, text in _FIXED.items():
            response.settings[name].string_param = text
        for name, on in self._switch.on.items():
            response.settings[name].bool_param = on
        response.settings[_VERBOSE].uint32_param = self._switch.verbose
        return response

    async def trace_setting(self, request: pb.TraceSettingRequest, _call: Call) -> pb.TraceSettingResponse:
        """Says that nothing is traced; anything else is refused."""
        if request.model_name and request.model_name not in self._registry.models:
            raise NotFound(f"no model {request.model_name[:80]!r}")
        for name, setting in request.settings.items():
            if setting.value and (name, list(setting.value)) != ("trace_level", ["OFF"]):
                raise Unsupported("tracing is not switched on by this call; expected trace_level OFF and nothing else")
        response = pb.TraceSettingResponse()
        response.settings["trace_level"].value.append("OFF")
        return response


def _check(trial: LogSwitch, name: str, value: object) -> None:
    """Raises what set() would, and changes nothing of the process."""
    if name != _VERBOSE or isinstance(value, bool) or not isinstance(value, int):
        trial.set(name, value)
