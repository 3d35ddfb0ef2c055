"""Draws app/static/sample.jpg, so that the project ships a picture that is its own: a dog, a ball, a meadow.

The dog and the ball are ray-marched from signed distance functions (after Inigo Quilez's articles);
the meadow is strokes, the trees are blurred discs. `python -m tests.page.draw_sample` takes about half a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Points = NDArray[np.float64]  # (N, 3), metres: x to the right, y up, z away from the viewer
WIDTH, HEIGHT, FINER = 640, 480, 2
W, H = WIDTH * FINER, HEIGHT * FINER
EYE, AT, FOCAL = np.array([1.35, 0.72, -2.75]), np.array([0.20, 0.46, 0.0]), 3.0
SUN = np.array([0.45, 0.8, -0.5]) / np.linalg.norm([0.45, 0.8, -0.5])
SAMPLE = Path(__file__).parents[2] / "app" / "static" / "sample.jpg"

FORWARD = (AT - EYE) / np.linalg.norm(AT - EYE)
RIGHT = np.cross([0, 1, 0], FORWARD) / np.linalg.norm(np.cross([0, 1, 0], FORWARD))
UP = np.cross(FORWARD, RIGHT)

COAT, DARK, PALE, NOSE, TONGUE, COLLAR, BALL = range(7)
COLOURS = np.array(
    [(0.34, 0.16, 0.055), (0.17, 0.075, 0.03), (0.62, 0.42, 0.25), (0.03, 0.025, 0.025), (0.80, 0.32, 0.34),
     (0.08, 0.22, 0.60), (0.66, 0.02, 0.02)]
)  # fmt: skip


def round_cone(p: Points, a: tuple[float, ...], b: tuple[float, ...], r1: float, r2: float) -> NDArray[np.float64]:
    """Distance to a limb from `a` to `b` whose radius goes from r1 to r2."""
    start, axis = np.array(a), np.array(b) - np.array(a)
    t = np.clip((p - start) @ axis / (axis @ axis), 0, 1)
    return np.linalg.norm(p - start - t[:, None] * axis, axis=1) - (r1 + (r2 - r1) * t)


def ball(p: Points, centre: tuple[float, ...], radii: tuple[float, ...]) -> NDArray[np.float64]:
    """Distance to an ellipsoid (approximate away from its surface)."""
    q = (p - np.array(centre)) / np.array(radii)
    length = np.linalg.norm(q, axis=1)
    return (length - 1) * min(radii)


# Each part: how far a point is from it, what it is made of, how softly it joins what came before.
def parts(p: Points) -> list[tuple[NDArray[np.float64], int, float]]:
    """The dog, facing +x, and its ball."""
    made = [
        (round_cone(p, (-0.34, 0.51, 0), (0.22, 0.53, 0), 0.135, 0.165), COAT, 0.0),
        (ball(p, (0.25, 0.47, 0), (0.15, 0.17, 0.145)), COAT, 0.06),
        (ball(p, (-0.05, 0.42, 0), (0.30, 0.085, 0.11)), PALE, 0.05),
        (round_cone(p, (0.29, 0.58, 0), (0.47, 0.78, 0), 0.125, 0.095), COAT, 0.06),
        (round_cone(p, (0.385, 0.68, 0), (0.40, 0.695, 0), 0.118, 0.117), COLLAR, 0.0),
        (ball(p, (0.53, 0.84, 0), (0.125, 0.112, 0.105)), COAT, 0.04),
        (round_cone(p, (0.58, 0.815, 0), (0.745, 0.785, 0), 0.068, 0.045), PALE, 0.035),
        (round_cone(p, (0.60, 0.765, 0), (0.70, 0.735, 0), 0.042, 0.026), PALE, 0.015),
        (round_cone(p, (0.66, 0.752, -0.01), (0.725, 0.70, -0.015), 0.022, 0.020), TONGUE, 0.004),
        (ball(p, (0.785, 0.80, 0), (0.026, 0.024, 0.030)), NOSE, 0.004),
        (round_cone(p, (-0.40, 0.57, 0), (-0.55, 0.70, 0.02), 0.045, 0.036), COAT, 0.04),
        (round_cone(p, (-0.55, 0.70, 0.02), (-0.62, 0.87, 0.05), 0.036, 0.018), COAT, 0.03),
    ]
    for side in (-1, 1):
        z = side * 0.09
        reach = 0.06 * side  # one leg of each pair is ahead
        made += [
            (round_cone(p, (0.47, 0.90, side * 0.085), (0.43, 0.745, side * 0.135), 0.036, 0.042), DARK, 0.015),
            (ball(p, (0.617, 0.868, side * 0.070), (0.019, 0.019, 0.017)), NOSE, 0.003),
            (round_cone(p, (0.25, 0.44, z), (0.25 + reach, 0.24, z), 0.078, 0.046), COAT, 0.04),
            (round_cone(p, (0.25 + reach, 0.24, z), (0.26 + 1.6 * reach, 0.05, z), 0.044, 0.036), COAT, 0.02),
            (ball(p, (0.285 + 1.6 * reach, 0.03, z), (0.062, 0.036, 0.044)), PALE, 0.02),
            (round_cone(p, (-0.33, 0.47, z), (-0.32 - reach, 0.28, z), 0.115, 0.062), COAT, 0.04),
            (round_cone(p, (-0.32 - reach, 0.28, z), (-0.43 - reach, 0.17, z), 0.056, 0.038), COAT, 0.02),
            (round_cone(p, (-0.43 - reach, 0.17, z), (-0.40 - reach, 0.05, z), 0.037, 0.034), COAT, 0.02),
            (ball(p, (-0.37 - reach, 0.03, z), (0.060, 0.035, 0.042)), PALE, 0.02),
        ]
    made.append((np.linalg.norm(p - np.array([0.80, 0.12, -0.30]), axis=1) - 0.12, BALL, 0.0))
    return made


def scene(p: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance (N,) to the nearest surface, and its colour (N, 3)."""
    distance = np.full(len(p), 9.0)
    colour = np.zeros((len(p), 3))
    for d, material, soft in parts(p):
        if soft:
            share = np.clip(0.5 + 0.5 * (distance - d) / soft, 0, 1)
            distance = distance + (d - distance) * share - soft * share * (1 - share)
        else:
            share = (d < distance).astype(float)
            distance = np.minimum(distance, d)
        colour += (COLOURS[material] - colour) * share[:, None]
    return distance, colour


