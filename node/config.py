"""The daemon's configuration: one TOML file into typed, checked values.

Every key is documented with its unit, default and trade-off in configs/node.example.toml and listed in
docs/configuration.md. `preset` chooses the defaults that differ between one machine and a LAN; what the file
says wins. Relative paths are relative to the file. Unknown keys are refused, and an error names the dotted
path, the value and what was expected.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from ledger.finality import NodeId

CONFIG_BYTES_MAX = 1024 * 1024
EXAMPLE = "configs/node.example.toml"
KIB, MIB = 1024, 1024 * 1024

Preset = Literal["machine", "lan"]
Join = Literal["snapshot", "replay"]
Level = Literal["debug", "info", "warning", "error"]

Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:\-]{1,255}\Z")]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Address = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.\-\[\]:]{1,255}:[0-9]{1,5}\Z")]
Share = Annotated[float, Meta(gt=0, le=1)]
Milliseconds = Annotated[int, Meta(ge=1, le=600_000)]

# What differs from the defaults below, which are those of "lan".
PRESETS: dict[str, dict[str, dict[str, object]]] = {
    "lan": {},
    "machine": {
        "peers": {"listen_host": "127.0.0.1"},
        "pool": {"transactions_max": 5_000, "bytes_max": 64 * MIB},
        "storage": {"snapshot_interval_blocks": 1_000},
    },
}


class ConfigError(Exception):
    """One thing wrong: `path` is the dotted key, `value` what stands there (UNSET if nothing does)."""

    def __init__(self, path: str, value: object, expected: str) -> None:
        shown = "is missing" if value is msgspec.UNSET else f"is {_short(value)}"
        super().__init__(f"{path} {shown}; expected {expected}")
        self.path = path
        self.value = value
        self.expected = expected


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Files. `ports_file` receives the bound ports as JSON once the node listens. `id` only where genesis does not
    name the key."""

    genesis: Path
    data_dir: Path
    key_file: Path
    id: NodeId | None = None
    found: bool = False
    passphrase_file: Path | None = None
    ports_file: Path = Path("ports.json")


class PeersSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The port for other nodes. `addresses` overrides the ledger: node id to host:port. `certificates` introduces
    nodes that genesis does not name, each with an address: node id to PEM file."""

    listen_host: Host = "0.0.0.0"  # noqa: S104 - peers are on other machines, and are pinned by certificate
    listen_port: Port = 7400
    reannounce_ms: Milliseconds = 5_000
    addresses: dict[NodeId, Address] = {}
    certificates: dict[NodeId, Path] = {}


class ProviderSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The port for this hospital's own programs."""

    host: Host = "127.0.0.1"
    port: Port = 7480
    request_bytes_max: Annotated[int, Meta(ge=2 * MIB, le=256 * MIB)] = 16 * MIB
    wait_ms_max: Milliseconds = 8_000


class ConsensusSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Raft's timing and its windows."""

    election_timeout_min_ms: Milliseconds = 500
    election_timeout_max_ms: Milliseconds = 1_000
    heartbeat_ms: Milliseconds = 100
    tick_ms: Annotated[int, Meta(ge=5, le=1_000)] = 50
    seal_delay_ms: Milliseconds = 50
    clock_skew_ms: Milliseconds = 30_000
    inflight_blocks_max: Annotated[int, Meta(ge=1, le=1_024)] = 64
    append_bytes_max: Annotated[int, Meta(ge=64 * KIB, le=3 * MIB)] = 2 * MIB
    uncommitted_bytes_max: Annotated[int, Meta(ge=1 * MIB, le=1_024 * MIB)] = 16 * MIB
    trace: Path | None = None


class PoolSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Transactions that wait for a block."""

    transactions_max: Annotated[int, Meta(ge=100, le=1_000_000)] = 20_000
    bytes_max: Annotated[int, Meta(ge=16 * MIB, le=16 * 1024 * MIB)] = 256 * MIB
    organisation_share: Share = 0.5
    member_share: Share = 0.25


class StorageSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Snapshots, and how much of the chain this node keeps."""

    snapshot_interval_blocks: Annotated[int, Meta(ge=0, le=10_000_000)] = 10_000
    keep_blocks: Annotated[int, Meta(ge=0, le=2**53)] = 0
    join: Join = "snapshot"


class LoggingSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """JSON lines, to standard error unless `file` is set."""

    level: Level = "info"
    file: Path | None = None


class DevnetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For trials only; refused unless preset is "machine"."""

    clock_offset_ms: Annotated[int, Meta(ge=-86_400_000, le=86_400_000)] = 0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the daemon is told. Paths are absolute."""

    preset: Preset = "lan"
    node: NodeSection
    peers: PeersSection = PeersSection()
    provider: ProviderSection = ProviderSection()
    consensus: ConsensusSection = ConsensusSection()
    pool: PoolSection = PoolSection()
    storage: StorageSection = StorageSection()
    logging: LoggingSection = LoggingSection()
    devnet: DevnetSection = DevnetSection()


