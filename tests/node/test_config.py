import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from node.config import PRESETS, Config, ConfigError, ConsensusSection, load_config, parse_config

ROOT = Path(__file__).parents[2]
REQUIRED = '[node]\ngenesis = "genesis.json"\ndata_dir = "data"\nkey_file = "node.key"\n'


def keys_of(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted key with its default; NODEFAULT where the file must say."""
    for field in msgspec.structs.fields(struct):
        path = f"{prefix}{field.encode_name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys_of(field.type, f"{path}.")
        else:
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            yield path, str(default) if isinstance(default, Path) else default


def preset_defaults(preset: str) -> dict[str, object]:
    changed = {f"{section}.{key}": value for section, keys in PRESETS[preset].items() for key, value in keys.items()}
    return {**dict(keys_of(Config)), **changed}


def documented_rows() -> dict[str, tuple[str, str]]:
    """docs/configuration.md: key to (default, default with "machine")."""
    text = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \|[^|]*\| ([^|]*)\| ([^|]*)\|", text, re.MULTILINE)
    return {key: (default.strip(), machine.strip()) for key, default, machine in rows}


def toml_value(cell: str) -> object:
    return tomllib.loads(f"value = {cell.strip('`')}")["value"]


def test_every_key_is_in_the_table_with_its_defaults() -> None:
    rows = documented_rows()
    assert set(rows) == {key for key, _ in keys_of(Config)}
    for key, (lan, machine) in rows.items():
        default = preset_defaults("lan")[key]
        if default is msgspec.NODEFAULT:
            assert lan == "required", key
        elif default is None:
            assert lan == "none", key
        else:
            assert toml_value(lan) == default, key
        if key != "preset":
            with_machine = preset_defaults("machine")[key]
            assert (toml_value(machine) if machine else default) == with_machine, key


def test_the_example_shows_every_key_with_its_default() -> None:
    lines = (ROOT / "configs/node.example.toml").read_text().splitlines()
    shown: dict[str, object] = {}
    section = ""
    for line in lines:
        if header := re.fullmatch(r"\[([a-z.]+)\]", line):
            section = f"{header.group(1)}."
        elif entry := re.fullmatch(r"(# )?([a-z_]+) = (.+)", line):
            shown[section + entry.group(2)] = toml_value(entry.group(3))
    example_only = {
        "node.id",
        "node.passphrase_file",
        "consensus.trace",
        "logging.file",
        *(key for key, default in keys_of(Config) if default is msgspec.NODEFAULT),
    }
    expected = {
        key: default
        for key, default in preset_defaults("lan").items()
        if key not in example_only and key not in ("peers.addresses", "peers.certificates")
    }
    assert {key: value for key, value in shown.items() if key not in example_only} == expected
    assert example_only <= set(shown)
    assert {"[peers.addresses]", "[peers.certificates]"} <= set(lines)
    assert load_config(ROOT / "configs/node.example.toml").consensus == ConsensusSection()


def test_a_comment_stands_above_every_key_of_the_example() -> None:
    lines = (ROOT / "configs/node.example.toml").read_text().splitlines()
    for before, line in pairwise(lines):
        if re.fullmatch(r"(# )?[a-z_]+ = .+", line):
            assert before.startswith("# "), line


def test_the_four_hospitals_are_one_network() -> None:
    paths = sorted((ROOT / "configs/four-hospitals").glob("*.toml"))
    configs = {path.stem: load_config(path) for path in paths}
    assert list(configs) == ["hospital-a", "hospital-b", "hospital-c", "hospital-d"]
    ports = [port for each in configs.values() for port in (each.peers.listen_port, each.provider.port)]
    assert len(set(ports)) == len(ports)
    for name, config in configs.items():
        assert config.preset == "machine"
        others = {other: f"127.0.0.1:{configs[other].peers.listen_port}" for other in configs if other != name}
        assert config.peers.addresses == others
    assert not list((ROOT / "configs").rglob("*.key"))


def test_paths_are_taken_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/node.toml").write_text(REQUIRED + 'passphrase_file = "/secrets/p"\n')
    monkeypatch.chdir(tmp_path)
    node = load_config(Path("etc/node.toml")).node
    assert node.genesis == tmp_path / "etc/genesis.json"
    assert node.ports_file == tmp_path / "etc/ports.json"
    assert node.passphrase_file == Path("/secrets/p")


def test_what_the_file_says_wins_over_the_preset() -> None:
    text = f'preset = "machine"\n{REQUIRED}[pool]\ntransactions_max = 700\n'
    config = parse_config(text, Path("/etc"))
    assert config.pool.transactions_max == 700
    assert config.pool.bytes_max == 64 * 1024 * 1024
    assert config.peers.listen_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("", "node", "is missing; expected a value"),
        ('[node]\ngenesis = "g"\ndata_dir = "d"\n', "node.key_file", "is missing; expected a value"),
        ("surprise = 1\n" + REQUIRED, "surprise", "is 1; expected only keys"),
        (REQUIRED + "[pool]\nsize = 3\n", "pool.size", "is 3; expected only keys"),
        (REQUIRED + "[consensus]\ntick_ms = true\n", "consensus.tick_ms", "is True; expected `int`"),
        (REQUIRED + "[consensus]\ntick_ms = 2\n", "consensus.tick_ms", "is 2; expected `int` >= 5"),
        (REQUIRED + '[provider]\nport = "80"\n', "provider.port", "is '80'; expected `int`"),
        (REQUIRED + "[provider]\nport = 65536\n", "provider.port", "is 65536; expected `int` <= 65535"),
        (REQUIRED + "passphrase_file = 7\n", "node.passphrase_file", "is 7; expected `str`, the path"),
        (REQUIRED + 'passphrase_file = ""\n', "node.passphrase_file", "is ''; expected `str`, the path"),
        (REQUIRED + '[logging]\nlevel = "loud"\n', "logging.level", "is 'loud'; expected \"debug\" or"),
        ('preset = "wan"\n' + REQUIRED, "preset", 'is \'wan\'; expected "machine" or "lan"'),
        (REQUIRED + '[peers.addresses]\nb = "nowhere"\n', "peers.addresses", '"host:port"'),
        (REQUIRED + '[peers.addresses]\nB = "b:1"\n', "peers.addresses", '"host:port"'),
        (REQUIRED + '[peers.certificates]\nb = "b.crt"\n', "peers.certificates", "peers.addresses has too"),
        (REQUIRED + "[peers.certificates]\nb = 1\n", "peers.certificates", "a PEM file"),
        ("peers = 3\n" + REQUIRED, "peers", "is 3; expected `object`"),
        (REQUIRED + "[consensus]\nheartbeat_ms = 300\n", "consensus.heartbeat_ms", "is 300; expected at most"),
        (REQUIRED + "[consensus]\nheartbeat_ms = 60\n", "consensus.heartbeat_ms", "expected a multiple of"),
        (
            REQUIRED + "[consensus]\nelection_timeout_max_ms = 500\n",
            "consensus.election_timeout_max_ms",
            "is 500; expected more than",
        ),
        (
            REQUIRED + "[consensus]\nuncommitted_bytes_max = 1048576\n",
            "consensus.append_bytes_max",
            "expected at most consensus.uncommitted_bytes_max",
        ),
        (REQUIRED + "[pool]\nmember_share = 0.6\n", "pool.member_share", "is 0.6; expected at most"),
        (REQUIRED + "[devnet]\nclock_offset_ms = 5\n", "devnet.clock_offset_ms", "is 5; expected 0 unless"),
        ("[node", "the configuration", "expected TOML"),
    ],
)
def test_an_error_names_path_value_and_what_was_expected(text: str, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Path("/etc"))
    assert caught.value.path == path
    assert str(caught.value).startswith(path)
    assert words in str(caught.value)


def test_a_wrong_clock_is_for_one_machine() -> None:
    text = f'preset = "machine"\n{REQUIRED}[devnet]\nclock_offset_ms = -3600000\n'
    assert parse_config(text, Path("/etc")).devnet.clock_offset_ms == -3_600_000


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "absent.toml"
    with pytest.raises(ConfigError, match=re.escape(f"{missing} is 'No such file")):
        load_config(missing)
    latin = tmp_path / "latin.toml"
    latin.write_bytes("# Krankenhaus Süd".encode("latin-1"))
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load_config(latin)
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="expected at most 1048576 bytes"):
        load_config(huge)
