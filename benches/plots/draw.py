#!/usr/bin/env python3
"""Draws benches/plots/<series>.svg from benches/growth.csv, which is what `cargo bench --bench end_to_end -- growth`
prints. Needs nothing but Python 3. `--check` draws nothing and fails when a plot is not of the numbers."""

import csv
import math
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 56, 44, 52
CPU, MEMORY = "#1f6feb", "#bf3989"
# What the axis along the bottom says, by series.
AXES = {
    "blobs": "blobs of 50 events, one tenant",
    "events-in-a-blob": "events in a blob, 100,000 in all, one tenant",
    "tenants": "tenants at once, 3,000 blobs of 50 events in all",
    "operator-rules": "rules of the operator beside the catalogue, 500 blobs of 200 events",
}


def short(value):
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def ceiling(values):
    """The next round number above all values, so that a quarter of it is one, too."""
    size = 10 ** math.floor(math.log10(max(values)))
    return next(size * step for step in (1.2, 2, 4, 6, 8, 10, 12) if size * step >= max(values) * 1.05)


def draw(series, rows):
    xs = [float(row["x"]) for row in rows]
    # 0 has a place on a logarithmic axis when 1 is added; it moves the others by less than can be seen.
    places = [math.log10(x + 1) if min(xs) == 0 else math.log10(x) for x in xs]
    low, high = min(places), max(places)
    inner = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    at_x = [LEFT + (place - low) / (high - low) * inner[0] for place in places]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    lines = (
        ("cpu_us_per_event", "CPU, µs an event", CPU, LEFT - 8, "end", 24, LEFT),
        ("peak_mib", "peak memory, MiB", MEMORY, WIDTH - RIGHT + 8, "start", 24, WIDTH - RIGHT),
    )
    for side, (column, label, colour, scale_x, anchor, label_y, label_x) in enumerate(lines):
        values = [float(row[column]) for row in rows]
        top = ceiling(values)
        for n in range(5):
            y = HEIGHT - BOTTOM - n / 4 * inner[1]
            if side == 0:
                out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
            out.append(f'<text x="{scale_x}" y="{y + 4:.1f}" text-anchor="{anchor}" fill="{colour}">{top * n / 4:g}</text>')
        at_y = [HEIGHT - BOTTOM - value / top * inner[1] for value in values]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(at_x, at_y))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in zip(at_x, at_y)]
        place = "start" if side == 0 else "end"
        out.append(f'<text x="{label_x}" y="{label_y}" text-anchor="{place}" fill="{colour}">{label}</text>')
    for value, x in zip(xs, at_x):
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(value)}</text>')
    out.append(f'<text x="{WIDTH / 2:g}" y="{HEIGHT - 10}" text-anchor="middle">{AXES[series]}</text>')
    out.append("</svg>\n")
    return "\n".join(out)


def main():
    series = {}
    with open(HERE.parent / "growth.csv", newline="") as file:
        for row in csv.DictReader(file):
            series.setdefault(row["series"], []).append(row)
    stale = []
    for name, rows in series.items():
        file, text = HERE / f"{name}.svg", draw(name, rows)
        if "--check" in sys.argv:
            stale += [file] if not file.exists() or file.read_text() != text else []
        else:
            file.write_text(text)
            print(file)
    if stale:
        sys.exit("not of these numbers, run benches/plots/draw.py: " + ", ".join(str(file) for file in stale))


main()
