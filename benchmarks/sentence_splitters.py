"""Which sentence splitter? Speed, and where the contenders disagree, for judging by eye.

    python -m benchmarks.sentence_splitters --language en --input FILE [--megabytes 2] [--samples 15]

Contenders that are not installed are left out: `pip install sentencex blingfire syntok pysbd numpy`. Each gets the same
lines one by one. MB are 10^6 bytes of text; one process, one thread, the best of three rounds.
"""

import argparse
import importlib.util
import random
import time
from typing import Callable

Splitter = Callable[[str], list[str]]


def contenders(language: str) -> dict[str, Splitter]:
    """Name → function from a line to its sentences, for what is installed."""
    makers = {"sentencex": _sentencex, "blingfire": _blingfire, "syntok": _syntok, "pysbd": _pysbd}
    return {name: make(language) for name, make in makers.items() if importlib.util.find_spec(name)}


def _sentencex(language: str) -> Splitter:
    from sentencex import segment

    return lambda line: [sentence.strip() for sentence in segment(language, line)]


def _blingfire(language: str) -> Splitter:
    from blingfire import text_to_sentences

    return lambda line: text_to_sentences(line).split("\n")


def _syntok(language: str) -> Splitter:
    from syntok import segmenter

    def split(line: str) -> list[str]:
        paragraphs = segmenter.process(line)
        return ["".join(token.spacing + token.value for token in each).strip() for part in paragraphs for each in part]

    return split


def _pysbd(language: str) -> Splitter:
    import pysbd

    segmenter = pysbd.Segmenter(language=language, clean=False)
    return lambda line: [sentence.strip() for sentence in segmenter.segment(line)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True)
    parser.add_argument("--language", default="en")
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--samples", type=int, default=15, help="lines to show on which two splitters disagree")
    options = parser.parse_args()
    with open(options.input, "rb") as file:
        text = file.read(int(options.megabytes * 1e6)).decode("utf-8", "ignore")
    lines = [line for line in text.split("\n") if line.strip()]
    found = {name: measure(name, split, lines) for name, split in contenders(options.language).items()}
    show_disagreements(found, lines, options.samples)


def measure(name: str, split: Splitter, lines: list[str]) -> list[list[str]]:
    """Prints the speed; returns the sentences of each line. A slow splitter gets one round, on the first lines."""
    size = sum(len(line.encode("utf-8")) for line in lines) / 1e6
    begin = time.perf_counter()
    for line in lines[:100]:
        split(line)
    slow = (time.perf_counter() - begin) * len(lines) / 100 > 10
    chosen = lines[:200] if slow else lines
    size = sum(len(line.encode("utf-8")) for line in chosen) / 1e6
    seconds = []
    for _ in range(1 if slow else 3):
        begin = time.perf_counter()
        sentences = [split(line) for line in chosen]
        seconds.append(time.perf_counter() - begin)
    count = sum(map(len, sentences))
    print(f"{name:12}{size / min(seconds):>8.2f} MB/s{count:>10,} sentences in {len(chosen):,} lines")
    return sentences


def show_disagreements(found: dict[str, list[list[str]]], lines: list[str], samples: int) -> None:
    """Prints, for lines drawn by chance, the sentences that only one of the first two contenders makes."""
    if len(found) < 2 or not samples:
        return
    (first, ours), (second, theirs) = list(found.items())[:2]
    different = [index for index, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    print(f"\n{first} and {second} agree on {1 - len(different) / min(len(ours), len(theirs)):.1%} of the lines")
    for index in random.Random(0).sample(different, min(samples, len(different))):
        for name, mine, other in ((first, ours, theirs), (second, theirs, ours)):
            only = [sentence for sentence in mine[index] if sentence not in other[index]]
            print(f"{name:12}" + " ¦ ".join(only)[:300])
        print()


if __name__ == "__main__":
    main()