def fur(p: Points) -> NDArray[np.float64]:
    """Strands, about -1 to 1: noise stretched along the body and down."""
    u, v, w = p[:, 0] * 60 + p[:, 1] * 90, p[:, 1] * 26 - p[:, 0] * 16, p[:, 2] * 90
    n = np.sin(u * 4.1 + np.sin(v * 2.3 + w) * 1.7) * np.sin(v * 5.7 + np.sin(u * 1.9 - w) * 2.1)
    return 0.6 * n + 0.4 * np.sin(9.3 * u + 7.7 * v + w + 3 * n)


def rays() -> Points:
    """The direction of each pixel's ray, (H * W, 3)."""
    x, y = np.meshgrid((np.arange(W) + 0.5 - W / 2) / (H / 2), -(np.arange(H) + 0.5 - H / 2) / (H / 2))
    d = FORWARD * FOCAL + x[..., None] * RIGHT + y[..., None] * UP
    made: Points = (d / np.linalg.norm(d, axis=-1, keepdims=True)).reshape(-1, 3)
    return made


def project(p: Points) -> NDArray[np.float64]:
    """Points -> pixels (N, 2)."""
    q = p - EYE
    depth = q @ FORWARD
    return np.stack([W / 2 + q @ RIGHT / depth * FOCAL * H / 2, H / 2 - q @ UP / depth * FOCAL * H / 2], -1)


