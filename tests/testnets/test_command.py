"""What `python -m tests.testnets` says before it touches anything."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from carequorum.devnet import Devnet, DevnetError, commands
from tests.testnets import __main__ as command
from tests.testnets import tools
from tests.testnets.figures import Report
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


def test_what_is_missing_and_cannot_be_installed_is_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert unavailable("netns") == "needs iproute2 and iptables, and this is no Debian with apt-get"


def test_an_installation_that_fails_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'no mirror answers' >&2\nexit 100\n")
    apt.chmod(0o755)
    (tmp_path / "debian_version").write_text("12\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tools, "find", lambda _: None)
    monkeypatch.setattr(tools, "_DEBIAN", tmp_path / "debian_version")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert command.main(["--backend", "netns", "--out", str(tmp_path / "report.json")]) == 1
    assert capsys.readouterr().err == "netns-test: apt-get update failed: no mirror answers\n"


def test_a_machine_that_has_all_and_still_cannot_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tools, "find", lambda name: name)
    monkeypatch.setattr(commands, "missing", lambda: "no network namespace can be had")
    assert command.main(["--backend", "netns", "--out", str(tmp_path / "report.json")]) == 1
    assert capsys.readouterr().err == "netns-test: no network namespace can be had\n"


def test_what_is_there_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tools, "find", lambda name: name)
    monkeypatch.setattr(commands, "missing", lambda: None)
    assert unavailable("netns") is None
    assert unavailable("process") is None


def test_a_run_that_breaks_down_leaves_no_earlier_figures_and_says_which_rows_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, keep = tmp_path / "report.json", tmp_path / "kept"
    out.write_text("of an earlier run")
    (keep / "net").mkdir(parents=True)
    (keep / "net" / "occupied").touch()
    arguments = ["--backend", "process", "--rows", "leader", "--keep", str(keep), "--out", str(out)]
    assert command.main(arguments) == 1
    report = msgspec.json.decode(out.read_bytes(), type=Report)
    assert list(report.unmeasured) == ["leader killed", "leader paused 10 s"]
    assert report.broke_down.endswith("is not empty")
    captured = capsys.readouterr()
    assert captured.out.count("NOT MEASURED") == 2
    assert "it does not hold that the run went through to its end" in captured.err


def test_a_network_is_taken_down_though_its_nodes_cannot_be_killed() -> None:
    verbs: list[str] = []

    class Stubborn:
        backend_name = "docker"
        nodes: tuple[()] = ()

        def kill(self, _: object) -> None:
            verbs.append("kill")
            raise DevnetError("the engine does not answer")

        def down(self, *, volumes: bool) -> None:
            verbs.append(f"down {volumes}")

    with pytest.raises(DevnetError, match="does not answer"), command._taken_down(cast("Devnet", Stubborn())):
        pass
    assert verbs == ["kill", "down True"]
