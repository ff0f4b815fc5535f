"""What was measured of each case, for the terminal and for a page."""

import sys

from benchmarks.train_step.compare import Record


def report(name: str, case: Record) -> None:
    """Prints a case as a table."""
    if "failed" in case:
        print(f"\n{name} failed: {case['failed']}", flush=True)
        return
    print(
        f"\n{name}: {case['batch_size']} x {case['length']}, {case['compute_dtype']}, attention by "
        f"{case['attention']}, fill {case['fill']:.1%}, "
        f"{case['flops_per_step'] / 1e12:.3g} TFLOP a step; a large product runs at "
        f"{case['measured_peak_flops'] / 1e12:.3g} TFLOP/s{_of_torch(case)}"
    )
    print(f"{'':10}{'ms a step':>10}{'seq/s':>9}{'tokens/s':>11}{'TFLOP/s':>9}{'MFU':>7}{'of product':>12}"
          f"{'first loss':>12}{'memory GB':>11}{'  flaxbert is faster by'}")  # fmt: skip
    for contender, found in case["contenders"].items():
        if "failed" in found:
            print(f"{contender:10} failed: {found['failed'].splitlines()[0]}")
            continue
        mfu = "" if found["mfu"] is None else f"{found['mfu']:.1%}"
        memory = "" if found["peak_memory_bytes"] is None else f"{found['peak_memory_bytes'] / 1e9:.1f}"
        faster = found["flaxbert_is_faster_by"]
        print(f"{contender:10}{found['step_milliseconds']:>10,.1f}{found['sequences_per_second']:>9,.1f}"
              f"{found['tokens_per_second']:>11,.0f}{found['teraflops']:>9.3g}{mfu:>7}"
              f"{found['share_of_measured_peak']:>12.1%}{found['first_loss']:>12.6f}{memory:>11}"
              f"  {faster['medians']:.2f} ({faster['least']:.2f} to {faster['most']:.2f})")  # fmt: skip
    sys.stdout.flush()


def markdown(results: Record) -> str:
    """All cases as one table, under the command and the machine. A share of a peak is not told where none is known."""
    machine, versions = results["machine"], results["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"# A step of training on {machine['device']}", "",
        f"`{results['command']}`; {machine['processor']}, {machine['cores']} cores, {machine['system']}; {packages}. "
        "Medians of rounds in turn; FLOPs are those that a step needs, padding included: of the last layer "
        "what the heads read, whatever a contender computes. A number of times is how much faster flaxbert is, with "
        "the least and the most of the rounds.", "",
        "| case | contender | ms a step | sequences/s | tokens/s, no padding | with padding | TFLOP/s | MFU | "
        "of a large product's rate | flaxbert is faster by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, case in results["cases"].items():
        if "failed" in case:
            lines.append(_failure(name, "flaxbert", case["failed"]))
            continue
        kind = f"{case['compute_dtype']}, {case['attention']}"
        title = f"{name}, {case['batch_size']} rows, {kind}, fill {case['fill']:.1%}"
        for contender, found in case["contenders"].items():
            if "failed" in found:
                lines.append(_failure(title, contender, found["failed"]))
                continue
            mfu = "" if found["mfu"] is None else f"{found['mfu']:.1%}"
            faster = found["flaxbert_is_faster_by"]
            lines.append(
                f"| {title} | {contender} | {found['step_milliseconds']:,.1f} | {found['sequences_per_second']:,.1f} | "
                f"{found['tokens_per_second']:,.0f} | {found['tokens_per_second_with_padding']:,.0f} | "
                f"{found['teraflops']:.3g} | {mfu} | {found['share_of_measured_peak']:.1%} | "
                f"{faster['medians']:.2f} ({faster['least']:.2f} to {faster['most']:.2f}) |"
            )
    if "left_out" in results:
        lines += ["", f"Left out, for the time was over: {', '.join(results['left_out'])}."]
    return "\n".join(lines) + "\n"


def _failure(title: str, contender: str, reason: str) -> str:
    told = (reason.splitlines() or [""])[0].replace("|", "\\|")
    return f"| {title} | {contender} | failed: {told} |" + " |" * 7


def _of_torch(case: Record) -> str:
    rate = case["torch_measured_peak_flops"]
    return "" if rate is None else f", torch's at {rate / 1e12:.3g}"