def march(origin: Points, direction: Points, far: float, steps: int = 70) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Sphere tracing: which rays hit (N,), and how far each went (N,)."""
    t = np.zeros(len(direction))
    near = np.full(len(direction), np.inf)
    alive = np.arange(len(direction))
    for _ in range(steps):
        d, _ = scene(origin[alive] + t[alive, None] * direction[alive])
        t[alive] += np.clip(d * 0.9, 0.0012, None)
        near[alive] = np.minimum(near[alive], d)
        alive = alive[(d > 0.0015) & (t[alive] < far)]
        if not len(alive):
            break
    return near < 0.002, t


def shade(p: Points) -> Points:
    """Linear colours of the surface at `p`, lit by the sun, the sky and the grass."""
    _, albedo = scene(p)
    furry = (albedo[:, 0] > 0.1) & (albedo[:, 0] < 0.64) & (albedo[:, 2] < 0.45)

    def height(q: Points) -> NDArray[np.float64]:
        return scene(q)[0] + np.where(furry, 0.0016 * fur(q), 0)

    e = 0.0015
    normal = np.stack([height(p + step) - height(p - step) for step in np.eye(3) * e], -1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    sunny = np.ones(len(p))
    t = np.full(len(p), 0.03)
    for _ in range(28):
        d, _ = scene(p + normal * 0.012 + t[:, None] * SUN)
        sunny = np.minimum(sunny, np.clip(14 * d / t, 0, 1))
        t += np.clip(d, 0.012, 0.12)
    near = np.clip(scene(p + normal * 0.07)[0] / 0.07, 0, 1)  # less sky in hollows
    coat = albedo * np.where(furry, 1 + 0.22 * fur(p), 1)[:, None]
    light = (
        2.3 * (np.clip(normal @ SUN, 0, 1) * sunny)[:, None] * np.array([1.0, 0.93, 0.80])
        + 0.55 * ((0.5 + 0.5 * normal[:, 1]) * near)[:, None] * np.array([0.62, 0.80, 1.0])
        + 0.30 * ((0.5 - 0.5 * normal[:, 1]) * near)[:, None] * np.array([0.45, 0.62, 0.20])
    )
    half = SUN - (p - EYE) / np.linalg.norm(p - EYE, axis=1, keepdims=True)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    gloss = np.where(furry, 0.05, 0.5) * sunny * np.clip((normal * half).sum(1), 0, 1) ** np.where(furry, 14, 60)
    made: Points = coat * light + gloss[:, None]
    return made


def tone(linear: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Linear light -> 8 bits, highlights rolled off."""
    curve = 1 - np.exp(-1.25 * np.clip(linear, 0, None))
    return np.asarray(255 * np.clip(curve, 0, 1) ** (1 / 2.1), np.uint8)


def backdrop(rng: np.random.Generator) -> Image.Image:
    """Sky, trees out of focus, and the far meadow."""
    horizon = float(project(np.array([EYE + FORWARD * [400, 0, 400]]))[0, 1])
    rows = np.arange(H)[:, None]
    sky = np.array([0.42, 0.62, 0.92]) + (np.array([0.95, 0.97, 0.98]) - [0.42, 0.62, 0.92]) * np.clip(
        rows / horizon, 0, 1
    )
    image = Image.fromarray(np.broadcast_to((255 * sky[:, None]).astype(np.uint8), (H, W, 3)).copy())
    draw = ImageDraw.Draw(image)
    for _ in range(900):
        x, y = rng.uniform(-50, W + 50), horizon - abs(rng.normal(0, 1)) * 0.11 * H - 10
        crown = 0.10 * np.sin(x / 170) + 0.06 * np.sin(x / 61)
        y += crown * H * 0.5
        r, shade_ = rng.uniform(12, 46), rng.uniform(0.35, 1.0)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(c * shade_) for c in (86, 116, 62)))
    for _ in range(150):  # light between the leaves
        x, y, r = rng.uniform(0, W), horizon - rng.uniform(0, 0.17) * H, rng.uniform(5, 13)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(214, 224, 168))
    draw.rectangle((0, horizon, W, H), fill=(112, 148, 60))
    return image.filter(ImageFilter.GaussianBlur(15))


