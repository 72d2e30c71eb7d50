#!/usr/bin/env python3
"""Speed of `fathom convert` against `cp` of the finished file, on the same disk, alternating, cold and warm.

    benches/convert_vs_cp.py [--dir DIR] [--layers 2] [--rounds 5] [--keep]

Makes a synthetic checkpoint of Flash-shaped layers (2 layers and the embeddings: 9 GB), then repeats: convert, cp. Converting syncs
everything it writes, so `cp` is timed up to the end of an fsync of the copy as well; both figures are printed.
Cold = source files dropped from the page cache (posix_fadvise, no root needed), warm = read once just before.
Needs 3 x the checkpoint in DIR. Standard library only.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def files(path):
    return [os.path.join(path, f) for f in sorted(os.listdir(path))] if os.path.isdir(path) else [path]


def cold(path):
    for f in files(path):
        fd = os.open(f, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def warm(path):
    buf = bytearray(1 << 22)
    for f in files(path):
        with open(f, "rb", buffering=0) as h:
            while h.readinto(buf):
                pass


def build(target):
    cmd = ["cargo", "build", "--release", "-q", "-p", "fathom-converters", "--example", "convert", "--example", "synthetic_checkpoint"]
    subprocess.run(cmd, cwd=ROOT, check=True)
    return os.path.join(target, "release", "examples")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--dir", default="/var/tmp/fathom-bench")
    ap.add_argument("--layers", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--keep", action="store_true", help="keep the checkpoint for the next run")
    a = ap.parse_args()
    bin = build(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
    src, out, copy = (os.path.join(a.dir, n) for n in (f"flash-{a.layers}", "out.gguf", "copy.gguf"))
    os.makedirs(a.dir, exist_ok=True)
    if not os.path.exists(os.path.join(src, "model.safetensors.index.json")):
        print("making the checkpoint ...", file=sys.stderr)
        subprocess.run([os.path.join(bin, "synthetic_checkpoint"), src, "--shape", "flash", "--layers", str(a.layers),
                        "--draft", "none", "--shards", "4"], check=True)
    rows, peak = {"cold": [], "warm": []}, 0
    try:
        for n in range(a.rounds):
            for state, prepare in (("cold", cold), ("warm", warm)):
                for f in (out, copy):
                    if os.path.exists(f):
                        os.remove(f)
                os.sync()
                prepare(src)
                one = json.loads(subprocess.run([os.path.join(bin, "convert"), src, out, "--threads", str(a.threads)],
                                                check=True, stdout=subprocess.PIPE).stdout)
                peak = max(peak, one["peak_rss_bytes"] or 0)
                os.sync()
                prepare(out)
                t = time.monotonic()
                subprocess.run(["cp", out, copy], check=True)
                cp = time.monotonic() - t
                fd = os.open(copy, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
                synced = time.monotonic() - t
                rows[state].append((one["seconds"], cp, synced))
                gb = one["bytes"] / 1e9
                print(f"{state} {n}: {gb:.2f} GB, convert {gb/one['seconds']:.2f} GB/s, cp {gb/cp:.2f}, cp+fsync {gb/synced:.2f}", file=sys.stderr)
    finally:
        for f in (out, copy):
            if os.path.exists(f):
                os.remove(f)
        if not a.keep:
            shutil.rmtree(src, ignore_errors=True)
    result = {"schema": 1, "bytes": one["bytes"], "rounds": a.rounds, "cores": os.cpu_count(), "peak_rss_bytes": peak}
    for state, r in rows.items():
        med = [statistics.median(x) for x in zip(*r)]
        result[state] = {"convert_gb_s": round(gb / med[0], 3), "cp_gb_s": round(gb / med[1], 3), "cp_fsync_gb_s": round(gb / med[2], 3),
                         "of_cp": round(statistics.median(c / v for v, c, _ in r), 3),
                         "of_cp_fsync": round(statistics.median(s / v for v, _, s in r), 3)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
