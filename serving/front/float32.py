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
    infinities pass through: the encoder writes them as null.
    """
    if not math.isfinite(value):
        return value
    target = to_float32(value)
    for digits in range(6, 9):  # 9 significant digits always identify a float32
        candidate = float(f"{target:.{digits}g}")
        if to_float32(candidate) == target:
            return candidate
    return float(f"{target:.9g}")
