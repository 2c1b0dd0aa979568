"""Sound for a song: a short tone whose pitch follows from the song's number."""

from __future__ import annotations

import functools
import io
import math
import struct
import wave

RATE = 8000
SECONDS = 2
SCALE = (0, 2, 4, 7, 9, 12, 14, 16)


@functools.lru_cache(maxsize=len(SCALE))
def _tone(step: int) -> bytes:
    """A WAV file of one tone, step of SCALE semitones above A3."""
    pitch = 220.0 * 2 ** (SCALE[step] / 12)
    count = RATE * SECONDS
    frames = bytearray()
    for index in range(count):
        # A short fade at both ends keeps the loudspeaker from clicking.
        fade = min(1.0, index / 400, (count - index) / 400)
        frames += struct.pack("<h", int(12000 * fade * math.sin(2 * math.pi * pitch * index / RATE)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bytes(frames))
    return buffer.getvalue()


def wav(number: int) -> bytes:
    """The sound of a song.

    Args:
        number: The song's number.

    Returns:
        A WAV file: two seconds, one channel, 16 bits, 8000 Hz.
    """
    return _tone(number % len(SCALE))
