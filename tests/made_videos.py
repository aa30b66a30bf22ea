"""Small real videos for tests, made by PyAV's encoders: every scene has a colour, every frame a moving bar."""

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# (red, green, blue) of scenes that differ from each other in brightness, too.
SCENES = ((220, 60, 60), (20, 60, 30), (240, 240, 200), (40, 40, 140), (160, 220, 240))


@contextlib.contextmanager
def quiet():
    """Without what encoders write to stderr past Python."""
    held, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)
        os.close(null)


def picture(number, scene, width, height):
    pixels = np.full((height, width, 3), SCENES[scene % len(SCENES)], np.uint8)
    left = number * 3 % (width - 8)
    pixels[: height // 3, left : left + 8] = number * 5 % 256  # above, so that up and down are not alike
    return pixels


def video(path: Path, codec="libx264", times=None, scene_frames=30, frames=90, fps=30, gop=12, b_frames=2,
          size=(96, 64), rotation=None, muxer=None, **options):  # fmt: skip
    """A video at `path`; times: of each frame, in milliseconds, for one of a variable rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(times) if times else frames
    with quiet(), av.open(str(path), "w", container_options=muxer or {}) as file:
        stream = file.add_stream(codec, rate=1000 if times else fps, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if codec in ("libx264", "mpeg4", "mpeg2video"):
            stream.max_b_frames = b_frames
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, number // scene_frames, *size), "rgb24")
            frame.pts, frame.time_base = (times[number], Fraction(1, 1000)) if times else (number, Fraction(1, fps))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path
