"""What users import and type: the client, the wallet, sealed records, offline verification, and the command.

from carequorum.client import Client
from carequorum.verify import load_genesis
from carequorum.wallet import Wallet
"""
