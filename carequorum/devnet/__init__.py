"""Networks of hospitals on one machine, to be tried, watched and broken. For development only."""

from carequorum.devnet.errors import DevnetError
from carequorum.devnet.faults import Faults
from carequorum.devnet.files import free_ports, new_wallet
from carequorum.devnet.members import DevnetNode, Settings
from carequorum.devnet.network import Devnet, NodeStatus, create

__all__ = [
    "Devnet",
    "DevnetError",
    "DevnetNode",
    "Faults",
    "NodeStatus",
    "Settings",
    "create",
    "free_ports",
    "new_wallet",
]
