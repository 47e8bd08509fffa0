"""This machine's pip settings and certificates, lent to a build of the image as secrets: no layer keeps them."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CONFIG_TIMEOUT_S = 30.0
# What makes sense inside of a build. Files of this machine are not there.
KEYS = ("default-timeout", "extra-index-url", "index-url", "proxy", "retries", "timeout", "trusted-host")
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")


@contextmanager
def to_builds() -> Iterator[dict[str, Path]]:
    """Files by the ids that the Dockerfile asks for: pip_conf and ca, each only where this machine has one."""
    listed = settings(_listed())
    with tempfile.TemporaryDirectory(prefix="carequorum-lent-") as folder:
        secrets = {}
        conf = pip_conf(listed, os.environ)
        if conf:
            # It may hold a password: the folder is 0700.
            path = secrets["pip_conf"] = Path(folder) / "pip.conf"
            path.write_text(conf)
        certificates = authorities(listed, os.environ)
        if certificates is not None:
            secrets["ca"] = certificates
        yield secrets


def settings(listed: str) -> dict[str, str]:
    """By key, from `pip config list`. Where several files or variables say something, the last wins."""
    found = {}
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        words = shlex.split(value) if equals else []
        if words:
            found[name.rpartition(".")[2]] = words[0]
    return found


def pip_conf(listed: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """A pip.conf for the build, empty if it needs none."""
    kept = {}
    for key in KEYS:
        words = [word for word in listed.get(key, "").split() if not word.startswith(("file:", "/"))]
        if words:
            kept[key] = " ".join(words)
    proxy = next((environment[name] for name in _PROXIES if environment.get(name)), None)
    if proxy is not None:
        kept.setdefault("proxy", proxy)
    return "".join(["[global]\n", *(f"{key} = {value}\n" for key, value in sorted(kept.items()))]) if kept else ""


def authorities(listed: Mapping[str, str], environment: Mapping[str, str]) -> Path | None:
    """The bundle of certificates that pip is told to believe, if it is told."""
    named = [listed.get("cert"), *(environment.get(name) for name in _CERTIFICATES)]
    return next((Path(path) for path in named if path and Path(path).is_file()), None)


def _listed() -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=CONFIG_TIMEOUT_S,
        check=False,
    )
    return ended.stdout
