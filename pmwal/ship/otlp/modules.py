"""The messages of OTLP, from the package opentelemetry-proto, imported when they are needed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple


class Messages(NamedTuple):
    """The modules of the protocol. Their types are made when they are imported, so a type checker sees them without."""

    common: Any
    logs: Any
    resource: Any
    service: Any


@cache
def messages() -> Messages:
    """The modules; ``ImportError`` that says what to install."""
    names = ("common.v1.common_pb2", "logs.v1.logs_pb2", "resource.v1.resource_pb2", "collector.logs.v1.logs_service_pb2")
    try:
        return Messages(*(import_module(f"opentelemetry.proto.{name}") for name in names))
    except ImportError:
        raise ImportError("OTLP requires opentelemetry-proto, which is not installed: pip install 'pmwal[otlp]'") from None
