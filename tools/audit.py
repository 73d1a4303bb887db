#!/usr/bin/env python3
"""What each head of each recipe holds when the questions come, read out of a report of ./kvmem.

    python3 tools/audit.py r.html [--last 128] [--head]

Per recipe and KV head: entries kept, how many of the tokens that answer a question are among them, how many of the
last tokens. A line per recipe and layer; --head: a line per head. The format of the data stands in tools/report.h.
"""
import argparse
import base64
import json
import sys


def data_of(path):
    mark = 'id="audit-data">'
    with open(path, encoding="utf-8", errors="replace") as f:
        text = f.read()
    at = text.find(mark)
    if at < 0:
        sys.exit(f"{path}: holds no conversation to look into")
    try:
        return json.loads(text[at + len(mark):text.index("</script>", at)])
    except ValueError as e:
        sys.exit(f"{path}: its data are not understood: {e}")


def kept(lane, n):
    """Positions that stay: runs of (code, tokens), 7 bits a byte, low first; code 0 stays."""
    numbers, x, shift = [], 0, 0
    for byte in base64.b64decode(lane):
        x |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(x)
            x = shift = 0
    stay, t = [], 0
    for code, run in zip(numbers[::2], numbers[1::2]):
        if code == 0:
            stay.extend(range(t, min(t + run, n)))
        t += run
        if t >= n:
            break
    if t != n:
        sys.exit(f"a lane of {t} tokens in a conversation of {n}")
    return stay


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("report")
    p.add_argument("--last", type=int, default=128, help="how many of the last tokens to count (128)")
    p.add_argument("--head", action="store_true", help="a line per head instead of a layer")
    a = p.parse_args()
    d = data_of(a.report)
    n, heads = d["n"], d["heads"]
    told = sorted({t for q in d["questions"] for t in q["told"] if 0 <= t < n})
    print(f"{n} tokens, {d['layers']} layers of {heads} KV heads, {len(told)} tokens that answer "
          f"{len(d['questions'])} questions")
    for run in d["runs"]:
        lanes = [kept(lane, n) for lane in run["lanes"]]
        rows = [(i // heads * d["step"], i % heads, len(s), len(set(told) & set(s)),
                 sum(t >= n - a.last for t in s)) for i, s in enumerate(lanes)]
        right = sum(1 for x in run["answers"] if x and x[0])
        entries, near = sum(r[2] for r in rows), sum(r[4] for r in rows)
        print(f"\n{run['recipe']}: {right} of {len(run['answers'])} right, {entries} entries, "
              f"{100 * near / max(entries, 1):.0f} % of them among the last {a.last} tokens")
        if a.head:
            print(f"layer head   kept  told  last {a.last}")
            for layer, head, k, t, m in rows:
                print(f"{layer:5} {head:4} {k:6} {t:5} {m:6}")
            continue
        print(f"layer  kept a head, told a head, last {a.last} a head")
        for first in range(0, len(rows), heads):
            some = rows[first:first + heads]
            print(f"{some[0][0]:5}  " + ", ".join(" ".join(str(r[c]) for r in some) for c in (2, 3, 4)))


if __name__ == "__main__":
    main()
