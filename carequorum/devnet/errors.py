"""What went wrong with a development network."""


class DevnetError(Exception):
    """One line for people."""
