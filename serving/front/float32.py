"""Single-precision numbers at the edge of the server, which computes in Python's doubles.

Runs in the front. Comes in: numbers from JSON, or log-probabilities from the engine. Goes out:
doubles that equal a float32, or that print as the shortest decimal of one. Next: `tgi/schema.py`.
"""

import math
import struct

_FLOAT32 = struct.Struct("f")
LARGEST = 3.4028234663852886e38


def to_float32(value: float) -> float:
    """The nearest float32, as a double; what lies beyond its range becomes its largest value."""
    if abs(value) > LARGEST:
        return math.copysign(LARGEST, value)
    return float(_FLOAT32.unpack(_FLOAT32.pack(value))[0])


def shortest(value: float) -> float:
    """The double whose shortest decimal is the shortest that still names this (normal) float32.

    A JSON encoder that prints doubles shortest then prints float32 values shortest. NaN and
    infinities pass through: the encoder writes them as null. Three powers of two far from any
    log-probability get one digit more.
    """
    if not math.isfinite(value):
        return value
    target = to_float32(value)
    packed = _FLOAT32.pack(target)
    # From 6 digits, which always survive a float32, to 9, which always identify one; most need 7
    # or 8. Where 7 do not name it, 6 do not either.
    candidate = float(f"{target:.7g}")
    if _FLOAT32.pack(candidate) == packed:
        shorter = float(f"{target:.6g}")
        return shorter if _FLOAT32.pack(shorter) == packed else candidate
    candidate = float(f"{target:.8g}")
    return candidate if _FLOAT32.pack(candidate) == packed else float(f"{target:.9g}")
