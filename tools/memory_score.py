#!/usr/bin/env python3
"""How many questions about a long conversation does `./kvmem memory` answer?

    python3 tools/memory_score.py [--tokens 72000] [--facts 250] [--questions 60] [--seed 3] [-- OPTIONS OF ask]

Needs ./kvmem and build/corpus (make kvmem build/corpus). Makes a conversation of kvmem's synthetic language with
questions that it does not answer itself, adds it to an empty store, asks every question in a process of its own, and
prints right answers by kind, bytes and seconds.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time


def main():
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("tokens", 72000), ("facts", 250), ("questions", 60), ("seed", 3)):
        p.add_argument("--" + name, type=int, default=value)
    a, more = p.parse_args(sys.argv[1:cut]), sys.argv[cut + 1:]
    folder = tempfile.mkdtemp()
    text, store = os.path.join(folder, "conv.txt"), os.path.join(folder, "m.kvm")
    made = subprocess.run(["build/corpus", "--suite", "conv", "--ctx", str(a.tokens), "--facts", str(a.facts),
                           "--persons", "64", "--attrs", "8", "--questions", str(a.questions), "--seed", str(a.seed)],
                          check=True, capture_output=True, text=True).stdout
    told, asked = [], []
    for line in made.splitlines():
        found = re.match(r"\W*(single|updated|twice|chain)\b.*?(\w+: .*\?) (.*)$", line)
        if found:
            asked.append(found.groups())
        elif line and not line.startswith("#"):
            told.append(line.replace("<|bos|>", ""))
    with open(text, "w", encoding="ascii") as f:
        f.write("\n".join(told) + "\n")
    start = time.time()
    subprocess.run(["./kvmem", "memory", "add", text, "--store", store], check=True, capture_output=True)
    print("add    %d bytes of text, %d bytes of store, %.1f s" % (os.path.getsize(text), os.path.getsize(store),
                                                                 time.time() - start))
    right, total, most, tokens, start = {}, {}, 0, 0, time.time()
    for kind, question, answer in asked:
        run = subprocess.run(["./kvmem", "memory", "ask", question, "--store", store, "--json"] + more,
                             check=True, capture_output=True, text=True)
        said = json.loads(run.stdout)
        total[kind] = total.get(kind, 0) + 1
        right[kind] = right.get(kind, 0) + (said["answer"].strip().rstrip(".") == answer.strip().rstrip("."))
        most, tokens = max(most, said["bytes"]["working_set_peak"]), max(tokens, said["tokens"])
    print("ask    %d of %d right; working set at most %d bytes, %d tokens; %.2f s a question" % (
        sum(right.values()), sum(total.values()), most, tokens, (time.time() - start) / max(1, len(asked))))
    for kind in total:
        print("       %-8s %d of %d" % (kind, right[kind], total[kind]))


if __name__ == "__main__":
    main()
