"""Access control: networks for OSC and HTTP, known host names, the token for changes, and folders open to others."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from bridge.file_reader import FileReader, raise_invalid
from engine.shared.parameter import InvalidValue

#: Networks that are admitted by default if the show listens beyond this machine: private ones only.
PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1/128")
#: Longest wait for a link in an open folder. Where folders hang, files in them are refused without a wait.
CHECK_SECONDS = 0.2
#: A name that is not a path: of an entry in one of Phosphene's folders, or of a model on a hub.
NAME = re.compile(r"[\w][\w.+-]*(/[\w][\w.+-]*)?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AccessPolicy:
    """Access rules of a show that listens on ``host``.

    ``allow`` lists networks such as ``192.168.1.0/24`` or addresses, also several in one text, separated by commas.
    ``token`` authorises changes from other machines; if it is empty and the show is ``exposed``, it is random.
    Raises ValueError for a malformed network.
    """

    def __init__(self, host: str = "127.0.0.1", allow: Iterable[str] = (), token: str = "") -> None:
        self.exposed = not _is_loopback(host)
        allowed = [part.strip() for text in allow for part in text.split(",") if part.strip()]
        default = PRIVATE_NETWORKS if self.exposed else LOOPBACK_NETWORKS
        networks = (*allowed, *LOOPBACK_NETWORKS) if allowed else default
        self.networks: tuple[Network, ...] = tuple(ipaddress.ip_network(text, strict=False) for text in networks)
        self.token = token or (secrets.token_urlsafe(12) if self.exposed else "")
        host_name = socket.gethostname().lower()
        short_name = host_name.split(".")[0]
        self._host_names = {"localhost", host.lower(), host_name, short_name, short_name + ".local"}

    def admits(self, address: str) -> bool:
        """Return whether this address may connect at all."""
        ip = _parse_address(address)
        return ip is not None and any(ip.version == network.version and ip in network for network in self.networks)

    def trusts(self, address: str, token: str) -> bool:
        """Return whether a client at ``address`` may make changes: this machine may, others need the token."""
        if not self.token or _is_loopback(address):
            return True
        return hmac.compare_digest(self.token.encode(), token.encode("utf-8", "surrogatepass"))  # a header's raw bytes

    def is_known_host(self, name: str) -> bool:
        """Return whether ``name`` is an address or one of this machine's names.

        Any other name that resolves to this machine is DNS rebinding by another site.
        """
        name = name.lower().strip("[]").split("%")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._host_names
        return True


def confine_files(folders: Iterable[Path]) -> Callable[[str], None]:
    """Return a check for file names from other machines: it accepts plain names, and files in one of ``folders``.

    The check raises InvalidValue for any other. It decides by the name alone, and touches the disk for files within
    the folders only: a link there may lead outside, and elsewhere a folder may not answer. A plain name counts as a
    file if it begins like an entry of the working folder at the start.
    """
    places = [folder.expanduser() for folder in folders]
    resolved = [folder.resolve() for folder in places]
    roots = {*resolved, *(Path(os.path.abspath(folder)) for folder in places)}
    working_folder, home = Path.cwd(), Path(os.path.expanduser("~"))
    local: set[str] = set()
    with suppress(OSError), os.scandir(working_folder) as entries:
        local = {entry.name.casefold() for entry in entries}
    reader = FileReader(CHECK_SECONDS)

    def is_within(path: Path, folders: Iterable[Path]) -> bool:
        return any(path.is_relative_to(folder) for folder in folders)

    def check(text: str) -> None:
        if not text or (NAME.fullmatch(text) and text.split("/")[0].casefold() not in local):
            return
        if "\0" in text:
            raise InvalidValue(f"{text[:80]!r} is not a file name")
        path = home / text[2:] if text[:2] in ("~", "~/") else working_folder / text
        is_known_home = text[0] != "~" or text[:2] in ("~", "~/")
        targets: list[Path] = []
        if is_known_home and is_within(Path(os.path.abspath(path)), roots):
            reader.submit("--files", path.resolve, targets.append, lambda why: raise_invalid(f"{text[:80]!r}: {why}"))
        if not any(is_within(target, resolved) for target in targets):
            raise InvalidValue(f"{text[:80]!r} is outside the folders open to other machines; --files DIR opens one")

    return check


def _parse_address(text: str) -> Address | None:
    """Return the address without its zone, an IPv4 address mapped to IPv6 as IPv4; None if it is malformed."""
    try:
        ip = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def _is_loopback(host: str) -> bool:
    ip = _parse_address(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)
