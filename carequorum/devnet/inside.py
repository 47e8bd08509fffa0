"""What runs in the containers of configs/docker beside the daemon. Errors are one line, exit code 1.

python -m carequorum.devnet.inside found                the init service, with the volumes of all nodes
python -m carequorum.devnet.inside configure CHANGES    in the volume of one node; CHANGES is JSON
"""

import os
import sys

import msgspec

from carequorum.devnet.backend import Order
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.members import Settings
from carequorum.devnet.volumes import ADMIN, HOME, MEMBERS, NODES, ORDER_VARIABLE, configure, found, read_members


def main(arguments: list[str]) -> int:
    """The exit code."""
    try:
        if arguments == ["found"]:
            members = read_members(MEMBERS)
            order = msgspec.json.decode(os.environ.get(ORDER_VARIABLE) or "{}", type=Order)
            new = found(members, NODES, ADMIN, order)
            print(f"{'made' if new else 'found'} keys and genesis of {len(members)} members")
        elif len(arguments) == 2 and arguments[0] == "configure":
            configure(HOME, msgspec.json.decode(arguments[1], type=Settings))
        else:
            raise DevnetError("usage: python -m carequorum.devnet.inside found | configure CHANGES")
    except (DevnetError, OSError, ValueError) as error:
        print(f"error: {str(error)[:500]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
