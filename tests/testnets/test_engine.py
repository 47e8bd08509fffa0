"""What `engine` makes and leaves, as far as it can be seen without an engine."""

import os
import select
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from carequorum.devnet import DevnetError, programs
from tests.testnets import engine

RULES = {"filter": ["-P FORWARD ACCEPT"], "nat": ["-P PREROUTING ACCEPT", "-P OUTPUT ACCEPT"]}


def test_the_base_image_holds_nothing_of_the_machine_that_made_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    kept = ["etc/os-release", "var/lib/dpkg/status", "usr/share/doc/etc/hostname"]
    own = ["etc/resolv.conf", "etc/hostname", "etc/apt/sources.list", "var/log/bootstrap.log", "var/cache/apt/a.deb"]
    for name in [*kept, *own]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    subprocess.run(engine._packing(root, tmp_path / "base.tar"), check=True)
    with tarfile.open(tmp_path / "base.tar") as archive:
        files = [member.name.removeprefix("./") for member in archive.getmembers() if member.isfile()]
    assert sorted(files) == sorted(kept)
    assert engine.RECIPE in engine.CACHE.name
    assert engine.RECIPE in engine.BASE_ELSEWHERE


def test_what_a_killed_engine_leaves_is_ended(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with ExitStack() as ending:
        shims, children = [], []
        for folder in (tmp_path / "ours", tmp_path / "another"):
            ending.callback(engine._end_left, folder)
            words = [sys.executable, "-c", script, "-address", str(folder / "containerd.sock")]
            shim = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            ending.callback(shim.wait, 20)
            assert shim.stdout is not None
            with shim.stdout as said:
                children.append(os.pidfd_open(int(said.readline())))
            ending.callback(os.close, children[-1])
            ending.callback(shim.kill)
            shims.append(shim)
        engine._end_left(tmp_path / "ours")
        assert shims[0].wait(20) == -signal.SIGKILL
        assert ended(children[0], 20_000)
        assert shims[1].poll() is None
        assert not ended(children[1], 0)
        engine._end_left(tmp_path / "another")
        assert ended(children[1], 20_000)


def ended(pidfd: int, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


@pytest.mark.parametrize("another", [True, False])
def test_policies_and_forwarding_are_always_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    ran: list[str] = []

    def attempt(words: Sequence[str]) -> SimpleNamespace:
        ran.append(" ".join(words[2:]))
        said = {"-S FORWARD": "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", "-S": "-N DOCKER-USER\n-N OTHER\n"}
        return SimpleNamespace(stdout=said.get(" ".join(words[4:]), ""))

    forward = tmp_path / "ip_forward"
    monkeypatch.setattr(engine, "attempt", attempt)
    monkeypatch.setattr(engine, "_FORWARD", forward)
    before = {table: [*rules, *(["-N DOCKER"] if another else [])] for table, rules in RULES.items()}
    engine._restore_host(before, "0\n")
    assert forward.read_text() == "0\n"
    assert "-t filter -P FORWARD ACCEPT" in ran
    taken_out = ["-t filter -D FORWARD -j DOCKER-USER", "-t filter -F DOCKER-USER", "-t filter -X DOCKER-USER"]
    assert [words in ran for words in taken_out] == [not another] * 3
    assert not any("OTHER" in words for words in ran)


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Root on a Debian without an engine, whose apt-get fails. What was run there."""
    ran: list[str] = []

    def run(words: Sequence[str], **_: object) -> str:
        ran.append(" ".join(words))
        if words[0] == "apt-get":
            raise DevnetError("apt-get install: E: Unable to locate package")
        return ""

    def attempt(words: Sequence[str], **_: object) -> SimpleNamespace:
        ran.append(" ".join(words))
        return SimpleNamespace(returncode=1, stdout="")

    (tmp_path / "ip_forward").write_text("0\n")
    (tmp_path / "debian_version").write_text("12\n")
    found = {"iptables": "/sbin/iptables", "ip": "/sbin/ip", "service": "/usr/sbin/service"}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "answers", lambda: False)
    monkeypatch.setattr(engine, "DEBIAN", tmp_path / "debian_version")
    monkeypatch.setattr(engine, "_FORWARD", tmp_path / "ip_forward")
    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setattr(engine, "attempt", attempt)
    monkeypatch.setattr(programs, "find", found.get)
    return ran


def test_where_an_engine_cannot_be_installed_the_run_fails(debian: list[str]) -> None:
    assert engine.unavailable() is None
    before = dict(os.environ)
    with pytest.raises(DevnetError, match="Unable to locate package"), engine.engine():
        pass
    assert "apt-get update -qq" in debian
    # A failed installation may have started it.
    assert "/usr/sbin/service docker stop" in debian
    assert dict(os.environ) == before


def test_only_without_root_or_debian_an_engine_is_not_tried(
    debian: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert engine.unavailable() is None
    (tmp_path / "debian_version").unlink()
    assert engine.unavailable() == "no Docker engine answers, and only on Debian one can be installed"
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert engine.unavailable() == "an engine, and faults on its wires, need root"
    assert debian == []
