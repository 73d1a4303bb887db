#!/usr/bin/env python3
"""Logits of kvmem against another implementation on the same random-weight GGUF files.

    python3 tools/compare_peer.py --peer PATH/peer_logits [--only WORD] [--tokens N] [--tmp DIR]

Needs ./kvmem, build/mkgguf and the program built from tools/peer_logits.cpp. For every case
(architecture, feature, tensor type) one file is made and read by both; a copy whose matrices are
decoded to float32 is read by the peer, too, with float32 keys and without flash attention: that is
the nearest thing to exact arithmetic, and tells who is closer where both round differently (8-bit
activations). Columns: KL(peer || ours) mean and max over positions, largest difference of logits
divided by their deviation, share of positions with the same top token; then KL(exact || ours) and
KL(exact || peer). Both caches are float16 unless --kv says otherwise.
"""
import argparse
import array
import math
import os
import random
import subprocess
import sys

TYPES = "f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k".split()
ARCHS = "llama qwen2 qwen3 gemma2 gemma3 phi3".split()


# name, mkgguf options after --preset small --type f32, context
FEATURES = [
    ("llama tied", "--tied 1", 256),
    ("llama bpe vocabulary", "--vocab-kind llama-bpe", 256),
    ("llama heads 4/4", "--kv-heads 4", 256),
    ("llama heads 8/1 x 32", "--heads 8 --kv-heads 1 --head-dim 32", 256),
    ("llama head-dim 128", "--head-dim 128", 256),
    ("llama linear rope", "--rope-scaling linear --rope-factor 4", 256),
    ("llama yarn rope", "--rope-scaling yarn --rope-factor 4 --ctx 256 --orig-ctx 64", 256),
    ("llama llama3 rope", "--rope-scaling llama3 --rope-base 500000 --orig-ctx 64", 256),
    ("qwen2 yarn rope", "--arch qwen2 --rope-scaling yarn --rope-factor 4 --ctx 256 --orig-ctx 64", 256),
    ("qwen3 head-dim 128", "--arch qwen3 --head-dim 128", 256),
    ("gemma2 hard caps, window 16",
     "--arch gemma2 --layers 26 --attn-softcap 3 --logit-softcap 5 --swa 16", 256),
    ("gemma2 27B's q scale", "--arch gemma2 --layers 46 --head-dim 32", 256),
    ("gemma3 27B's q scale", "--arch gemma3 --layers 62 --head-dim 32", 256),
    ("gemma3 window 16, base 1e6", "--arch gemma3 --swa 16 --rope-base 1000000", 256),
    ("gemma3 linear rope",
     "--arch gemma3 --layers 12 --swa 16 --rope-scaling linear --rope-factor 8", 256),
    ("phi3 window 16", "--arch phi3 --swa 16", 256),
    ("phi3 partial rope", "--arch phi3 --rot 48", 256),
    ("phi3 longrope, short", "--arch phi3 --rope-scaling longrope --ctx 512 --orig-ctx 256", 256),
    ("phi3 longrope, long", "--arch phi3 --rope-scaling longrope --ctx 512 --orig-ctx 64", 512),
]


def cases():
    """(name, mkgguf options, context, file type)"""
    for a in ARCHS:
        base = f"--preset small --arch {a}" + (" --layers 26" if a == "gemma2" else "")
        for t in ["f32", "q8_0", "q4_0", "q4_k", "q6_k"] if a != "llama" else TYPES:
            yield f"{a} {t}", f"{base} --type {t}", 256, t
    mixed = "--preset small --type q4_k --embd-type q6_k"
    yield "llama q4_k, embedding q6_k", mixed, 256, "q4_k"
    mixed = "--preset small --type q8_0 --embd-type f16"
    yield "llama q8_0, embedding f16", mixed, 256, "q8_0"
    for name, options, ctx in FEATURES:
        yield name, f"--preset small --type f32 {options}", ctx, "f32"


# Small models whose peer logits are committed (tests/golden/peer_logits.h, made with --golden): at three
# positions every 8th logit; keys float32, values float16, no flash attention.
GOLDEN = [
    "--arch llama", "--arch llama --vocab-kind llama-bpe --tied 1 --kv-heads 1",
    "--arch llama --head-dim 32", "--arch llama --rope-scaling linear --rope-factor 4",
    "--arch llama --rope-scaling yarn --rope-factor 4 --ctx 64 --orig-ctx 16",
    "--arch llama --rope-scaling llama3 --orig-ctx 32 --rope-base 500000",
    "--arch qwen2", "--arch qwen2 --tied 1 --rope-base 1000000", "--arch qwen3 --head-dim 32",
    "--arch gemma2 --layers 26 --swa 8 --attn-softcap 3 --logit-softcap 5",
    "--arch gemma2 --layers 46 --head-dim 32 --swa 8",
    "--arch gemma3 --swa 8 --rope-base 1000000",
    "--arch gemma3 --swa 8 --rope-scaling linear --rope-factor 8", "--arch phi3 --swa 8",
    "--arch phi3 --rot 12", "--arch phi3 --rope-scaling longrope --ctx 512 --orig-ctx 256",
    "--arch phi3 --rope-scaling longrope --ctx 512 --orig-ctx 16"]
GOLDEN_IDS = [1] + [3 + (i * i * 31 + i * 17) % 300 for i in range(1, 24)]
GOLDEN_AT = [0, 9, 23]


