"""Deterministic weights and images for the golden cases. Needs only numpy.

Everything is drawn from one source: `numpy.random.Generator(numpy.random.PCG64(seed)).random(n)`,
which is n float64 numbers in [0, 1). Arithmetic is done in float64 and rounded to
float32 once, at the end.
"""

import zlib

import numpy as np


def uniform(seed, n):
    """n float64 numbers in [0, 1) from an integer seed."""
    return np.random.Generator(np.random.PCG64(int(seed))).random(int(n))


def noise(key, shape, salt=0):
    """Numbers of mean 0 and variance 1, spread evenly over [-sqrt(3), sqrt(3))."""
    seed = zlib.crc32(key.encode("utf-8")) + 2**32 * int(salt)
    n = int(np.prod(shape, dtype=np.int64))
    return ((2.0 * uniform(seed, n) - 1.0) * np.sqrt(3.0)).reshape(shape)


def weight(key, shape, adjust=(), salt=0):
    """The float32 array for one state_dict entry, or None where it must be left as it is.

    adjust: list of [suffix, operation, number], done in order where `key` ends with suffix:
    "mul" multiplies by the number, "add" adds it to every element, "add_last" adds it to
    the last element along axis 0 (the background class of a box classifier).
    """
    shape = tuple(int(x) for x in shape)
    name = key.rsplit(".", 1)[-1]
    if name == "num_batches_tracked":
        return None
    z = noise(key, shape, salt)
    if name == "running_mean":
        w = 0.1 * z
    elif name == "running_var":
        w = 1.0 + 0.2 * np.abs(z)
    elif name == "weight" and len(shape) == 1:  # a normalization layer
        w = 1.0 + 0.1 * z
        if key.endswith("conv3.norm.weight"):  # last one of a residual branch
            w = 0.3 * w
    elif name == "weight":
        # each output's weights sum to zero, so a constant shift of the inputs has no effect
        fan_in = int(np.prod(shape[1:], dtype=np.int64))
        z = z - z.reshape(shape[0], fan_in).mean(axis=1).reshape((-1,) + (1,) * (len(shape) - 1))
        w = z * np.sqrt(3.0 / fan_in)
    else:  # biases
        w = 0.02 * z
    for suffix, operation, number in adjust:
        if key.endswith(suffix):
            if operation == "mul":
                w = w * number
            elif operation == "add":
                w = w + number
            elif operation == "add_last":
                w = w.copy()
                w[-1] += number
            else:
                raise ValueError(operation)
    return w.astype(np.float32)


def image(seed, height, width, channels=3):
    """A uint8 image of shape (channels, height, width): waves plus tinted rectangles."""
    u = iter(uniform(seed, 4096))
    y = np.arange(height, dtype=np.float64)[:, None]
    x = np.arange(width, dtype=np.float64)[None, :]
    planes = []
    for _ in range(channels):
        plane = np.full((height, width), 90.0 + 60.0 * next(u))
        for _ in range(8):
            period = 6.0 + 90.0 * next(u) ** 2
            angle, phase = 2.0 * np.pi * next(u), 2.0 * np.pi * next(u)
            amplitude = 3.0 + 6.0 * next(u)
            wave = 2.0 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase
            plane = plane + amplitude * np.sin(wave)
        planes.append(plane)
    for _ in range(10):
        x0, y0 = int(next(u) * width * 0.9), int(next(u) * height * 0.9)
        w, h = int(8 + next(u) * width * 0.45), int(8 + next(u) * height * 0.45)
        for plane in planes:
            plane[y0 : y0 + h, x0 : x0 + w] += 70.0 * next(u) - 35.0
    return np.clip(np.rint(np.stack(planes)), 0, 255).astype(np.uint8)
