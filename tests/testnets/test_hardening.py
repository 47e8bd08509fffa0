"""What `hardening` finds in documents like those of `docker inspect`."""

import copy
from typing import Any

import pytest

from tests.testnets.hardening import findings

CONFINED: dict[str, Any] = {
    "State": {"Health": {"Status": "healthy"}},
    "Config": {"User": "10001:10001"},
    "HostConfig": {
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "CapAdd": None,
        "Privileged": False,
        "SecurityOpt": ["no-new-privileges:true"],
        "Memory": 536_870_912,
        "PidsLimit": 128,
    },
    "NetworkSettings": {"Ports": {"7480/tcp": [{"HostIp": "127.0.0.1", "HostPort": "17481"}], "7400/tcp": None}},
}
EVERYWHERE = {"7480/tcp": [{"HostIp": "0.0.0.0", "HostPort": "17481"}]}  # noqa: S104


def test_a_confined_container_has_no_findings() -> None:
    assert findings(CONFINED) == []


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("State", "Health", {"Status": "unhealthy"}, "its health is unhealthy"),
        ("State", "Health", None, "its health is none"),
        ("Config", "User", "", "it runs as ''"),
        ("Config", "User", "0:0", "it runs as '0:0'"),
        ("HostConfig", "ReadonlyRootfs", False, "its root file system can be written"),
        ("HostConfig", "CapDrop", None, "of its capabilities it lost None"),
        ("HostConfig", "CapDrop", ["NET_RAW"], "of its capabilities it lost ['NET_RAW']"),
        ("HostConfig", "CapAdd", ["CHOWN"], "it was given the capabilities ['CHOWN']"),
        ("HostConfig", "Privileged", True, "it is privileged"),
        ("HostConfig", "SecurityOpt", None, "it may gain privileges"),
        ("HostConfig", "Memory", 0, "it has no bound on its memory"),
        ("HostConfig", "PidsLimit", None, "it has no bound on its processes"),
        ("NetworkSettings", "Ports", EVERYWHERE, "port 7480/tcp is published on 0.0.0.0"),
        ("NetworkSettings", "Ports", {"7480/tcp": [{"HostIp": ""}]}, "port 7480/tcp is published on every address"),
        ("NetworkSettings", "Ports", {}, "0 ports are published"),
    ],
)
def test_each_thing_that_is_wrong_is_found(part: str, key: str, value: object, said: str) -> None:
    doctored = copy.deepcopy(CONFINED)
    doctored[part][key] = value
    assert findings(doctored) == [said]


def test_what_is_not_said_is_wrong() -> None:
    assert len(findings({})) == 9
