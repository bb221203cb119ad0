"""Draw the colour exemplars of this folder: python textures/make_textures.py

A picture shows dozens to thousands of shaded objects (leaf, pebbles, dots, tiles, lichen), or one
formula covers all of it (cloth, weave, wood). It is a crop of the periodic height field of
scene.py, and therefore stationary: it has no frame, no vignette and no unique place. The same seed
gives the same bytes.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image
from scene import (
    FINE,
    SIZE,
    S,
    Scene,
    blur,
    develop,
    linear,
    mix,
    noise,
    relief,
    render,
    scatter,
    smoothstep,
    window_at,
)

LEAF_COLOURS = [  # by age, from spring to autumn
    linear(42, 78, 38), linear(66, 104, 44), linear(106, 138, 56), linear(152, 156, 70),
    linear(208, 176, 72), linear(196, 124, 56), linear(152, 70, 44), linear(104, 66, 44),
]  # fmt: skip


def leaf(rng):
    """A forest floor in autumn: 1000 overlapping leaves."""
    scene = Scene()
    soil = noise(rng, 12, 1)
    scene.fill(mix(linear(40, 30, 20), linear(84, 64, 42), smoothstep(-1, 2, soil)), soil)
    blotch, fleck = noise(rng, 24, 1.5, 1.2), noise(rng, 3, 0.8, 0.3)
    count = 1000
    for i in range(count):
        length = FINE * np.clip(rng.lognormal(3.5, 0.3), 18, 66)
        window, x, y, elsewhere = window_at(rng, rng.random(2) * S, 0.66 * length)
        angle = rng.uniform(0, 2 * np.pi)
        p = (x * np.cos(angle) + y * np.sin(angle)) / length + 0.5  # 0 at the stalk, 1 at the tip
        v = (y * np.cos(angle) - x * np.sin(angle)) / length
        v = v - rng.normal(0, 0.22) * (p - 0.5) ** 2 + 0.004 * blotch[elsewhere]  # bent midrib
        q = np.clip(p, 1e-4, 1 - 1e-4)
        rise, fall = rng.uniform(0.5, 0.8), rng.uniform(0.75, 1.1)
        profile = q**rise * (1 - q) ** fall
        peak = rise / (rise + fall)
        profile = profile / (peak**rise * (1 - peak) ** fall)
        teeth = 1 - rng.choice([0.0, 0.07]) * ((q * rng.integers(14, 24) - 2 * abs(v)) % 1)
        s = v / (rng.uniform(0.19, 0.31) * profile * teeth)  # -1 and 1 on the outline
        blade = (np.abs(s) < 1) & (p > 0) & (p < 1)
        stalk = (np.abs(v) * length < 0.55 * FINE) & (p > -0.13) & (p < 0.1)

        pairs = rng.integers(6, 11)
        side = (p - rng.uniform(0.5, 0.9) * np.abs(v)) * pairs + 0.25 * np.sign(v)
        to_side = np.abs(side % 1 - 0.5) / pairs * length * 0.8
        to_mid = np.abs(v) * length / (1.2 - 0.7 * q)
        veins = np.maximum(
            np.exp(-((to_mid / (0.62 * FINE)) ** 2)),
            0.6 * np.exp(-((to_side / (0.36 * FINE)) ** 2)) * (1 - 0.5 * np.abs(s).clip(0, 1)),
        )
        fold, curl = rng.uniform(0.05, 0.55), rng.normal(0, 0.35)
        height = (
            length * (fold * np.abs(v) + curl * (p - 0.5) ** 2 - 0.5 * abs(fold) * v**2)
            - length * 0.012 * np.cos(2 * np.pi * side) * np.abs(s).clip(0, 1)
            + 1.2 * blotch[elsewhere] + 0.22 * fleck[elsewhere] - 0.9 * veins
        )  # fmt: skip
        age = rng.choice(8, p=[0.16, 0.19, 0.17, 0.12, 0.12, 0.10, 0.06, 0.08])
        young, old = LEAF_COLOURS[age], LEAF_COLOURS[min(age + rng.integers(1, 3), 7)]
        wilt = blotch[elsewhere] * 0.5 + np.abs(s) * 0.9 - rng.uniform(0.3, 1.3)
        colour = mix(young * rng.uniform(0.75, 1.2), old, smoothstep(0, 0.9, wilt))
        colour = colour * (1 + 0.10 * fleck[elsewhere] + 0.12 * blotch[elsewhere])[..., None]
        pale = 0.5 * young + 0.5 * linear(214, 204, 120)
        colour = mix(colour, pale, (0.75 if age < 6 else 0.35) * veins)
        spots = smoothstep(1.9, 2.4, fleck[elsewhere] + 0.5 * blotch[elsewhere])
        colour = mix(colour, linear(70, 44, 26), 0.8 * spots)
        colour = np.where(stalk & ~blade, 1, 0)[..., None] * pale * 0.8 + blade[..., None] * colour
        gloss = rng.uniform(0.02, 0.22) * (age < 6) * (1 - 0.3 * veins)
        base = 70 * FINE * i / count
        tilt = rng.normal(0, 0.22, 2)
        scene.stamp(window, blade | stalk, np.maximum(colour, 0), base + height, gloss, tilt)
    return scene, {"ambient": 0.42}


PEBBLE_COLOURS = [
    linear(150, 146, 140), linear(112, 112, 116), linear(74, 76, 82), linear(196, 184, 164),
    linear(170, 136, 100), linear(134, 94, 72), linear(124, 132, 126), linear(226, 222, 212),
    linear(150, 104, 92), linear(100, 106, 114),
]  # fmt: skip


def pebbles(rng):
    """Beach pebbles: lumpy ellipsoids, small ones between large ones."""
    scene = Scene()
    sand = noise(rng, 5, 0.8, 0.5)
    scene.fill(mix(linear(50, 44, 38), linear(104, 92, 78), smoothstep(-2, 2, sand)), sand)
    lumps, grain, bands = noise(rng, 20, 4, 2), noise(rng, 4, 0.9, 0.6), noise(rng, 30, 2, 1.4)
    radii = np.concatenate([FINE * np.clip(rng.lognormal(2.15, 0.42, 1200), 4, 20),
                            FINE * rng.uniform(2.5, 5, 3000)])  # fmt: skip
    for centre, radius in scatter(rng, radii, 0.83):
        window, x, y, elsewhere = window_at(rng, centre, 1.7 * radius)
        angle, aspect = rng.uniform(0, np.pi), rng.uniform(1.0, 1.5) ** 0.5
        u = (x * np.cos(angle) + y * np.sin(angle)) / (radius * 1.08 * aspect)
        v = (y * np.cos(angle) - x * np.sin(angle)) / (radius * 1.08 / aspect)
        lump, speck = lumps[elsewhere], grain[elsewhere]
        power = rng.uniform(2.0, 2.9)
        q = np.abs(u) ** power + np.abs(v) ** power + 0.07 * lump
        dome = np.sqrt(np.clip(1 - q, 0, None) + 1e-3)
        height = radius * rng.uniform(0.55, 0.85) * dome + radius * rng.normal(0.15, 0.12)
        height = height + speck * rng.uniform(0.1, 0.4) + 0.5 * lump

        colour = PEBBLE_COLOURS[rng.integers(10)] * rng.lognormal(0, 0.2)
        colour = colour * (1 + rng.normal(0, 0.03, 3))
        other = PEBBLE_COLOURS[rng.integers(10)]
        mottle = smoothstep(0.2, 1.4, bands[elsewhere] + 0.3 * speck) * rng.uniform(0, 0.45)
        surface = mix(colour, other, mottle)
        if rng.random() < 0.3:  # a quartz vein
            across = u * rng.normal() + v * rng.normal() + 0.12 * bands[elsewhere]
            seam = np.exp(-(((across - rng.normal(0, 0.3)) / rng.uniform(0.04, 0.12)) ** 2))
            surface = mix(surface, linear(226, 220, 206), 0.7 * seam)
        strength = rng.uniform(0.06, 0.24)
        surface = surface * np.exp(strength * speck + 0.08 * lump)[..., None]
        gloss = rng.uniform(0, 0.07)
        scene.stamp(window, q < 1, surface, height, gloss, z_test=True)
    return scene, {"ambient": 0.38, "reach": 40}


BEAD_COLOURS = [
    linear(178, 46, 44), linear(222, 152, 48), linear(236, 208, 110), linear(70, 132, 82),
    linear(48, 112, 150), linear(62, 62, 122), linear(226, 218, 204), linear(206, 112, 128),
]  # fmt: skip


def dots(rng):
    """Glazed beads of several sizes, some banded, on mottled felt."""
    scene = Scene()
    mottle, fibre = noise(rng, 16, 2, 1), noise(rng, 3, 0.9, 0.4)
    felt = mix(linear(92, 84, 78), linear(156, 140, 120), smoothstep(-1.8, 1.8, mottle))
    felt = felt * np.exp(0.2 * fibre)[..., None]
    scene.fill(felt, 0.7 * mottle + 0.6 * fibre)
    radii = FINE * np.repeat([11.0, 7.5, 5.0, 3.2, 2.0], [60, 160, 320, 420, 500])
    for centre, radius in scatter(rng, radii * rng.uniform(0.9, 1.1, len(radii)), 1.04):
        window, x, y, elsewhere = window_at(rng, centre, 1.2 * radius)
        q = (x**2 + y**2) / radius**2 + 0.015 * mottle[elsewhere]
        height = radius * (0.3 + 0.8 * np.sqrt(np.clip(1 - q, 0, None) + 1e-3))
        glaze = BEAD_COLOURS[rng.integers(8)] * rng.uniform(0.7, 1.15)
        colour = glaze * np.exp(0.12 * mottle[elsewhere] + 0.05 * fibre[elsewhere])[..., None]
        if rng.random() < 0.35:  # bands of a second glaze
            angle = rng.uniform(0, np.pi)
            across = (x * np.cos(angle) + y * np.sin(angle)) / radius + 0.08 * mottle[elsewhere]
            bands = smoothstep(0.2, 0.5, np.sin(np.pi * rng.integers(1, 4) * across + 1))
            colour = mix(colour, BEAD_COLOURS[rng.integers(8)], 0.9 * bands)
        scene.stamp(window, q < 1, colour, height + 0.1 * fibre[elsewhere], rng.uniform(0.1, 0.7))
    return scene, {"ambient": 0.42, "reach": 40}


def cloth(rng):
    """Houndstooth: a 2/2 twill of wool, four threads of one colour and four of another in turn."""
    threads = 48
    pitch = S / threads
    row, column = np.mgrid[:S, :S].astype(np.float32) / pitch
    navy, rust, cream = linear(44, 54, 82), linear(160, 74, 48), linear(214, 202, 176)
    palettes = [[navy] * 4 + [cream] * 4, [rust] * 4 + [cream] * 4]
    layers = []
    for palette, along, across, turn, lengthwise in (
        (palettes[0], row, column, 1, (7, 1)),
        (palettes[1], column, row, 3, (1, 7)),
    ):
        across = across + 0.10 * noise(rng, 30, 6, 1.5, lengthwise)
        fibre, slub = noise(rng, 8, 0.8, 0.5, lengthwise), noise(rng, 16, 4, 1, lengthwise)
        number = np.floor(across).astype(int) % threads
        offset = across - np.floor(across) - 0.5
        width = 1 + 0.08 * slub + rng.normal(0, 0.05, threads)[number]
        round_ = np.sqrt(np.clip(1 - (2 * offset / width) ** 2, 0, None) + 1e-3)
        wave = np.cos(np.pi / 2 * (along + number - turn))  # over two, under two
        ply = np.sin(2 * np.pi * (1.5 * along + 1.1 * offset + rng.random(threads)[number]))
        height = pitch * (0.42 * round_ + 0.22 * wave) + 0.5 * ply + 0.8 * fibre
        colour = np.asarray(palette)[number % 8] * rng.lognormal(0, 0.10, threads)[number, None]
        layers.append((height, colour * np.exp(0.12 * ply + 0.22 * fibre + 0.1 * slub)[..., None]))
    (warp, warp_colour), (weft, weft_colour) = layers
    fuzz = noise(rng, 4, 0.8, 0.5)
    scene = Scene()
    colour = np.where((warp > weft)[..., None], warp_colour, weft_colour)
    scene.fill(colour * np.exp(0.08 * fuzz)[..., None], np.maximum(warp, weft) + 0.4 * fuzz)
    return scene, {"ambient": 0.45, "reach": 20}


def wood(rng):
    """Grain of weathered boards: fibres and cracks that bend around knots."""
    y, x = np.mgrid[:S, :S].astype(np.float32)
    sway = noise(rng, 60, 12, 1.5, (1.6, 1))
    across, rings, knot = x + 2 * FINE * sway, np.zeros((S, S), np.float32), np.zeros((S, S))
    for centre, radius in scatter(rng, FINE * rng.uniform(1.5, 6, 26), 4.5):
        dx, dy = ((q - c + S / 2) % S - S / 2 for q, c in zip((x, y), centre, strict=True))
        r = np.hypot(dx + 1.5 * sway, dy / 1.9) / radius
        fade = smoothstep(7, 3, r)
        across = across - fade * dx * np.where(r < 1, 1, 1 / np.maximum(r, 1) ** 1.7)
        rings = np.where(r < 1.1, r * radius / FINE, rings)
        knot = np.maximum(knot, smoothstep(1.08, 0.95, r))
    columns, rows = np.rint(across).astype(int) % S, y.astype(int)
    straight = (
        noise(rng, 14, 2.0, 0.9, (30, 1)), noise(rng, 7, 1.3, 0.7, (14, 1)),
        noise(rng, 5, 1.2, 0.8, (8, 1)), noise(rng, 18, 2.0, 1.0, (18, 1)),
    )  # fmt: skip
    grain, fibre, pores, cracks = (layer[rows, columns] for layer in straight)
    speck, patch = noise(rng, 4, 1.3, 0.6), noise(rng, 20, 3, 1.3, (5, 1))
    crack = np.exp(-((cracks / 0.07) ** 2)) * smoothstep(-0.3, 0.5, pores + 0.6 * patch)
    season = smoothstep(-1.2, 1.2, grain + 0.3 * fibre)
    colour = mix(linear(92, 62, 44), linear(160, 124, 90), season)
    colour = mix(colour, linear(160, 148, 136), 0.5 * smoothstep(-0.5, 1.6, patch + 0.5 * fibre))
    ring = 0.5 + 0.5 * np.sin(2.6 * rings + 0.8 * patch + 0.3 * speck)
    colour = mix(colour, mix(linear(52, 32, 22), linear(124, 76, 44), ring), 0.9 * knot)
    colour = mix(colour, linear(44, 30, 24), 0.7 * crack * (1 - knot))
    colour = mix(colour, linear(40, 26, 20), 0.5 * smoothstep(1.2, 2.2, pores))
    height = FINE * (0.7 * season + 0.45 * fibre - 2.4 * crack * (1 - knot))
    height = height - 0.9 * np.maximum(pores, 0)
    height = height * (1 - 0.6 * knot) + knot * (2 + 1.2 * ring) + 0.2 * speck
    scene = Scene()
    scene.fill(colour * np.exp(0.12 * fibre + 0.08 * speck)[..., None], blur(height, 0.3))
    return scene, {"ambient": 0.45, "reach": 24}


LICHEN_COLOURS = [
    linear(204, 150, 72), linear(184, 112, 60), linear(168, 178, 148), linear(196, 200, 178),
    linear(150, 158, 96), linear(112, 116, 104),
]  # fmt: skip


def lichen(rng):
    """Rosettes of lichen that overlap on granite."""
    scene = Scene()
    rough, crystal, tint = noise(rng, 24, 2, 1.3), noise(rng, 4, 1.2, 0.6), noise(rng, 5, 1.2, 0.7)
    lumps = noise(rng, 5, 1.5, 0.8)
    rock = mix(linear(92, 90, 90), linear(156, 150, 144), smoothstep(-0.8, 0.8, crystal))
    rock = mix(rock, linear(176, 142, 126), 0.7 * smoothstep(0.6, 1.0, tint))
    rock = mix(rock, linear(40, 40, 44), 0.8 * smoothstep(1.0, 1.4, lumps))
    base = 4 * rough + 0.7 * crystal
    scene.fill(rock * np.exp(0.1 * rough)[..., None], base)
    for radius in np.sort(FINE * np.clip(rng.lognormal(1.9, 0.5, 800), 2.5, 18)):
        window, x, y, elsewhere = window_at(rng, rng.random(2) * S, 1.7 * radius)
        lump, speck = lumps[elsewhere], crystal[elsewhere]
        angle, lobes = np.arctan2(y, x) + 0.3 * rough[elsewhere], rng.integers(6, 13)
        r = np.hypot(x, y) / radius * (1 + 0.14 * rough[elsewhere])
        crinkle = np.abs(np.sin(angle * lobes + 2.5 * np.sin(3 * r + lump * 0.4)))
        reach = 0.8 + 0.2 * crinkle * smoothstep(2, 8, radius / FINE) + 0.06 * lump
        gap = rng.random() < 0.3  # old lichens die from the centre
        body = (r < reach) & ((r + 0.12 * lump > 0.4) | ~np.array(gap))
        rim = smoothstep(0.45, 0.95, r / reach)
        kind = rng.integers(6)
        colour = mix(LICHEN_COLOURS[kind] * 0.72, LICHEN_COLOURS[kind] * 1.15, rim)
        colour = colour * rng.lognormal(0, 0.12) * np.exp(0.14 * lump + 0.1 * speck)[..., None]
        cups = smoothstep(0.9, 1.2, lump) * (1 - rim)
        colour = mix(colour, LICHEN_COLOURS[kind] * [0.5, 0.32, 0.25], 0.85 * cups)
        relief = 1.6 + 1.6 * rim * crinkle * (r < reach) + 0.7 * lump + 0.35 * speck
        scene.stamp(window, body, colour, base[window] + FINE * 0.5 * relief)
    return scene, {"ambient": 0.42, "reach": 30}


CANE_COLOURS = [linear(214, 172, 112), linear(196, 146, 86), linear(224, 190, 136)]
DYED_COLOURS = [linear(134, 84, 50), linear(116, 66, 38), linear(152, 102, 62)]


def weave(rng):
    """Basket weave of split cane: pairs of strands, over two and under two; the strands of one
    direction are dyed."""
    strands = 36
    pitch = S / strands
    row, column = np.mgrid[:S, :S].astype(np.float32) / pitch
    layers = []
    for palette, along, across, sign, lengthwise in (
        (DYED_COLOURS, row, column, 1, (9, 1)),
        (CANE_COLOURS, column, row, -1, (1, 9)),
    ):
        across = across + 0.09 * noise(rng, 60, 14, 1.5) + 0.04 * noise(rng, 25, 6, 1.5, lengthwise)
        along = along + 0.09 * noise(rng, 60, 14, 1.5)
        fibre, streak = noise(rng, 6, 0.8, 0.4, lengthwise), noise(rng, 14, 2, 1, lengthwise)
        number = np.floor(across).astype(int) % strands
        offset = across - np.floor(across) - 0.5 + rng.normal(0, 0.03, strands)[number]
        width = 0.9 + 0.03 * streak + rng.normal(0, 0.03, strands)[number]
        s = 2 * offset / width  # -1 and 1 at the edges of a strand
        profile = np.sqrt(np.clip(1 - np.abs(s) ** 2.6, 0, None) + 1e-3)
        side = sign * (1 - 2 * (number // 2 % 2))
        wave = side * np.cos(np.pi / 2 * (along - 1))  # over two, under two
        lift = rng.normal(0, 0.04, strands)[number]
        height = pitch * (0.30 * profile + 0.34 * wave + lift) + 0.25 * fibre + 0.3 * streak
        height = np.where(np.abs(s) < 1, height, -0.9 * pitch)
        tone = rng.lognormal(0, 0.16, strands)[number, None]
        colour = np.asarray(palette)[rng.integers(3, size=strands)[number]] * tone
        colour = colour * np.exp(0.16 * fibre + 0.14 * streak)[..., None]
        rubbed = smoothstep(0.4, 1.0, wave) * smoothstep(-1, 2, streak)
        colour = mix(colour, colour * 1.25 + linear(60, 52, 40), 0.35 * rubbed)
        colour = mix(colour, colour * [0.42, 0.36, 0.3], smoothstep(0.6, 1.05, np.abs(s)))
        node = smoothstep(2.0, 2.6, noise(rng, 10, 2.5, 1) + 0.2 * fibre)
        colour = mix(colour, linear(70, 44, 26), 0.6 * node)
        layers.append((height, colour, 0.10 * np.exp(0.5 * streak)))
    (warp, warp_colour, warp_gloss), (weft, weft_colour, weft_gloss) = layers
    over = warp > weft
    speck, dust = noise(rng, 4, 0.8, 0.4), noise(rng, 30, 3, 1.2)
    height = np.maximum(warp, weft) + 0.2 * speck
    colour = np.where(over[..., None], warp_colour, weft_colour)
    colour = colour * np.exp(0.07 * speck + 0.06 * dust)[..., None]
    scene = Scene()
    scene.fill(colour, blur(height, 0.25), np.where(over, warp_gloss, weft_gloss))
    return scene, {"ambient": 0.42, "reach": 24}


GLAZE_COLOURS = [
    linear(46, 102, 104), linear(56, 112, 104), linear(42, 92, 108), linear(80, 116, 94),
    linear(52, 104, 82), linear(50, 84, 112), linear(98, 118, 88), linear(72, 106, 110),
]  # fmt: skip


def tiles(rng):
    """A roof of glazed fish-scale tiles, each of which overlaps two of the course below."""
    scene = Scene()
    scene.fill(linear(30, 26, 22), np.full((S, S), -200, np.float32))
    columns, rows = 7, 14
    pitch, course = S / columns, S / rows
    wear, cloud, grit = noise(rng, 18, 1.2, 1.0), noise(rng, 30, 4, 1.5), noise(rng, 4, 0.8, 0.5)
    flow = noise(rng, 16, 1.5, 1.0, (4, 1))
    pits = noise(rng, 3, 1.0, 0.4)
    for i in range(rows * columns):
        row, column = divmod(i, columns)
        middle = np.array([(column + row % 2 / 2) * pitch, row * course])
        middle = middle + rng.normal(0, 0.012 * pitch, 2)
        window, x, y, elsewhere = window_at(rng, middle + pitch / 2, 1.3 * pitch)
        turn = rng.normal(0, 0.015)
        x, y = x + turn * y, y - turn * x
        radius = 0.5 * pitch * rng.uniform(0.96, 1.0)
        ragged = 0.004 * wear[elsewhere] + 0.003 * grit[elsewhere]
        r = np.where(y > 0, np.hypot(x, y), np.abs(x)) / radius + ragged  # 1 at the rim
        inside = (r < 1) & (y > -2.2 * course)

        slope = 0.2
        camber = rng.uniform(0.2, 0.27) * radius * (1 - np.clip(np.hypot(x, y) / radius, 0, 1) ** 2)
        bevel = 0.05 * radius * np.sqrt(np.clip((1 - r) / 0.12, 0, 1) + 1e-3)
        height = slope * y + camber + bevel + 1.1 * cloud[elsewhere] + 0.1 * grit[elsewhere]
        height = height - 0.5 * smoothstep(1.8, 2.6, pits[elsewhere])

        glaze = GLAZE_COLOURS[rng.integers(8)] * rng.lognormal(0, 0.09)
        glaze = glaze * (1 + rng.normal(0, 0.04, 3))
        pool = 0.5 * cloud[elsewhere] + 0.6 * flow[elsewhere]
        colour = glaze * np.exp(0.10 * pool + 0.05 * grit[elsewhere])[..., None]
        thin = smoothstep(0.86, 0.97, r + 0.02 * wear[elsewhere])  # glaze is thin on the rim
        colour = mix(colour, linear(176, 132, 92) * rng.uniform(0.7, 1.1), 0.7 * thin)
        chip = smoothstep(2.6, 2.9, wear[elsewhere] + 0.4 * grit[elsewhere] + 0.6 * thin)
        colour = mix(colour, linear(150, 104, 76), 0.85 * chip)
        bloom = smoothstep(0.6, 2.6, flow[elsewhere] + 0.5 * wear[elsewhere])
        colour = mix(colour, linear(150, 156, 142), 0.28 * bloom)
        grime = smoothstep(0.35, -0.6, y / course + 0.12 * wear[elsewhere])
        colour = mix(colour, linear(40, 40, 30), 0.8 * grime)
        colour = mix(colour, linear(30, 28, 22), 0.6 * smoothstep(1.8, 2.6, pits[elsewhere]))
        gloss = rng.uniform(0.2, 0.5) * (1 - 0.8 * chip) * (1 - 0.6 * bloom) * (1 - grime)
        tilt = rng.normal(0, 0.035, 2)
        scene.stamp(window, inside, colour, height, gloss, tilt, z_test=True)
    return scene, {"ambient": 0.36, "reach": 40}


EXEMPLARS = {
    "leaf.jpg": leaf, "pebbles.png": pebbles, "dots.png": dots,
    "cloth.png": cloth, "wood.png": wood, "lichen.png": lichen,
    "weave.png": weave, "tiles.png": tiles,
}  # fmt: skip


def save(picture, path):
    """Save as JPEG of quality 95 without chroma subsampling if the suffix is .jpg, else as PNG."""
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {"optimize": True}
    picture.save(path, **options)
    print(f"{path}  {path.stat().st_size // 1024} KiB")


def take_from_skimage(out):
    """Save the exemplars that come from scikit-image: its files are read, nothing is imported."""
    folder = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    for name in ("grass.png", "gravel.png"):
        save(Image.open(folder / name).reduce(2), out / name)

    # In scikit-image the brick wall is warped into perspective, halved and rotated: undo all three.
    # `warp` is the matrix in the source of skimage.data.brick; `square` is a part of the wall that
    # lies inside the warped picture.
    wall = Image.open(folder / "brick.png").transpose(Image.Transpose.ROTATE_90)
    warp = np.array([[0.54764, -0.00219, 0], [-0.12822, 0.54688, 0], [-0.00022, 0, 1]])
    square = np.array([[2.547, 0, 12], [0, 2.547, 322], [0, 0, 1]])
    back = np.diag([0.5, 0.5, 1]) @ warp @ square
    matrix = (back / back[2, 2]).flatten()[:8]
    size = 2 * SIZE, 2 * SIZE
    wall = wall.transform(size, Image.Transform.PERSPECTIVE, matrix, Image.Resampling.BICUBIC)
    save(wall.reduce(2), out / "brick.png")

    sky = Image.open(folder / "hubble_deep_field.jpg").crop((200, 20, 840, 660))
    save(sky.resize((SIZE, SIZE), Image.Resampling.LANCZOS), out / "hubble.jpg")


def main():
    parser = argparse.ArgumentParser(description="Draw the exemplars of this folder.")
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(EXEMPLARS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--maps", action="store_true", help="also save height and normal maps")
    parser.add_argument("--skimage", action="store_true", help="also save those of scikit-image")
    args = parser.parse_args()
    if unknown := set(args.names) - set(EXEMPLARS):
        parser.error(f"no such exemplar: {', '.join(sorted(unknown))}")
    if args.skimage:
        take_from_skimage(args.out)
    for name, draw in EXEMPLARS.items():
        if not args.names or name in args.names:
            rng = np.random.default_rng([args.seed, *name.encode()])
            scene, sun = draw(rng)
            path = args.out / name
            save(Image.fromarray(develop(rng, render(scene, **sun))), path)
            if args.maps:
                height, normal = relief(scene)
                save(Image.fromarray(height), path.with_name(f"{path.stem}_height.png"))
                save(Image.fromarray(normal), path.with_name(f"{path.stem}_normal.png"))


if __name__ == "__main__":
    main()
