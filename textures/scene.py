"""Periodic height field, seen from above and lit by the sun, for make_textures.py.

Objects are stamped onto a `Scene`, or one formula fills it. `render` adds sun, soft shadows,
ambient occlusion and gloss in linear light. `develop` crops the result and averages it down to the
saved picture, and `relief` does the same with heights and normals.
"""

import numpy as np

SIZE = 256  # px, side of the saved picture
FINE = 3  # scene pixels per saved pixel
S = 320 * FINE  # scene pixels, period of the scene; the crop is smaller, and is not periodic


class Scene:
    """Maps of (S, S): colour (linear light), height (scene pixels) and its slopes, gloss."""

    def __init__(self):
        self.colour = np.zeros((S, S, 3), np.float32)
        self.height = np.full((S, S), -1e3, np.float32)
        self.slope_x = np.zeros((S, S), np.float32)
        self.slope_y = np.zeros((S, S), np.float32)
        self.gloss = np.zeros((S, S), np.float32)

    def fill(self, colour, height, gloss=0.0):
        """Replace the whole scene by a periodic height field."""
        self.colour[:], self.height[:], self.gloss[:] = colour, height, gloss
        self.slope_x[:] = (np.roll(height, -1, 1) - np.roll(height, 1, 1)) / 2
        self.slope_y[:] = (np.roll(height, -1, 0) - np.roll(height, 1, 0)) / 2

    def stamp(self, window, inside, colour, height, gloss=0.0, tilt=(0.0, 0.0), z_test=False):
        """Draw an object in a window. Slopes are those of the object alone, without the jump of
        height at its outline.

        Args:
            window: indices of scene pixels, from `window_at`; all maps have its shape.
            inside: bool, the pixels of the object.
            tilt: added to the slopes along x and y.
            z_test: leave out pixels below the present height.
        """
        if z_test:
            inside = inside & (height > self.height[window])
        slope_y, slope_x = np.gradient(height)
        for field, value in (
            (self.height, height),
            (self.slope_x, slope_x + tilt[0]),
            (self.slope_y, slope_y + tilt[1]),
            (self.gloss, gloss),
        ):
            field[window] = np.where(inside, value, field[window])
        self.colour[window] = np.where(inside[..., None], colour, self.colour[window])


def linear(*rgb):
    """Convert sRGB bytes to linear light (by gamma 2.2)."""
    return (np.asarray(rgb, np.float32) / 255) ** 2.2


