"""Structured logs: one JSON object a line, from our own code and from the libraries below it.

Content never reaches a log. Byte strings become their length, exceptions their type and place without their
message, libraries' messages their first line. Ids are written by whoever logs them, as hex.
"""

import logging
import logging.handlers
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from node.config import LoggingSection

TEXT_CHARACTERS_MAX = 200
FRAMES_MAX = 12
# These write what they received into their debug messages.
LIBRARIES = ("aiohttp", "asyncio")


@contextmanager
def logs(settings: LoggingSection) -> Iterator[None]:
    """Send every log line to `settings.file`, or to standard error, until the block ends.

    The file is made with mode 0600 and opened again when it was moved away, so that it can be rotated.
    """
    handler = _handler(settings)
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _first_line],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                without_content,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )
    )
    configured_before = structlog.get_config()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    before, level_before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level_before)
        structlog.configure(**configured_before)
        handler.close()


def fault_fields(error: BaseException) -> dict[str, Any]:
    """An exception for a log line: its type and where it came from, never its message."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    fields: dict[str, Any] = {
        "error": type(error).__name__,
        "where": [f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, BaseExceptionGroup):
        fields["of"] = [fault_fields(one) for one in error.exceptions[:FRAMES_MAX]]
    return fields


def without_content(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The last step before a line is written: replaces whatever could carry content."""
    exc_info = event.pop("exc_info", None)
    error = _error_of(exc_info)
    safe: EventDict = {key: _safe(value) for key, value in event.items()}
    if error is not None:
        safe.update(fault_fields(error))
    return safe


def _safe(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= TEXT_CHARACTERS_MAX else value[:TEXT_CHARACTERS_MAX] + "..."
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    if isinstance(value, os.PathLike):
        return str(value)
    return f"<{type(value).__name__}>"


def _error_of(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    found: BaseException | None = None
    if isinstance(exc_info, tuple):
        found = exc_info[1]
    elif exc_info:
        found = sys.exc_info()[1]
    return found


def _first_line(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Of a library's message: the rest may print whole objects, exceptions' messages among them."""
    event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _handler(settings: LoggingSection) -> logging.Handler:
    if settings.file is None:
        return logging.StreamHandler(sys.stderr)
    os.close(os.open(settings.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    return logging.handlers.WatchedFileHandler(settings.file, encoding="utf-8")
