#!/usr/bin/env python3
"""Greedy answers of kvmem and of a llama.cpp-like library for one GGUF: the questions of evaluation
conversations, as text. The peer tokenizes the text itself (its llama-tokenize), both take the likeliest token.

  python3 tools/compare_answers.py -m examples/models/tiny.gguf --logits PEER_LOGITS --tokenize LLAMA_TOKENIZE

PEER_LOGITS is tools/peer_logits.cpp built against the peer. Exit 1 if ids or answers differ."""
import argparse, array, ast, os, subprocess, sys, tempfile


def run(*args):
    return subprocess.run(args, check=True, capture_output=True).stdout


def last_row(path, n_vocab):
    rows = array.array("f", open(path, "rb").read())
    return rows[-n_vocab:]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("-m", "--model", default="examples/models/tiny.gguf")
    p.add_argument("--logits", required=True)
    p.add_argument("--tokenize", required=True)
    p.add_argument("--corpus", default="build/corpus")
    p.add_argument("--kvmem", default="./kvmem")
    p.add_argument("--ctx", type=int, default=1024)
    p.add_argument("--seeds", type=int, default=3)
    a = p.parse_args()
    n_vocab = len(run(a.corpus, "--vocab").decode().rstrip("\n").split("\n"))
    total = same_ids = same = right = 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as d:
        text_file, ours, theirs = (os.path.join(d, x) for x in ("text", "ours", "theirs"))
        for seed in range(1, a.seeds + 1):
            out = run(a.corpus, "--suite", "conv", "--ctx", str(a.ctx), "--seed", str(seed)).decode()
            context, questions = out.rsplit("\n\n", 1)
            context = context.replace("<|bos|>", "") + "\n"
            for line in questions.strip().split("\n"):
                question, answer = line.split("  ", 3)[-1].strip().split("? ", 1)
                question = question[question.index(" ") + 1:] if question.startswith("asked") else question
                while question and not question.split(":")[0].isalpha():
                    question = question[question.index(" ") + 1:].strip()
                open(text_file, "w").write(context + question + "?")
                ids = run(a.kvmem, "tokenize", "-m", a.model, "-f", text_file, "--no-bos").decode().split()
                ids = [int(x.strip(",")) for x in ids]
                peer = ast.literal_eval(run(a.tokenize, "-m", a.model, "-f", text_file, "--ids", "--no-bos",
                                            "--log-disable").decode().strip().split("\n")[-1])
                same_ids += ids == peer
                arg = ",".join(map(str, [0] + ids))
                run(a.kvmem, "logits", "-m", a.model, "--tokens", arg, "-o", ours)
                run(a.logits, a.model, arg, theirs)
                x, y = last_row(ours, n_vocab), last_row(theirs, n_vocab)
                best = max(range(n_vocab), key=lambda i: x[i])
                same += best == max(range(n_vocab), key=lambda i: y[i])
                worst = max(worst, max(abs(u - v) for u, v in zip(x, y)))
                word = run(a.kvmem, "detokenize", "-m", a.model, str(best)).decode()
                right += word.strip() == answer.strip()
                total += 1
    print(f"{total} questions at {a.ctx} tokens: same ids {same_ids}, same answers {same}, right {right}; "
          f"largest difference of a logit {worst:.3g}")
    return 0 if same_ids == same == total else 1


sys.exit(main())