def smoothstep(low, high, x):
    """Return 0 at x = low, 1 at x = high and beyond, and a smooth cubic step in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a, b, t):
    """Blend colours a and b by a map or number t: a at 0, b at 1."""
    t = np.asarray(t, np.float32)[..., None]
    return a * (1 - t) + b * t


def frequencies():
    """Return the frequencies of `rfft2`, along y and x, in cycles per saved pixel."""
    return np.fft.fftfreq(S)[:, None] * FINE, np.fft.rfftfreq(S)[None] * FINE


def noise(rng, coarse, fine=1.0, beta=1.0, stretch=(1.0, 1.0)):
    """Return periodic noise of unit variance, (S, S). Wavelengths are from `fine` to `coarse` saved
    pixels, the power spectrum is 1 / f^(2 beta + 1), and `stretch` elongates it along y and x."""
    fy, fx = frequencies()
    f = np.hypot(fy * stretch[0], fx * stretch[1])
    band = (f * coarse) ** 4 / (1 + (f * coarse) ** 4) * np.exp(-((f * fine) ** 2))
    amplitude = band / np.maximum(f, 1e-3) ** (beta + 0.5)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((S, S))) * amplitude, (S, S))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def blur(field, sigma):
    """Blur by a periodic Gaussian; sigma in saved pixels."""
    fy, fx = frequencies()
    kernel = np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    return np.fft.irfft2(np.fft.rfft2(field) * kernel, (S, S)).astype(np.float32)


def window_at(rng, centre, radius):
    """Return a square window around a centre, of side 2 int(radius) + 1, in scene pixels.

    Returns:
        Its indices, which wrap around; offsets x and y from the centre; indices of a window of the
        same size at a random place, to take noise from.
    """
    offset = np.arange(-int(radius), int(radius) + 1)
    y, x = np.meshgrid(offset, offset, indexing="ij")
    corner = np.floor(centre).astype(int)
    here = np.ix_((corner[1] + offset) % S, (corner[0] + offset) % S)
    shift = rng.integers(S, size=2)
    there = np.ix_((shift[1] + offset) % S, (shift[0] + offset) % S)
    return here, x.astype(np.float32), y.astype(np.float32), there


def scatter(rng, radii, spacing):
    """Place discs at random, largest first, whose centres are more than `spacing` times the sum of
    the radii apart. A disc that fits in none of 12 tries is left out.

    Returns:
        (centre, radius) of each disc.
    """
    centres, kept = np.empty((0, 2)), np.empty(0)
    for radius in np.sort(radii)[::-1]:
        for centre in rng.random((12, 2)) * S:
            apart = np.abs(centres - centre)
            apart = np.hypot(*np.minimum(apart, S - apart).T)
            if np.all(apart > spacing * (kept + radius)):
                centres, kept = np.vstack([centres, centre]), np.append(kept, radius)
                break
    return zip(centres, kept, strict=True)


def normals(scene):
    """Return unit normals, (3, S, S): components to the right, down and out of the page."""
    normal = np.stack([-scene.slope_x, -scene.slope_y, np.ones_like(scene.height)])
    return normal / np.linalg.norm(normal, axis=0)


def relief(scene):
    """Return maps of the saved picture: height in 16 bits, and normals in 3x8 bits with green up
    the page."""
    fields = np.concatenate([normals(scene), scene.height[None]])[:, : SIZE * FINE, : SIZE * FINE]
    *normal, height = fields.reshape(4, SIZE, FINE, SIZE, FINE).mean((2, 4))
    normal = np.stack([normal[0], -normal[1], normal[2]], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    low, high = np.quantile(height, [0.001, 0.999])
    height = np.clip((height - low) / (high - low), 0, 1)
    return (height * 65535 + 0.5).astype(np.uint16), (normal * 127.5 + 128).astype(np.uint8)


def render(scene, sun_height=0.9, shadow=1.0, ambient=0.4, reach=60):
    """Light the scene from the upper left.

    Args:
        sun_height: tangent of the elevation.
        shadow: strength, 0 to 1.
        ambient: light of the sky, relative to the sun.
        reach: longest shadow in scene pixels.

    Returns:
        Linear RGB, (S, S, 3).
    """
    height, lit, azimuths = scene.height, 0.0, np.radians(225 + np.linspace(-14, 14, 5))
    for azimuth in azimuths:  # an area light, for soft shadows
        step = np.array([np.sin(azimuth), np.cos(azimuth)])
        excess = np.zeros_like(height)
        for distance in np.unique(np.geomspace(2, reach, 14).astype(int)):
            dy, dx = np.rint(-step * distance).astype(int)
            above = np.roll(height, (dy, dx), (0, 1)) - height - distance * sun_height
            excess = np.maximum(excess, above / (1 + 0.12 * distance))
        lit = lit + (1 - shadow * smoothstep(0, 1.5, excess)) / len(azimuths)
    open_sky = 1.0
    for sigma in (1.5, 4, 9):
        hollow = np.maximum(blur(height, sigma) - height, 0) / (sigma * FINE)
        open_sky = open_sky / (1 + 0.9 * hollow)

    normal = normals(scene)
    sun = np.array([-1, -1, 2**0.5 * sun_height]) / (2 + 2 * sun_height**2) ** 0.5
    half = (sun + [0, 0, 1]) / np.linalg.norm(sun + [0, 0, 1])
    diffuse = np.maximum(np.tensordot(sun, normal, 1), 0) * lit
    shine = np.maximum(np.tensordot(half, normal, 1), 0) ** 40 * lit * scene.gloss
    sky = ambient * open_sky * (0.6 + 0.4 * normal[2])
    light = diffuse[..., None] * [1.05, 1.0, 0.9] + sky[..., None] * [0.85, 0.95, 1.15]
    return scene.colour * light + shine[..., None]


def develop(rng, light, high=0.93, grain=0.008):
    """Convert linear RGB of the scene to bytes of the saved picture: crop, average, expose and add
    grain."""
    light = light[: SIZE * FINE, : SIZE * FINE].reshape(SIZE, FINE, SIZE, FINE, 3).mean((1, 3))
    luminance = light.mean(-1)
    dark, bright = np.quantile(luminance, [0.001, 0.995])
    light = np.maximum((light - 0.6 * dark) / (bright - 0.6 * dark) * high**2.2, 0)
    light = light / (1 + np.maximum(light - 0.6, 0) ** 2)  # compress highlights instead of clipping
    picture = light ** (1 / 2.2) + grain * rng.standard_normal(light.shape)
    return (np.clip(picture, 0.01, 0.99) * 255 + 0.5).astype(np.uint8)
