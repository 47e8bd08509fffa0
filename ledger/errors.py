"""The one exception by which this room says no."""


class Rejection(Exception):  # noqa: N818 - it is a verdict on input, not a fault of ours
    """Input that breaks a rule. `code` is stable and documented in docs/errors.md; `detail` is for people.

    Neither ever holds patient content or key material.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class MissingNode(Exception):  # noqa: N818 - named for what is missing
    """A Merkle structure refers to a node that its store does not hold: the store is damaged."""
