"""Log lines that hold what came from outside: topics, field names, error texts of others."""

from __future__ import annotations

import logging

from device_runtime.records.printable import one_line, without_secrets

__all__ = ["OneLine"]


class OneLine(logging.Formatter):
    """One line for each record, without control characters and without the passwords of URLs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line; what `record.exc_info` adds comes after it."""
        record.message = without_secrets(one_line(record.message))
        return super().formatMessage(record)