def load_config(path: Path) -> Config:
    """Read and check the file at `path`. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "unreadable", "a readable file") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(str(path), "longer", f"at most {CONFIG_BYTES_MAX} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"byte {data[error.start]:#04x}", "UTF-8 text") from None
    return parse_config(text, path.parent, str(path))


def parse_config(text: str, folder: Path, name: str = "the configuration") -> Config:
    """As `load_config`, from TOML text; relative paths are taken from `folder`. Raises ConfigError."""
    base = folder.absolute()
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, str(error), "TOML") from None
    with_preset = _with_preset(document)
    try:
        config = msgspec.convert(with_preset, Config, dec_hook=_path_below(base))
    except msgspec.ValidationError as error:
        raise _explain(str(error), with_preset) from None
    # A default path never passes the decoder's hook.
    files = msgspec.structs.replace(config.node, ports_file=base / config.node.ports_file)
    config = msgspec.structs.replace(config, node=files)
    _cross_check(config)
    return config


def _with_preset(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its preset's defaults filled in below what it says itself."""
    preset = document.get("preset", "lan")
    merged = dict(document)
    for section, defaults in PRESETS.get(preset, {}).items() if isinstance(preset, str) else ():
        given = document.get(section, {})
        if isinstance(given, dict):
            merged[section] = {**defaults, **given}
    return merged


def _path_below(folder: Path) -> Callable[[type, Any], Any]:
    def decode(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value and "\0" not in value:
            return folder / value
        raise TypeError("Expected `str`, the path of a file")

    return decode


def _cross_check(config: Config) -> None:
    """Rules that join two keys: path of the key to change, whether it holds, what was expected of it."""
    timing, pool, tick = config.consensus, config.pool, config.consensus.tick_ms
    rules = [
        (
            "consensus.heartbeat_ms",
            timing.heartbeat_ms * 2 <= timing.election_timeout_min_ms,
            "at most half of consensus.election_timeout_min_ms, so that one lost heartbeat elects nobody",
        ),
        (
            "consensus.election_timeout_max_ms",
            timing.election_timeout_max_ms > timing.election_timeout_min_ms,
            "more than consensus.election_timeout_min_ms, so that candidates do not collide",
        ),
        *(
            (
                f"consensus.{key}",
                getattr(timing, key) % tick == 0,
                f"a multiple of consensus.tick_ms ({tick})",
            )
            for key in ("heartbeat_ms", "election_timeout_min_ms", "election_timeout_max_ms")
        ),
        (
            "consensus.append_bytes_max",
            timing.append_bytes_max <= timing.uncommitted_bytes_max,
            "at most consensus.uncommitted_bytes_max",
        ),
        (
            "peers.certificates",
            config.peers.certificates.keys() <= config.peers.addresses.keys(),
            "only ids that peers.addresses has too",
        ),
        (
            "pool.member_share",
            pool.member_share <= pool.organisation_share,
            "at most pool.organisation_share, of which it is a part",
        ),
        (
            "storage.keep_blocks",
            config.storage.keep_blocks == 0 or config.storage.snapshot_interval_blocks > 0,
            "0 unless storage.snapshot_interval_blocks is set: what is pruned stands in a snapshot first",
        ),
        (
            "devnet.clock_offset_ms",
            config.devnet.clock_offset_ms == 0 or config.preset == "machine",
            '0 unless preset = "machine": a wrong clock is for trials',
        ),
    ]
    for path, holds, expected in rules:
        if not holds:
            section, key = path.split(".")
            raise ConfigError(path, getattr(getattr(config, section), key), expected)


_CHOICES = {
    "preset": " or ".join(f'"{name}"' for name in get_args(Preset)),
    "storage.join": " or ".join(f'"{name}"' for name in get_args(Join)),
    "logging.level": " or ".join(f'"{name}"' for name in get_args(Level)),
    "peers.addresses": 'a table of node id = "host:port"',
    "peers.certificates": "a table of node id = a PEM file",
}


def _explain(message: str, document: dict[str, Any]) -> ConfigError:
    """Turn the decoder's message ("Expected `int` >= 1 - at `$.pool.bytes_max`") into a ConfigError."""
    text, _, where = message.partition(" - at ")
    found = re.search(r"`\$\.?(.*)`", where)
    path = found.group(1) if found else ""
    if key := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        path = f"{path}.{key.group(1)}".lstrip(".")
        return ConfigError(path, _value_at(document, path), f"only keys that {EXAMPLE} documents")
    if key := re.fullmatch(r"Object missing required field `(.*)`", text):
        path = f"{path}.{key.group(1)}".lstrip(".")
        return ConfigError(path, msgspec.UNSET, "a value, for this key has no default")
    path = path.removesuffix("[...]")
    expected = _CHOICES.get(path) or _expectation(text)
    return ConfigError(path or "the configuration", _value_at(document, path), expected)


def _expectation(text: str) -> str:
    return text.removeprefix("Expected ").partition(", got ")[0].replace("\\\\Z", "$")


def _value_at(document: dict[str, Any], path: str) -> object:
    value: object = document
    for key in path.split(".") if path else ():
        if not isinstance(value, dict) or key not in value:
            return msgspec.UNSET
        value = value[key]
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
