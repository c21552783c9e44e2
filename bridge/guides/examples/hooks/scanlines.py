"""An effect of your own: dark scanlines that roll over the picture.

phosphene run --hooks bridge/guides/examples/hooks
"""

#: Parameter → (default, lowest, highest, help). They become /hook/scanlines/amount and /hook/scanlines/speed.
PARAMETERS = {
    "amount": (0.4, 0.0, 1.0, "Darkness of every second pair of lines"),
    "speed": (0.0, 0.0, 60.0, "Rolling speed, in lines per second (0 = still)"),
}


def after(pictures, values, seconds):
    """Return the pictures, (B, 3, H, W) in 0..1, with lines 2 and 3 of every 4 darkened."""
    offset = int(values["speed"] * seconds) % 4
    pictures = pictures.clone()
    for line in (2, 3):
        pictures[:, :, (line + offset) % 4 :: 4] *= 1 - values["amount"]
    return pictures
