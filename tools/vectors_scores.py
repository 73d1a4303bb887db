#!/usr/bin/env python3
"""Vectors for tests/scores.c: the eviction scores of NVIDIA/kvpress, restated in plain Python floats.

    python3 tools/vectors_scores.py > tests/golden/scores.h
    python3 tools/vectors_scores.py --official DIR     compare with the code itself: DIR holds a checkout of
                                                       NVIDIA/kvpress; needs torch (1.13 was used), nothing else

The rows come from a hash, so that the test makes them itself and only results are stored. One layer, 2 KV heads
of 2 query heads each, 8 channels, 40 tokens, RoPE on pairs (i, i + 4). Written from the formulas, without a look
at kvmem.h; --official says how far this file is from the code that it restates."""
import math
import sys

N, D, H, G = 40, 8, 4, 2
R = H // G
FREQ = [1.0, 0.25, 0.0625, 0.015625]


def cell(what, t, h, c):
    """A multiple of 1/1024 in [-2, 2]; queries lean to one side, values grow slowly."""
    x = (what * 0x9E3779B1 + t * 0x85EBCA6B + h * 0xC2B2AE35 + c * 0x27D4EB2F) & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x2C1B3C6D & 0xFFFFFFFF
    x ^= x >> 12
    x = x * 0x297A2D39 & 0xFFFFFFFF
    x ^= x >> 15
    v = (x % 4097 - 2048) / 1024.0
    if what == 0 and c % 3 == h % 3:
        v += 1.0
    if what == 2:
        v *= 1.0 + t / 64.0
    return v


def table(what, heads):
    return [[[cell(what, t, h, c) for c in range(D)] for t in range(N)] for h in range(heads)]


