"""Log records for an OpenTelemetry collector, by OTLP over HTTP. Needs opentelemetry-proto: ``pip install 'pmwal[otlp]'``.

.. code-block:: python

    from pmwal.ship.otlp import OtlpShipper

    async with OtlpShipper("app.wal", to="otlp+http://127.0.0.1:4318") as shipper:
        await shipper.acked(seq)
"""

from pmwal.ship.otlp.endpoint import is_otlp
from pmwal.ship.otlp.shipper import OtlpProgress, OtlpShipper

__all__ = ["OtlpProgress", "OtlpShipper", "is_otlp"]
