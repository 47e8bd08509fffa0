"""What `python -m tests.testnets` says before it touches anything."""

import os
import shutil
from collections.abc import Sequence

import pytest

from carequorum.devnet import commands
from tests.testnets import __main__ as command
from tests.testnets.tools import unavailable


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--backend"),
        (["--backend", "moon"], "moon"),
        (["--backend", "process", "--rows", "flood"], "no row 'flood'"),
        (["--backend", "process", "--rows", ""], "no row ''"),
        (["--backend", "process", "more"], "more"),
    ],
)
def test_bad_arguments_are_told(arguments: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["netns", "docker"])
def test_without_root_it_skips_with_one_line(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert command.main(["--backend", backend]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{backend}-test: skipped: network namespaces need root\n"
    assert captured.err == ""


def test_what_is_missing_and_cannot_be_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands, "missing", lambda: "missing: ip")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert unavailable("netns") == "needs iproute2 and iptables, and this is no Debian with apt-get"


def test_what_is_there_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands, "missing", lambda: None)
    assert unavailable("netns") is None
    assert unavailable("process") is None
