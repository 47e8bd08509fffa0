"""Processor time of a daemon, its /metrics, and the price of one signature verification on this machine now."""

import http.client
import os
import statistics
import time
from pathlib import Path

from nacl.signing import SigningKey
from prometheus_client.parser import text_string_to_metric_families

from ledger.keys import sha256
from ledger.transaction import TRANSACTION

METRICS_TIMEOUT_S = 10.0
METRICS_BYTES_MAX = 4 * 1024 * 1024

_PASSES, _PASS_VERIFICATIONS = 75, 20
_USER, _SYSTEM = 11, 12  # fields of /proc/<pid>/stat, counted after the command's closing parenthesis


def processor_s(pid: int) -> float:
    """User and system time of a process, all its threads together, dead ones included."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def verification_us() -> float:
    """Processor time of one Ed25519 verification by PyNaCl, of what a transaction's signature covers: the median of
    1,500, by twenties."""
    key, signed = SigningKey.generate(), TRANSACTION + sha256(b"transaction")
    verify_key, signature = key.verify_key, key.sign(signed).signature
    passes = []
    for _ in range(_PASSES):
        begin = time.thread_time()
        for _ in range(_PASS_VERIFICATIONS):
            verify_key.verify(signed, signature)
        passes.append((time.thread_time() - begin) / _PASS_VERIFICATIONS * 1e6)
    return statistics.median(passes)


def metrics(port: int) -> dict[str, float]:
    """Every sample of a daemon's /metrics: by name, and by `name{label}` where there is one label."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=METRICS_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read(METRICS_BYTES_MAX).decode()
    finally:
        connection.close()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if len(sample.labels) <= 1:
                label = "".join(f"{{{value}}}" for value in sample.labels.values())
                found[sample.name + label] = sample.value
    return found
