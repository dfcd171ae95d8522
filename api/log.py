"""The log: lines of fields on stderr, text on a terminal and JSON elsewhere."""

import logging
import sys

import structlog

# They would tell of every URL, with a query in which a registry puts what lets one in.
HTTP_CLIENTS = ("httpx2", "httpcore2")
LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40}


def set_up_logging(level: str) -> None:
    """Lines of fields on stderr: for people on a terminal, JSON elsewhere."""
    number = LEVELS[level]
    logging.basicConfig(level=number, stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger("hpack").setLevel(logging.WARNING)  # it tells of every header's every bit
    for name in HTTP_CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.dict_tracebacks,
            *([] if terminal else [structlog.processors.JSONRenderer()]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
