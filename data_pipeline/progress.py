"""What prepare shows while it works, and what it says at the end."""

import contextlib
import sys
import time
from typing import Any, Callable, Iterator

_PLAIN_SECONDS = 10.0
# Above these shares a model learns some text by heart. Lines repeat in any text: headings, captions.
_MANY_DUPLICATES = {"documents": 0.01, "lines": 0.1}


class Progress:
    """A bar on a terminal, now and then a line elsewhere, or nothing."""

    def __init__(self, visible: bool):
        self.visible = visible
        self.terminal = visible and sys.stderr.isatty()

    @contextlib.contextmanager
    def waiting(self, doing: str) -> Iterator[None]:
        """For work that cannot tell how far it is."""
        begin = time.monotonic()
        if self.terminal:
            from rich.console import Console
            from rich.text import Text

            with Console(stderr=True).status(Text(doing)):  # a path in it may hold brackets, and is no markup
                yield
        else:
            yield
        if self.visible:
            print(f"{doing}: {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def bytes(self, doing: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """Yields a function that takes the bytes done since, beyond the `done` ones of an earlier run."""
        if not self.visible:
            yield lambda count: None
        elif not self.terminal:
            yield _plain_lines(doing, total, done)
        else:
            from rich import progress as rich_progress
            from rich.console import Console

            columns = (
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(),
                rich_progress.DownloadColumn(),
                rich_progress.TransferSpeedColumn(),
                rich_progress.TimeRemainingColumn(),
            )
            with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
                task = bar.add_task(doing, total=total, completed=done)
                yield lambda count: bar.update(task, completed=done + count)


def _plain_lines(doing: str, total: int, done: int) -> Callable[[int], None]:
    begin = last = time.monotonic()

    def show(count: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS:
            last = now
            rate = count / 1e6 / (now - begin)
            message = f"{doing}: {(done + count) / 1e6:.1f} of {total / 1e6:.1f} MB, {rate:.1f} MB/s"
            print(message, file=sys.stderr, flush=True)

    return show


def summary_lines(summary: Any) -> list[str]:
    """The last words of prepare, warnings among them."""
    counts, tokenizer = summary.manifest["counts"], summary.manifest["tokenizer"]
    both = {name: counts["train"][name] + counts["validation"][name] for name in counts["train"]}
    if summary.finished_before:
        lines = [f"{summary.path} is finished already, with the same settings and sources: nothing to do"]
    else:
        rate = summary.megabytes / max(summary.seconds, 1e-9)
        done = f"{summary.megabytes:.1f} MB in {summary.seconds:.1f} s ({rate:.1f} MB/s, all included)"
        lines = [f"{summary.path}: {done}"]
    per_sentence = both["tokens"] / max(1, both["sentences"])
    unknown = both["unknown_tokens"] / max(1, both["tokens"])
    lines += [
        f"  documents   {both['documents']:>14,}   held out {counts['validation']['documents']:,}",
        f"  sentences   {both['sentences']:>14,}   {both['sentences'] / max(1, both['documents']):.1f} per document",
        f"  tokens      {both['tokens']:>14,}   {per_sentence:.1f} per sentence, "
        f"{both['bytes'] / max(1, both['tokens']):.2f} bytes per token",
        f"  unknown     {both['unknown_tokens']:>14,}   {unknown:.4%} of the tokens",
        *_duplicate_lines(summary.manifest),
        f"  vocabulary  {tokenizer['vocab_size']:>14,}   {tokenizer['kind']}, "
        f"fingerprint {tokenizer['fingerprint'][:12]}",
    ]
    return lines + [f"warning: {warning}" for warning in warnings(summary.manifest)]


def _duplicate_lines(manifest: dict[str, Any]) -> list[str]:
    found = manifest.get("duplicates")  # not in corpora of earlier releases
    if not found:
        return []
    dropped = manifest["settings"]["drop_duplicates"]
    lines, documents = found["lines"], found["documents"]
    return [
        f"  duplicates  {lines['repeated']:>14,}   lines ({_share(lines):.2%}), {documents['repeated']:,} documents "
        f"({_share(documents):.2%}): {'kept' if dropped == 'none' else dropped + ' dropped'}"
    ]


def _share(counts: dict[str, int]) -> float:
    return counts["repeated"] / max(1, counts["read"])


def warnings(manifest: dict[str, Any]) -> list[str]:
    """What a user should know before training on the corpus."""
    found = []
    counts = manifest["counts"]
    if counts["train"]["documents"] < 2:
        found.append(
            f"{counts['train']['documents']} training document(s): next-sentence prediction needs 2; "
            "documents are separated by empty lines"
        )
    if counts["validation"]["documents"] < 2:
        found.append(
            f"{counts['validation']['documents']} held-out document(s): evaluation needs 2; "
            "raise --validation-fraction or add documents"
        )
    if manifest["replaced"]:
        found.append(f"{manifest['replaced']:,} invalid bytes or surrogates were replaced by U+FFFD")
    if manifest["cut_documents"]:
        found.append(f"{manifest['cut_documents']:,} cuts were made in documents longer than 16 MiB")
    tokens = counts["train"]["tokens"]
    if tokens and counts["train"]["unknown_tokens"] > 0.01 * tokens:
        share = counts["train"]["unknown_tokens"] / tokens
        found.append(f"{share:.1%} of the tokens are [UNK]: does the tokenizer fit the text?")
    duplicates = manifest.get("duplicates")
    if duplicates and manifest["settings"]["drop_duplicates"] == "none":
        for kind in ("documents", "lines"):
            if _share(duplicates[kind]) > _MANY_DUPLICATES[kind]:
                found.append(
                    f"{_share(duplicates[kind]):.1%} of the {kind} came before in the corpus: "
                    f"--drop-duplicates {kind} leaves them out"
                )
    return found