def golden(o, gguf, out):
    print("/* Logits of ik_llama.cpp for models that tools/mkgguf writes; made by tools/compare_peer.py --golden.")
    print("   Positions %s, every 8th logit. */" % ", ".join(map(str, GOLDEN_AT)))
    print("static const int peer_ids[%d] = {" % len(GOLDEN_IDS), ", ".join(map(str, GOLDEN_IDS)), "};")
    print("static const int peer_at[%d] = {" % len(GOLDEN_AT), ", ".join(map(str, GOLDEN_AT)), "};")
    print("static const struct { const char *args; float logit[%d]; } peer_case[] = {" % (40 * len(GOLDEN_AT)))
    for options in GOLDEN:
        run([o.mkgguf, *options.split(), "-o", gguf])
        run([o.peer, gguf, ",".join(map(str, GOLDEN_IDS)), out, "256", "f32/f16", "0"])
        v = [x for r, row in enumerate(rows(out, len(GOLDEN_IDS))) if r in GOLDEN_AT for x in row[::8]]
        print(f'    {{ "{options}", {{')
        for i in range(0, len(v), 10):
            print("        " + ", ".join(f"{x:.4f}f" for x in v[i:i + 10]) + ",")
        print("    } },")
    print("};")


def run(args):
    r = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if r.returncode:
        raise RuntimeError((r.stderr.strip().splitlines() or ["exit %d" % r.returncode])[0])


def rows(path, n):
    a = array.array("f")
    with open(path, "rb") as f:
        a.frombytes(f.read())
    if sys.byteorder == "big":
        a.byteswap()
    v = len(a) // n
    if v * n != len(a) or not v:
        raise RuntimeError(f"{path}: {len(a)} values for {n} tokens")
    return [a[i * v:(i + 1) * v] for i in range(n)]


def log_softmax(x):
    m = max(x)
    z = m + math.log(math.fsum(math.exp(v - m) for v in x))
    return [v - z for v in x]


def compare(p_rows, q_rows):
    """KL(p||q) mean and max in nats, largest |p - q| over the deviation of p, same-top-1 share."""
    kls, worst, same = [], 0.0, 0
    for p, q in zip(p_rows, q_rows):
        if any(v != v for v in q):
            return math.nan, math.nan, math.nan, 0.0
        lp, lq = log_softmax(p), log_softmax(q)
        kls.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(lp, lq)))
        mean = math.fsum(p) / len(p)
        dev = math.sqrt(math.fsum((v - mean) ** 2 for v in p) / len(p)) or 1.0
        worst = max(worst, max(abs(a - b) for a, b in zip(p, q)) / dev)
        same += max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__)
    return math.fsum(kls) / len(kls), max(kls), worst, same / len(kls)


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--peer", required=True)
    o.add_argument("--kvmem", default="./kvmem", help="'' compares the peer with itself on decoded weights only")
    o.add_argument("--mkgguf", default="build/mkgguf")
    o.add_argument("--tmp", default="/tmp")
    o.add_argument("--tokens", type=int, default=150)
    o.add_argument("--kv", default="f16", help="cache type of both: f16 q8_0 q4_0")
    o.add_argument("--backend", default="", help="our path: plain, avx2, avx512")
    o.add_argument("--flash", default="1", help="the peer's flash attention: 0 or 1")
    o.add_argument("--only", default="", help="cases whose name contains this")
    o.add_argument("--golden", action="store_true", help="print tests/golden/peer_logits.h")
    o = o.parse_args()
    rng = random.Random(7)
    ids = ",".join(str(rng.randrange(260, 350)) for _ in range(o.tokens))
    gguf, exact = (os.path.join(o.tmp, f"cmp-{os.getpid()}{s}.gguf") for s in ("", "-f32"))
    out = [os.path.join(o.tmp, f"cmp-{os.getpid()}-{w}.bin") for w in ("ours", "peer", "exact")]
    if o.golden:
        golden(o, gguf, out[1])
        os.remove(gguf)
        os.remove(out[1])
        return 0
    print(f"{'case':30s} {'KL mean':>9s} {'KL max':>9s} {'max diff':>9s} {'top-1':>6s} | "
          f"{'exact/ours':>10s} {'exact/peer':>10s}")
    bad = 0
    for name, options, ctx, kind in cases():
        if o.only not in name:
            continue
        try:
            run([o.mkgguf, *options.split(), "-o", gguf])
            run([o.peer, gguf, ids, out[1], str(ctx), o.kv, o.flash])
            peer = rows(out[1], o.tokens)
            if kind != "f32":
                run([o.mkgguf, "--from", gguf, "--type", "f32", "-o", exact])
            run([o.peer, exact if kind != "f32" else gguf, ids, out[2], str(ctx), "f32/f16", "0"])
            ref = rows(out[2], o.tokens)
            ours = peer
            if o.kvmem:
                run([o.kvmem, "logits", "-m", gguf, "--tokens", ids, "--ctx", str(ctx), "--kv",
                     f"full codec={o.kv}", "-o", out[0]] + (["--backend", o.backend] if o.backend else []))
                ours = rows(out[0], o.tokens)
            mean, top, diff, same = compare(peer, ours)
            print(f"{name:30s} {mean:9.2e} {top:9.2e} {diff:9.2e} {same:6.3f} | "
                  f"{compare(ref, ours)[0]:10.2e} {compare(ref, peer)[0]:10.2e}", flush=True)
        except RuntimeError as e:
            bad += 1
            print(f"{name:30s} failed: {e}", flush=True)
    for p in [gguf, exact] + out:
        if os.path.exists(p):
            os.remove(p)
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