def rope(x, p):
    y = x[:]
    for i, f in enumerate(FREQ):
        co, si = math.cos(p * f), math.sin(p * f)
        y[i] = co * x[i] - si * x[i + D // 2]
        y[i + D // 2] = si * x[i] + co * x[i + D // 2]
    return y


Q0, K0, V = table(0, H), table(1, G), table(2, G)
Q = [[rope(x, t) for t, x in enumerate(rows)] for rows in Q0]
K = [[rope(x, t) for t, x in enumerate(rows)] for rows in K0]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def norm(a):
    return math.sqrt(dot(a, a))


def softmax(z):
    m = max(z)
    e = [math.exp(x - m) for x in z]
    s = sum(e)
    return [x / s for x in e]


def mean_rotation(future):
    """Rbar as a matrix: the rotations to N .. N + future - 1, added up and divided."""
    m = [[0.0] * D for _ in range(D)]
    for p in range(N, N + future):
        for c in range(D):
            e = rope([1.0 if i == c else 0.0 for i in range(D)], p)
            for i in range(D):
                m[i][c] += e[i] / future
    return m


def apply(m, x):
    return [dot(row, x) for row in m]


def solve(a, b):
    """x with a x = b: Gauss with pivots."""
    n = len(a)
    m = [row[:] + [b[i]] for i, row in enumerate(a)]
    for i in range(n):
        p = max(range(i, n), key=lambda j: abs(m[j][i]))
        m[i], m[p] = m[p], m[i]
        for j in range(i + 1, n):
            f = m[j][i] / m[i][i]
            for c in range(i, n + 1):
                m[j][c] -= f * m[i][c]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (m[i][n] - sum(m[i][c] * x[c] for c in range(i + 1, n))) / m[i][i]
    return x


def group(rows):
    """Mean of the query heads of each KV head."""
    return [[sum(rows[g * R + j][t] for j in range(R)) / R for t in range(len(rows[0]))] for g in range(G)]


def lifted(rows, sinks, top):
    return [[top + 1] * sinks + row for row in rows]


def expected(future=512, sinks=4, cov=True, vnorm=True, eps=0.0):
    m, heads = mean_rotation(future), []
    for h in range(H):
        qs = Q0[h][sinks:]
        mu = [sum(q[c] for q in qs) / len(qs) for c in range(D)]
        s = [[sum((q[i] - mu[i]) * (q[j] - mu[j]) for q in qs) / len(qs) for j in range(D)] for i in range(D)]
        s = [apply(m, row) for row in s]                                     # S Rbar^T
        s = [[dot(m[i], [s[k][j] for k in range(D)]) for j in range(D)] for i in range(D)]
        mu = apply(m, mu)
        z = []
        for k in K[h // R][sinks:]:
            x = dot(mu, k) / math.sqrt(D)
            if cov:
                x += dot(k, apply(s, k)) / D / 2
            z.append(x)
        heads.append(softmax(z))
    rows = group(heads)
    if vnorm:
        rows = [[(p + eps) * norm(v) for p, v in zip(row, V[g][sinks:])] for g, row in enumerate(rows)]
    return lifted(rows, sinks, 0)          # the lane's own best + 1 is set by the caller


def qfilter():
    out = []
    for g in range(G):
        f = [0.0] * D
        for h in range(g * R, (g + 1) * R):
            m = [[sum(q[i] * q[j] for q in Q[h]) for j in range(D)] for i in range(D)]
            v = [1.0 + 0.1 * i for i in range(D)]
            for _ in range(5000):
                v = apply(m, v)
                size = norm(v)
                v = [x / size for x in v]
            sign = 1 if sum(dot(q, v) > 0 for q in Q[h]) > 0.5 * N else -1
            f = [a - sign * x / R for a, x in zip(f, v)]
        out.append([-dot(f, k) for k in K[g]])
    return out


def ranks(x):
    order = sorted(range(len(x)), key=lambda i: (x[i], i))
    r = [0] * len(x)
    for place, i in enumerate(order):
        r[i] = place
    return r


def lagkv(sinks=4, lag=8, cross=False):
    blocks, out = (N - sinks) // lag, []
    for g in range(G):
        row = [1.0] * N
        for b in range(blocks - 1):
            e = []
            for x in (K[g], V[g]):
                own, ref = x[sinks + b * lag:sinks + (b + 1) * lag], x[sinks + (b + 1) * lag:sinks + (b + 2) * lag]
                lo = [min(y[c] for y in ref) for c in range(D)]
                hi = [max(y[c] for y in ref) for c in range(D)]
                std = []
                for y in own:
                    u = [(y[c] - lo[c]) / (hi[c] - lo[c]) for c in range(D)]
                    m = sum(u) / D
                    std.append(math.sqrt(sum((a - m) ** 2 for a in u) / (D - 1)))
                e.append(softmax(std))
            s = [(a + b2) / 2 for a, b2 in zip(*e)]
            if not cross:
                s = [r / lag for r in ranks(s)]
            row[sinks + b * lag:sinks + (b + 1) * lag] = s
        out.append(row)
    return out


def keydiff():
    out = []
    for g in range(G):
        a = [sum(k[c] / norm(k) for k in K[g]) / N for c in range(D)]
        out.append([-dot(k, a) / (norm(k) * norm(a)) for k in K[g]])
    return out


def pool3(x):
    return [sum(x[max(t - 1, 0):t + 2]) / 3 for t in range(len(x))]


def zscores(rows):
    every = [x for row in rows for x in row]
    m = sum(every) / len(every)
    s = max(math.sqrt(sum((x - m) ** 2 for x in every) / (len(every) - 1)), 1e-6)
    return [[(x - m) / s for x in row] for row in rows]


def noncausal(chunk=16, pad=False, first=0, last=0):
    heads = []
    for h in range(H):
        a = []
        for c in range(first, N - last, chunk):
            ts = range(c, min(c + chunk, N - last))
            more = chunk - len(ts) if pad else 0
            col = [more / chunk] * len(ts)
            for i in ts:
                z = softmax([dot(Q[h][i], K[h // R][j]) for j in ts] + [-1e-9] * more)
                col = [x + z[j] for j, x in enumerate(col)]
            a += col
        heads.append(a)
    rows = group(heads)
    return zscores([pool3([x * norm(v) for x, v in zip(row, V[g][first:])]) for g, row in enumerate(rows)])


def leverage(first=0, last=0, jitter=0.01):
    """Without a sketch."""
    rows = []
    for g in range(G):
        x = K0[g][first:N - last]
        m = [sum(k[c] for k in x) / len(x) for c in range(D)]
        x = [[a - b for a, b in zip(k, m)] for k in x]
        gram = [[sum(k[i] * k[j] for k in x) + (jitter if i == j else 0) for j in range(D)] for i in range(D)]
        rows.append([max(0.0, dot(k, solve(gram, k))) for k in x])
    return zscores(rows)


def compactor(blend=0.5, first=8, last=4, chunk=16, pad=False):
    a, b = noncausal(chunk, pad, first, last), leverage(first, last)
    return [[0.0] * first + [x + blend * y for x, y in zip(ra, rb)] + [0.0] * last for ra, rb in zip(a, b)]


def cur(of="product", block=16, sinks=4):
    out = []
    for g in range(G):
        parts = []
        for x in (K[g], V[g]):
            s = [dot(y, y) for y in x]
            parts.append([s[t] / sum(s[t // block * block:t // block * block + block]) for t in range(N)])
        s = {"product": [a * b for a, b in zip(*parts)], "key": parts[0], "value": parts[1],
             "average": [(a + b) / 2 for a, b in zip(*parts)]}[of]
        out.append([1.0 if t < sinks else x / sum(s) for t, x in enumerate(s)])
    return out


def cap(tau=5.0, future=512, sinks=4):
    m, heads = mean_rotation(future), []
    for h in range(H):
        ks, vs, qs = K[h // R][sinks:], V[h // R][sinks:], Q0[h][sinks:]
        q = apply(m, [sum(x[c] for x in qs) / len(qs) for c in range(D)])
        z = [tau * dot(q, k) / (norm(q) * norm(k)) for k in ks]
        w = [math.exp(x - max(z)) for x in z]
        a = [[sum((w[t] + 1e-6) * v[i] * v[j] for t, v in enumerate(vs)) + (i == j) for j in range(D)]
             for i in range(D)]
        heads.append([w[t] * dot(v, solve(a, v)) for t, v in enumerate(vs)])
    return lifted(group(heads), sinks, 0)


def think(ratio=0.5, window=32):
    """The kept channels of each KV head."""
    out = []
    for g in range(G):
        e = [sum(Q[h][t][c] ** 2 for h in range(g * R, g * R + R) for t in range(N - window, N)) / (R * window)
             * sum(k[c] ** 2 for k in K[g]) / N for c in range(D)]
        best = sorted(range(D), key=lambda c: (-e[c], c))[:D - int(D * ratio)]
        out.append(sorted(best))
    return out


SCORES = [("expected", expected), ("expected_plain", lambda: expected(3, 2, False, False)),
          ("expected_eps", lambda: expected(64, 4, True, True, 0.02)), ("qfilter", qfilter), ("lagkv", lagkv),
          ("lagkv_cross", lambda: lagkv(4, 8, True)), ("keydiff", keydiff), ("noncausal", noncausal),
          ("noncausal_pad", lambda: noncausal(16, True)), ("leverage", leverage), ("compactor", compactor),
          ("compactor_pad", lambda: compactor(0.5, 8, 4, 16, True)), ("cur", cur),
          ("cur_average", lambda: cur("average", 7, 2)), ("cap", cap), ("cap_flat", lambda: cap(0.0, 1, 4))]


def official(path):
    """Largest differences between this file and the code in path."""
    import types
    from dataclasses import dataclass
    import torch
    from torch import nn
    torch.set_default_dtype(torch.float64)

    def module(name, **what):
        m = types.ModuleType(name)
        m.__dict__.update(what)
        m.__path__ = []
        sys.modules[name] = m

    def repeat_kv(x, r):
        return x.repeat_interleave(r, dim=1)

    def rotate_half(x):
        return torch.cat((-x[..., x.shape[-1] // 2:], x[..., :x.shape[-1] // 2]), dim=-1)

    @dataclass
    class Press:
        compression_ratio: float = 0.0

    @dataclass
    class Bare:
        pass

    nothing = type("Nothing", (), {})
    module("transformers", Cache=nothing, QuantizedCache=nothing)
    module("transformers.models")
    for name, what in (("llama", {"repeat_kv": repeat_kv, "rotate_half": rotate_half}),
                       ("gemma3", {"Gemma3Attention": nothing}), ("phi3", {"Phi3Attention": nothing}),
                       ("qwen3", {"Qwen3Attention": type("Other", (), {})})):
        module("transformers.models." + name)
        module("transformers.models.%s.modeling_%s" % (name, name), **what)
    module("huggingface_hub", PyTorchModelHubMixin=object, get_collection=None)
    module("kvpress")
    module("kvpress.presses")
    module("kvpress.presses.scorer_press", ScorerPress=Press)
    module("kvpress.presses.base_press", BasePress=Bare)

    def load(name):
        import importlib.util
        spec = importlib.util.spec_from_file_location("kvpress." + name, path + "/kvpress/" +
                                                      name.replace(".", "/") + ".py")
        m = importlib.util.module_from_spec(spec)
        sys.modules["kvpress." + name] = m
        spec.loader.exec_module(m)
        return m

    load("utils")
    press = {n: load("presses." + n + "_press") for n in (
        "expected_attention", "qfilter", "lagkv", "keydiff", "non_causal_attention", "leverage", "compactor", "cur",
        "cap", "think")}
    freq = torch.tensor(FREQ + FREQ)

    class Layer(nn.Module):
        config = types.SimpleNamespace(num_attention_heads=H)
        head_dim, layer_idx = D, 0

        def q_proj(self, x):
            return x[..., :H * D]

        def k_proj(self, x):
            return x[..., H * D:]

        def rotary_emb(self, x, ids):
            a = ids[..., None].double() * freq
            return a.cos(), a.sin()

    layer = Layer()
    hidden = torch.tensor([[[x for h in range(H) for x in Q0[h][t]] + [x for g in range(G) for x in K0[g][t]]
                            for t in range(N)]])
    k, v = torch.tensor([K]), torch.tensor([V])
    cos, sin = layer.rotary_emb(None, torch.arange(N)[None])
    kwargs = {"position_embeddings": (cos, sin), "hidden_states": hidden}
    worst = 0.0

    def compare(name, p, mine, first=0, last=0):
        nonlocal worst
        # the sketch of leverage: the identity in place of normal numbers
        real, torch.randn = torch.randn, lambda b, g, d, s, **kw: torch.eye(d).expand(b, g, d, s) * math.sqrt(s)
        theirs = p.score(layer, hidden, k.clone(), v.clone(), None, kwargs)[0]
        torch.randn = real
        e = (theirs - torch.tensor(mine))[:, first:N - last].abs().max().item()
        worst = max(worst, e)
        print("%-16s %.2g" % (name, e))

    ea, nc = press["expected_attention"].ExpectedAttentionPress, press["non_causal_attention"].NonCausalAttnPress
    compare("expected", ea(0.5), expected(), 4)
    compare("expected_plain", ea(0.5, 3, 2, False, False), expected(3, 2, False, False), 2)
    compare("expected_eps", ea(0.5, 64, 4, True, True, 0.02), expected(64, 4, True, True, 0.02), 4)
    # make_filters.py of NathanGodey/qfilters, by the same calls: svd of uncentred queries after RoPE
    u, _, vh = torch.linalg.svd(torch.tensor(Q), full_matrices=False)
    sign = ((u[..., 0] > 0).double().mean(-1) > 0.5).double() * 2 - 1
    qf = press["qfilter"].QFilterPress(0.5)
    qf.q_filters = (-sign[:, None] * vh[..., 0, :]).reshape(G, R, D).mean(-2)[None]
    compare("qfilter", qf, qfilter())
    compare("lagkv", press["lagkv"].LagKVPress(0.5, 4, 8), lagkv())
    compare("lagkv_cross", press["lagkv"].LagKVPress(0.5, 4, 8, True), lagkv(4, 8, True))
    compare("keydiff", press["keydiff"].KeyDiffPress(0.5), keydiff())
    compare("noncausal_pad", nc(0.5, 16), noncausal(16, True))
    compare("noncausal, full", nc(0.5, 8), noncausal(8))
    compare("leverage", press["leverage"].LeverageScorePress(0.5, D), leverage())
    compare("compactor_pad", press["compactor"].CompactorPress(0.5, 8, 4, 16, D, 0.5),
            compactor(0.5, 8, 4, 16, True), 8, 4)
    compare("cur", press["cur"].CURPress(0.5), cur())
    compare("cur_average", press["cur"].CURPress(0.5, 2, "kv_avg", False, True, 7), cur("average", 7, 2))
    compare("cap", press["cap"].CapPress(0.5), cap(), 4)
    compare("cap_flat", press["cap"].CapPress(0.5, 0.0, 1, 4), cap(0.0, 1, 4), 4)
    tk = press["think"].ThinKPress(0.5, 32).compress(layer, hidden, k.clone(), v, None, kwargs)[0][0]
    same = [[c for c in range(D) if tk[g, :, c].abs().max() > 0] for g in range(G)] == think()
    print("think            %s" % ("the same channels" if same else "OTHER CHANNELS"))
    return 0 if worst < 1e-5 and same else 1


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--official":
        return official(sys.argv[2])
    print("/* Made by `python3 tools/vectors_scores.py > tests/golden/scores.h`: scores of kvpress over rows from a hash,")
    print("   restated in Python; entries that a method leaves out (sinks, ends) hold 0. */")
    print("#define GOLDEN_N %d" % N)
    for name, fn in SCORES:
        rows = fn()
        free = {"expected": 4, "expected_plain": 2, "expected_eps": 4, "cap": 4, "cap_flat": 4}.get(name, 0)
        rows = [[0.0] * free + row[free:] for row in rows]
        print("static const double golden_%s[%d][%d] = {" % (name, G, N))
        for row in rows:
            line = "    { "
            for i, x in enumerate(row):
                word = "%.9g%s" % (x, "," if i + 1 < N else " },")
                if len(line) + len(word) > 116:
                    print(line.rstrip())
                    line = "      "
                line += word + " "
            print(line.rstrip())
        print("};")
    kept = think()
    print("static const int golden_think[%d][%d] = { %s };" % (G, len(kept[0]), ", ".join(
        "{ " + ", ".join(str(c) for c in row) + " }" for row in kept)))
    return 0


sys.exit(main())
