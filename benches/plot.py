#!/usr/bin/env python3
"""Draws benches/plots/*.svg from benches/growth.csv (what `cargo bench --bench end_to_end -- growth` prints).

Needs nothing but Python 3."""

import csv
import math
import pathlib

HERE = pathlib.Path(__file__).parent
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 320, 70, 50, 40, 20


def tick(value):
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def draw(name, rows):
    xs = [float(row["x"]) for row in rows]
    lines = {
        "CPU, us an event": ("#1f6feb", [float(row["cpu_us_per_event"]) for row in rows]),
        "peak memory, MiB": ("#bf3989", [float(row["peak_mib"]) for row in rows]),
    }
    place = [math.log10(x + 1) for x in xs]
    low, high = min(place), max(place)
    top = max(max(values) for _, values in lines.values()) * 1.1
    x_of = lambda p: LEFT + (p - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)
    y_of = lambda v: HEIGHT - BOTTOM - v / top * (HEIGHT - BOTTOM - TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for n in range(5):
        value = top * n / 4
        y = y_of(value)
        out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    for x, p in zip(xs, place):
        out.append(f'<text x="{x_of(p):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick(x)}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{name}</text>')
    for n, (label, (colour, values)) in enumerate(lines.items()):
        points = " ".join(f"{x_of(p):.1f},{y_of(v):.1f}" for p, v in zip(place, values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{LEFT + 10 + n * 180}" y="24" fill="{colour}">{label}</text>')
    out.append("</svg>\n")
    file = HERE / "plots" / (name.replace(" ", "-") + ".svg")
    file.write_text("\n".join(out))
    print(file)


def main():
    series = {}
    with open(HERE / "growth.csv", newline="") as file:
        for row in csv.DictReader(file):
            series.setdefault(row["series"], []).append(row)
    for name, rows in series.items():
        draw(name, rows)


main()