def grass(image: Image.Image, rng: np.random.Generator, z: tuple[float, float], count: int, dim: Image.Image) -> None:
    """Blades of grass between the depths `z`, the far ones first; darker where `dim` is."""
    draw = ImageDraw.Draw(image)
    shadow = np.asarray(dim, np.float64) / 255
    u = rng.uniform(0, 1, count)
    depth = np.sort(1 / (1 / (z[0] - EYE[2]) * (1 - u) + 1 / (z[1] - EYE[2]) * u))[::-1]  # even on the picture
    away = FORWARD * [1, 0, 1] / np.linalg.norm(FORWARD * [1, 0, 1])
    root = EYE * [1, 0, 1] + depth[:, None] * away + (rng.uniform(-1, 1, count) * depth * 0.95)[:, None] * RIGHT
    patch = np.sin(root[:, 0] * 2.1 + 1.3 * np.sin(root[:, 2])) * np.sin(root[:, 2] * 1.7 + root[:, 0])
    tall = rng.gamma(5, 0.011, count) * (1 + 0.3 * patch)
    lean = rng.normal(0, 0.45, (count, 3)) * tall[:, None] * [1, 0, 1]
    tip = root + lean + np.stack([0 * tall, tall, 0 * tall], -1)
    mid = (root + tip) / 2 + np.stack([0 * tall, 0.12 * tall, 0 * tall], -1) - lean * 0.2
    feet, middles, tips = project(root), project(mid), project(tip)
    light = np.clip(rng.normal(0.72, 0.2, count) + 0.12 * patch, 0.25, 1.2)
    dry = rng.uniform(0, 1, count) ** 3
    for n in range(count):
        (x, y), (mx, my), (tx, ty) = feet[n], middles[n], tips[n]
        if not (-20 < x < W + 20 and ty < H):
            continue
        dark = shadow[min(max(int(y), 0), H - 1), min(max(int(x), 0), W - 1)]
        haze = np.clip((depth[n] - 2.5) / 14, 0, 0.6)
        green = np.array([92 + 88 * dry[n], 140 + 20 * dry[n], 42 + 20 * dry[n]]) * light[n] * (1 - 0.62 * dark)
        colour = tuple(int(c) for c in np.clip(green + (np.array([150, 172, 96]) - green) * haze, 0, 255))
        width = max(1, round(9 / depth[n]))
        draw.line((x, y, mx, my), fill=colour, width=width)
        draw.line((mx, my, tx, ty), fill=colour, width=max(1, width - 2))


def ground_shadow() -> Image.Image:
    """Where the dog and the ball keep the sun off the ground, 0 to 255, softly."""
    d = rays()
    down = np.flatnonzero(d[:, 1] < -0.02)
    p = EYE + d[down] * (-EYE[1] / d[down, 1])[:, None]
    close = np.flatnonzero(np.abs(p[:, 0] - 0.2) + np.abs(p[:, 2]) < 2.6)
    hit, _ = march(p[close] + [0, 0.02, 0], np.broadcast_to(SUN, (len(close), 3)), 2.0, 40)
    mask = np.zeros(W * H, np.uint8)
    mask[down[close[hit]]] = 255
    return Image.fromarray(mask.reshape(H, W)).filter(ImageFilter.GaussianBlur(7))


def draw(say: Callable[[str], None] = lambda message: None) -> Image.Image:
    """The picture."""
    rng = np.random.default_rng(7)
    say("shadow")
    shadow = ground_shadow()
    say("meadow")
    image = backdrop(rng)
    grass(image, rng, (6, 40), 60_000, Image.new("L", (W, H)))
    image = image.filter(ImageFilter.GaussianBlur(5))  # out of focus
    grass(image, rng, (1.4, 7), 60_000, shadow)
    image = image.filter(ImageFilter.GaussianBlur(1.6))
    grass(image, rng, (-0.05, 1.6), 60_000, shadow)
    say("dog")
    d = rays()
    corner = np.array([[x, y, z] for x in (-0.75, 1.2) for y in (0, 1.0) for z in (-0.6, 0.25)])
    low, high = project(corner).min(0), project(corner).max(0)
    box = np.zeros((H, W), bool)
    box[max(int(low[1]), 0) : int(high[1]) + 1, max(int(low[0]), 0) : int(high[0]) + 1] = True
    inside = np.flatnonzero(box.ravel())
    hit, t = march(np.broadcast_to(EYE, (len(inside), 3)), d[inside], 5.0)
    seen = inside[hit]
    pixels = np.asarray(image).reshape(-1, 3).copy()
    pixels[seen] = tone(shade(EYE + t[hit, None] * d[seen]))
    image = Image.fromarray(pixels.reshape(H, W, 3))
    say("foreground")
    grass(image, rng, (-1.6, -0.12), 26_000, shadow)
    small = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), np.float64)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    small = small * (1 - 0.16 * (x**2 + y**2))[..., None] * [1.03, 1.0, 0.95] + rng.normal(0, 3.2, small.shape)
    return Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    draw(print).save(SAMPLE, quality=85, optimize=True)
    print(SAMPLE, SAMPLE.stat().st_size, "bytes")
