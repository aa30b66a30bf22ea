"""Balancing: captions an hour and core against a list of 500,000 entries, for each library that finds them, and whole.

python benchmarks/bench_balance.py [--entries 500000] [--captions 100000] [--words 12] [--peers FOLDER]
Captions and entries are made of words whose frequencies follow Zipf's law; every library sees the same ones, in a
process of its own, and must find the same number. CPU seconds of one thread. `make peers` installs pyahocorasick.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PEERS = Path(__file__).resolve().parent.parent / ".cache" / "peers" / "extract"
SYLLABLES = [
    "ba",
    "co",
    "di",
    "fe",
    "gu",
    "ha",
    "in",
    "jo",
    "ka",
    "mer",
    "no",
    "per",
    "sta",
    "tion",
    "ur",
    "wo",
    "ing",
    "s",
]
NEEDED = 10_000_000


def made(entries: int, captions: int, words: int) -> tuple[list[str], list[str]]:
    """(entries, captions): single words, then pairs of words as they follow each other."""
    random = np.random.default_rng(0)
    parts = [random.choice(SYLLABLES, (entries, 4)), random.integers(1, 5, entries)]
    vocabulary = list(dict.fromkeys("".join(row[:size]) for row, size in zip(*parts, strict=True)))
    share = 1 / np.arange(1, len(vocabulary) + 1)

    def text(count: int) -> list[str]:
        return [vocabulary[n] for n in random.choice(len(vocabulary), count, p=share / share.sum())]

    listed = dict.fromkeys(vocabulary[: entries // 2])
    while len(listed) < entries:
        listed |= dict.fromkeys(f"{a} {b}" for a, b in itertools.pairwise(text(entries)))
    said = text(captions * words)
    return list(listed)[:entries], [" ".join(said[n * words : (n + 1) * words]) for n in range(captions)]


def memory() -> float:
    """Resident MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def measure(library: str, options: list[int], peers: Path) -> dict[str, float]:
    """Of one library: seconds to build, MB, captions a second, matches."""
    entries, captions = made(*options)
    spaced, texts = [f" {entry} " for entry in entries], [f" {caption} " for caption in captions]
    before, start = memory(), time.process_time()
    if library == "pyahocorasick":
        sys.path.append(str(peers))
        import ahocorasick

        found_by = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, entry in enumerate(spaced):
            found_by.add_word(entry, number)
        found_by.make_automaton()
        find = found_by.iter
    elif library == "ahocorasick_rs, text":
        import ahocorasick_rs

        found_by = ahocorasick_rs.AhoCorasick(spaced, store_patterns=False)

        def find(text):
            return found_by.find_matches_as_indexes(text, overlapping=True)
    else:
        from vlmdata.select import balance

        found_by = balance.automaton(entries)

        def find(text):
            return found_by.find_matches_as_indexes(text.encode(), overlapping=True)

    build, used = time.process_time() - start, memory() - before
    start = time.process_time()
    if library == "vlmdata: match":
        import pyarrow as pa

        matches = sum(balance.match(found_by, pa.array(captions[n : n + 10_000])).num_rows
                      for n in range(0, len(captions), 10_000))  # fmt: skip
    else:
        matches = sum(len(list(find(text))) for text in texts)
    return {"build": build, "MB": used, "rate": len(captions) / (time.process_time() - start), "matches": matches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--peers", type=Path, default=PEERS, help="where pyahocorasick is, if anywhere")
    parser.add_argument("--library", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    options = [asked.entries, asked.captions, asked.words]
    if asked.library:
        print(json.dumps(measure(asked.library, options, asked.peers)))
        return
    print(f"{asked.captions:,} captions of {asked.words} words, {asked.entries:,} entries, overlapping matches")
    print(f"{'':<24}{'build s':>9}{'MB':>7}{'captions/s':>12}{'million/h':>11}{'matches':>12}")
    libraries = ["ahocorasick_rs, bytes", "ahocorasick_rs, text", "vlmdata: match"]
    if list(asked.peers.glob("ahocorasick*.so")):
        libraries.insert(2, "pyahocorasick")
    for library in libraries:
        numbers = [f"--{name}={value}" for name, value in zip(("entries", "captions", "words"), options, strict=True)]
        command = [sys.executable, __file__, "--library", library, "--peers", str(asked.peers), *numbers]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(run.stderr)
        row = json.loads(run.stdout)
        print(f"{library:<24}{row['build']:>9.1f}{row['MB']:>7.0f}{row['rate']:>12,.0f}{row['rate'] * 0.0036:>11.0f}"
              f"{row['matches']:>12,}")  # fmt: skip
    print(
        f"needed: {NEEDED / 1e6:.0f} million an hour; `vlmdata: match` normalises, and counts an entry once a caption"
    )


if __name__ == "__main__":
    main()
