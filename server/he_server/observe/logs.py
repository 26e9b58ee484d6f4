"""The log, on stderr: lines of text or of JSON; those of a call have its request id, and one says how it ended.

Nothing that a call carries is in it, nor its caller's address. An exception that is not ours may quote anything, so
of such a one only its type and the lines of code that it passed through are written.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

from he_engine.errors import HesearchError
from he_server.config import ServerConfig
from he_server.rpc.calls import Call, current

_access = logging.getLogger("he_server.access")


class _Formatter(logging.Formatter):
    """Base of the two formats."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatException(self, ei: object) -> str:
        error = ei[1] if isinstance(ei, tuple) else None
        lines: list[str] = []
        while isinstance(error, BaseException):
            said = f": {error}" if isinstance(error, HesearchError) else ""
            frames = "".join(traceback.format_tb(error.__traceback__))
            lines.append(f"{frames}{type(error).__name__}{said}")
            error = error.__cause__
        return "\ncaused by\n".join(lines)


class TextFormatter(_Formatter):
    """TIME LEVEL LOGGER [REQUEST ID]: MESSAGE; an exception on the lines after it."""

    def format(self, record: logging.LogRecord) -> str:
        call = current.get()
        where = f"{record.name} {call.request_id}" if call else record.name
        line = f"{self.formatTime(record)} {record.levelname} {where}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(_Formatter):
    """One object a line: time, level, logger, message; request_id, exception and the access line's where there are."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if call := current.get():
            fields["request_id"] = call.request_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class AccessLog:
    """An observer that writes a line for every call that has ended, at level info."""

    def began(self, call: Call) -> None: ...

    def ended(self, call: Call) -> None:
        if not _access.isEnabledFor(logging.INFO):
            return
        fields = {
            "method": call.method,
            "code": call.code,
            "milliseconds": round(1000 * call.seconds, 3),
            "received_bytes": call.received_bytes,
            "sent_bytes": call.sent_bytes,
        }
        _access.info(" ".join(f"{name}={value}" for name, value in fields.items()), extra={"fields": fields})


def configure(config: ServerConfig) -> None:
    """From now on this process logs as `config` says. What libraries say is written from level warning on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("he_server").setLevel(config.log_level.upper())
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger("he_server").level))
