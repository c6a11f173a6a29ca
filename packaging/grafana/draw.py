#!/usr/bin/env python3
"""Draws the panels of m365-audit.json as an SVG, from what a Prometheus answers to their queries.

For documents, where no Grafana is at hand: it is not a picture of Grafana. Needs Python 3 alone.
Usage: draw.py PROMETHEUS_URL SECONDS "NOTE" > dashboard.svg     (the last SECONDS, with NOTE below the title)
`.ci/dashboard-picture` makes the picture of the documents with it.
"""

import html
import json
import math
import pathlib
import sys
import time
import urllib.parse
import urllib.request

COLUMN, ROW, GAP = 50, 34, 8  # pixels for a unit of Grafana's grid of 24 columns
COLOURS = ["#3f7fbf", "#d9822b", "#4a9a5c", "#b5493f", "#7f63b0", "#8a6d3b", "#2b9c9c", "#c25d94", "#6b7a89", "#a3a12a"]
NAMED = {"green": "#3d8b50", "orange": "#cc7a1f", "red": "#b83a3a"}


def ask(base, call, **query):
    url = f"{base}/api/v1/{call}?{urllib.parse.urlencode(query)}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def shown(value, unit):
    """The value as a person reads it."""
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} s"
    if unit == "percentunit":
        return f"{value * 100:.1f} %"
    if unit == "bytes":
        for size, name in ((2**20, "MiB"), (2**10, "KiB")):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if value < 100 else f"{value:,.0f}"
    return text + {"eps": "/s", "reqps": "/s", "cps": "/s"}.get(unit, "")


def named(legend, labels):
    for key, value in labels.items():
        legend = legend.replace("{{" + key + "}}", value)
    return legend


def text(x, y, words, size=12, colour="#222", anchor="start", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{html.escape(str(words))}</text>'
    )


def stat(panel, series, x, y, width, height):
    defaults = panel["fieldConfig"]["defaults"]
    out = []
    if not series:
        out.append(text(x + width / 2, y + height / 2 + 16, "none", 20, "#777", "middle"))
    each = (height - 26) / max(1, len(series))
    for i, (_, points) in enumerate(series):
        value = points[-1][1]
        colour = "green"
        for step in defaults.get("thresholds", {}).get("steps", []):
            if step["value"] is None or value >= step["value"]:
                colour = step["color"]
        words = shown(value, defaults["unit"])
        for mapping in defaults.get("mappings", []):
            words = mapping["options"].get(f"{value:.0f}", {}).get("text", words)
        top = y + 26 + i * each
        out.append(f'<rect x="{x}" y="{top:.1f}" width="{width}" height="{each - 1:.1f}" fill="{NAMED[colour]}"/>')
        out.append(text(x + width / 2, top + each / 2 + 8, words, 22, "#fff", "middle", "bold"))
    return out


def graph(panel, series, x, y, width, height, begin, end):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    left, right, top, bottom = x + 62, x + width - 10, y + 30, y + height - 50
    highest = max((value for _, points in series for _, value in points), default=0) or 1
    magnitude = 10 ** math.floor(math.log10(highest))
    highest = next(step * magnitude for step in (1, 2, 2.5, 5, 10) if step * magnitude >= highest)
    out = []
    for i in range(5):
        level = bottom - (bottom - top) * i / 4
        out.append(f'<path d="M{left} {level:.1f}H{right}" stroke="#e4e4e4"/>')
        out.append(text(left - 6, level + 4, shown(highest * i / 4, unit), 10, "#666", "end"))
    for i in range(4):
        moment = begin + (end - begin) * i / 3
        anchor = ("start", "middle", "middle", "end")[i]
        stamp = time.strftime("%H:%M:%S", time.gmtime(moment))
        out.append(text(left + (right - left) * i / 3, bottom + 14, stamp, 10, "#666", anchor))
    across, down = x + 10, bottom + 30
    for i, (name, points) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        path, last = [], None
        for moment, value in points:
            px = left + (right - left) * (moment - begin) / (end - begin)
            py = bottom - (bottom - top) * min(1, value / highest)
            # A hole in the series stays a hole.
            path.append(f"{'M' if last is None or moment - last > 3 * (end - begin) / 240 else 'L'}{px:.1f} {py:.1f}")
            last = moment
        out.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        wide = 16 + 5.6 * len(name)
        if across + wide > x + width and across > x + 10:
            across, down = x + 10, down + 13
        if down > y + height - 4:
            continue
        out.append(f'<rect x="{across:.1f}" y="{down - 7:.1f}" width="8" height="8" fill="{colour}"/>')
        out.append(text(across + 11, down, name, 10, "#444"))
        across += wide + 6
    if not series:
        out.append(text((left + right) / 2, (top + bottom) / 2, "no data: nothing of this kind happened", 12, "#777", "middle"))
    return out


def main():
    base, seconds, note = sys.argv[1].rstrip("/"), int(sys.argv[2]), sys.argv[3]
    dashboard = json.loads((pathlib.Path(__file__).parent / "m365-audit.json").read_text())
    end = time.time()
    begin = end - seconds
    step = max(1, seconds / 240)
    head = 56
    width = 24 * COLUMN + GAP
    height = head + max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"]) * ROW + GAP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#f4f5f6"/>',
        text(GAP, 24, dashboard["title"], 18, weight="bold"),
        text(GAP, 44, note, 12, "#555"),
    ]
    for panel in dashboard["panels"]:
        series = []
        for target in panel["targets"]:
            expr = target["expr"].replace("$source", ".*").replace("$__rate_interval", f"{max(15, int(4 * step))}s")
            for found in ask(base, "query_range", query=expr, start=begin, end=end, step=step):
                points = [(t, float(v)) for t, v in found["values"] if math.isfinite(float(v))]
                # What is gone by now is not the last value.
                if points and (panel["type"] != "stat" or points[-1][0] > end - 30):
                    series.append((named(target["legendFormat"], found["metric"]), points))
        series.sort(key=lambda s: s[0])
        place = panel["gridPos"]
        x, y = GAP + place["x"] * COLUMN, head + place["y"] * ROW
        w, h = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        out.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="#fff" stroke="#d4d7da"/>')
        out.append(text(x + 8, y + 18, panel["title"], 13, weight="bold"))
        if panel["type"] == "stat":
            out += stat(panel, series, x, y, w, h)
        else:
            out += graph(panel, series, x, y, w, h, begin, end)
    out.append("</svg>")
    print("\n".join(out))


if __name__ == "__main__":
    main()
