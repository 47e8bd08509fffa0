"""`python -m node.ready --config PATH`: exit 0 if the node of this configuration says on its provider port that it is
ready, otherwise 1 with the cause in one line. For health checks, which run often: it imports next to nothing.
"""

import json
import socket
import sys
import tomllib
from pathlib import Path

TIMEOUT_S = 3.0
# Those of node.config, whose import would cost more than all the rest.
HOST, PORT = "127.0.0.1", 7480
_ANSWER_BYTES_MAX = 4096


def main(arguments: list[str]) -> int:
    """The exit code."""
    if len(arguments) != 2 or arguments[0] != "--config":
        print("usage: python -m node.ready --config PATH", file=sys.stderr)
        return 2
    try:
        host, port = listens(Path(arguments[1]))
        status = ask(host, port)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"not ready: {error or type(error).__name__}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"not ready: {host}:{port} answers {status}", file=sys.stderr)
        return 1
    return 0


def listens(config: Path) -> tuple[str, int]:
    """Where a program of the same machine reaches the provider port. Raises what reading the files raises."""
    document = tomllib.loads(config.read_text())
    provider = document.get("provider", {})
    host, port = provider.get("host", HOST), provider.get("port", PORT)
    if port == 0:
        ports = config.parent / document["node"].get("ports_file", "ports.json")
        port = json.loads(ports.read_text())["provider"]["port"]
    # An address for listening on all interfaces is none to connect to.
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)  # noqa: S104


def ask(host: str, port: int, timeout_s: float = TIMEOUT_S) -> int:
    """The status of GET /readyz. `timeout_s` bounds each wait for the node. Raises OSError, ValueError."""
    with socket.create_connection((host, port), timeout_s) as connection:
        connection.sendall(f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while b"\r\n" not in answer and len(answer) < _ANSWER_BYTES_MAX:
            some = connection.recv(_ANSWER_BYTES_MAX)
            if not some:
                break
            answer += some
    version, _, rest = answer.partition(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError(f"{host}:{port} does not speak HTTP")
    return int(rest[:3])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
