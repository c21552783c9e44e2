"""Talk to a running show over OSC: set parameters, then read one back.

phosphene run &
python osc_client.py 127.0.0.1 9000
"""

from __future__ import annotations

import sys
import time

from pythonosc.udp_client import SimpleUDPClient


def query(client: SimpleUDPClient, address: str) -> object:
    """Return the value at ``address``. The show answers to the port that asked. Raises TimeoutError."""
    client.send_message(address, "?")
    for message in client.get_messages(timeout=5.0):
        if message.address == address:
            return message.params[0]
    raise TimeoutError(f"no answer for {address}; is the show running?")


def main(host: str = "127.0.0.1", port: str = "9000") -> None:
    """Ramp the strength up over one second, change the prompt, and print what the show has."""
    client = SimpleUDPClient(host, int(port))
    client.send_message("/phosphene/prompt", "orange fire")
    for step in range(21):
        client.send_message("/phosphene/strength", 0.3 + 0.02 * step)
        time.sleep(0.05)
    print("strength", round(float(str(query(client, "/phosphene/strength"))), 3))
    print("prompt", query(client, "/phosphene/prompt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
