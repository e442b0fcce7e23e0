"""How fast the shipped tokenizers encode and decode on one core, and how well they compress.

    python benchmarks/encoding.py                       # ../shared/data/tinystories_valid.txt where it is there
    python benchmarks/encoding.py --text my_stories.txt # documents end with a line <|endoftext|>

Prints, per tokenizer, megabytes (10^6 UTF-8 bytes) per second of processor time, so that other work on the machine
matters little, as the median of `--repeats` runs with the slowest and the fastest; bytes per token; and whether
decoding gave the text back. The aim is 3 MB/s on one core.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tokenizer import DOCUMENT_END, get_tokenizer  # noqa: E402

TEXT = ROOT.parent / "shared" / "data" / "tinystories_valid.txt"
NAMES = ("byte", "characters", "bpe_128", "bpe_256", "bpe_512", "bpe_1024", "bpe_2048", "bpe_4096")


def speeds(work, num_bytes: int, repeats: int) -> list[float]:
    """MB/s of `repeats` runs of `work`, slowest first."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return sorted(num_bytes / 1e6 / s for s in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        raise SystemExit(f"--text={arguments.text}: no such file; name a UTF-8 text file")
    whole = arguments.text.read_bytes().decode()
    documents = [d for part in whole.split(DOCUMENT_END) if (d := part.strip("\n"))]
    num_bytes = sum(len(d.encode()) for d in documents)
    print(f"{arguments.text.name}: {len(documents):,} documents, {num_bytes / 1e6:.2f} MB, one thread")
    print(f"{'tokenizer':<11} {'encode MB/s (range)':>22} {'decode MB/s':>12} {'bytes/token':>12}  round trip")
    for name in NAMES:
        report(name, documents, num_bytes, arguments.repeats)


def report(name: str, documents: list[str], num_bytes: int, repeats: int) -> None:
    tok = get_tokenizer(name)
    ids = tok.encode_batch(documents)
    encode = speeds(lambda: tok.encode_batch(documents), num_bytes, repeats)
    decode = speeds(lambda: [tok.decode(document) for document in ids], num_bytes, repeats)
    lost = sum(map(tok.unknown_count, documents))
    exact = all(tok.decode(i) == document for i, document in zip(ids, documents, strict=True))
    print(
        f"{name:<11} {statistics.median(encode):8.1f} ({encode[0]:.1f} to {encode[-1]:.1f}) "
        f"{statistics.median(decode):12.1f} {tok.bytes_per_token(documents):12.2f}  "
        + ("exact" if exact else f"{lost} unknown characters"),
        flush=True,
    )


if __name__ == "__main__":
    main()
