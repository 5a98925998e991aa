"""Certificates of servers under test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for the loopback address, which is its own authority, and its key."""
    certificate, key = directory / "server.pem", directory / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        if os.environ.get("PMWAL_REQUIRE_RIGS") == "1":
            pytest.fail("openssl is missing (PMWAL_REQUIRE_RIGS=1)")
        pytest.skip("needs openssl to make a certificate: apt-get install openssl")
    return certificate, key
