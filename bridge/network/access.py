"""Who may come in: networks for OSC and HTTP, names that a browser may call this machine, a token, and the files that may be named."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from engine.shared.parameter import InvalidValue

#: Who is let in where ``--allow`` says nothing and the show listens beyond its own machine: private networks alone.
PRIVATE = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)
LOCAL = ("127.0.0.0/8", "::1/128")
#: A name that is no path: one in a folder of Phosphene's own, or one on a hub.
NAME = re.compile(r"[\w][\w.+-]*(/[\w][\w.+-]*)?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AccessPolicy:
    """The doors of one show that listens on ``host``. ``allow`` are networks as ``192.168.1.0/24`` or addresses; raises ValueError.

    ``token`` is what changes need from another machine: the one that is given, or one that is drawn where the show is ``exposed``.
    """

    def __init__(self, host: str = "127.0.0.1", allow: Iterable[str] = (), token: str = "") -> None:
        self.exposed = not _local(host)
        wanted = [part.strip() for text in allow for part in text.split(",") if part.strip()]
        usual = PRIVATE if self.exposed else LOCAL
        self.networks = (
            tuple(ipaddress.ip_network(one, strict=False) for one in (*wanted, *LOCAL)) if wanted else _networks(usual)
        )
        self.token = token or (secrets.token_urlsafe(12) if self.exposed else "")
        own = socket.gethostname().lower()
        self._names = {"localhost", host.lower(), own, own.split(".")[0], own.split(".")[0] + ".local"}

    def admits(self, address: str) -> bool:
        """Whether that address may come in at all."""
        try:
            found = ipaddress.ip_address(address.split("%")[0])
        except ValueError:
            return False
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found.version == network.version and found in network for network in self.networks)

    def trusts(self, address: str, token: str) -> bool:
        """Whether whoever is there may change things: this machine, or one with the token."""
        return not self.token or _local(address) or hmac.compare_digest(self.token.encode(), token.encode())

    def is_called(self, name: str) -> bool:
        """Whether a browser may call this machine so. Another name that leads here is another site's trick."""
        name = name.lower().strip("[]").split("%")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def confine_files(folders: Iterable[Path]) -> Callable[[str], None]:
    """A check of what is named from outside: plain names pass, and files in one of ``folders``; it raises BadValue for any other."""
    roots = [folder.expanduser().resolve() for folder in folders]

    def check(text: str) -> None:
        if not text or (NAME.fullmatch(text) and not Path(text).exists()):
            return
        try:
            path = Path(text).expanduser().resolve()
        except (OSError, RuntimeError, ValueError):
            raise InvalidValue(f"{text[:80]!r} is no file's name") from None
        if not any(path.is_relative_to(root) for root in roots):
            raise InvalidValue(f"{text[:80]!r} lies in no folder that is open to other machines; --files DIR opens one")

    return check


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def _local(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    return bool((getattr(found, "ipv4_mapped", None) or found).is_loopback)
