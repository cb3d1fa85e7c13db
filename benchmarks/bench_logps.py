"""Memory and time of the log-probs of given tokens: ours, two ways with all logits in memory, and Liger.

    .venv/bin/python -m benchmarks.bench_logps [--vocabularies 32768 262144] [--tokens 1024 8192] [--hidden 640]

Each measurement is a forward and a backward, in hidden states and output embedding, in a process of its own; memory is
the most that the process held above what it held before (on a GPU: what torch allocated). The variants take turns.

    ours            ops.logps.selected_logps, with the chunks that it chooses
    log_softmax     F.linear, float, log_softmax, gather
    cross_entropy   F.linear, float, F.cross_entropy
    liger           LigerFusedLinearCrossEntropy (--liger: python of an environment that has it), where it runs

All of them sum -log p over the tokens; sums and gradients must agree, or the exit code is 1. Where logits do not fit
into memory, theirs are measured at the numbers of tokens that fit, fitted with straight lines in the tokens, and
extrapolated, marked so and with how far the points are from the lines. --chunk-rows also measures ours by rows of a
chunk.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Place, pick_device, refusal, run_child, spread, write_result

FULL = ("log_softmax", "cross_entropy")
FITS_AT = (256, 512, 1024, 2048)
"""Tokens at which a variant that does not fit is measured; the largest that fit are used."""
FULL_BLOCKS = 4.5
"""float32 blocks of [T, V] that the variants with all logits hold at once, at most: for deciding what fits."""
AGREEMENT = 2e-3
"""Between the variants' sums and gradient norms, relative; bf16 makes most of it."""


@dataclass(frozen=True)
class Case:
    """One measurement."""

    variant: str
    vocabulary: int
    tokens: int
    hidden: int
    dtype: str
    device: str
    repeats: int
    chunk_rows: int | None = None


def main() -> int:
    options = parse_arguments()
    if options.child:
        print(json.dumps(measure(Case(**json.loads(options.child)))))
        return 0
    device = pick_device(options.device)
    bench = Bench(options, device)
    rows = [row for sizes in bench.sizes() for row in bench.compare(*sizes)]
    result = {
        "dtype": options.dtype,
        "threads": options.threads,
        "liger": bench.liger,
        "cases": rows,
        "ratios": ratios(rows),
        "chunks": bench.chunks(),
        "largest_disagreement": disagreement(rows),
    }
    write_result(f"logps_{options.name or f'{options.dtype}_{device}'}", result, options.out, device)
    for row in result["ratios"]:
        sizes = f"V={row['vocabulary']} T={row['tokens']} D={row['hidden']}"
        shares = f"{row['peak_gib']:.3f} of its memory, {row['seconds']:.3f} of its time"
        print(f"{sizes} ours against {row['against']}: {shares}{' (extrapolated)' if row['extrapolated'] else ''}")
    return int(result["largest_disagreement"] > AGREEMENT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 49152, 151936, 262144])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--hidden", type=int, nargs="+", default=[640], help="widths; 2048 is that of a 1B model")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="measurements in a process, after the one for memory")
    parser.add_argument("--chunk-rows", type=int, nargs="*", default=[], help="e.g. 64 128 256 512 1024")
    parser.add_argument("--memory-gib", type=float, help="that may be used; default: 0.8 of what is free")
    parser.add_argument("--liger", default=sys.executable, help="python of an environment with liger-kernel")
    parser.add_argument("--name", help="of the result: benchmarks/results/logps_<name>.json")
    parser.add_argument("--out", help="file of the result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


class Bench:
    """All measurements of a run."""

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        self.options = options
        self.place = Place(threads=options.threads, device=device)
        self.room = (options.memory_gib or 0.8 * free_gib(device)) * 2**30
        probe = self._run(self._case("liger", 1000, 64, 64))
        self.liger = probe if isinstance(probe, str) else "runs"

    def sizes(self) -> list[tuple[int, int, int]]:
        """(V, T, D) of all comparisons."""
        return [(v, t, d) for d in self.options.hidden for v in self.options.vocabularies for t in self.options.tokens]

    def compare(self, vocabulary: int, tokens: int, hidden: int) -> list[dict[str, Any]]:
        """A row per variant: measured, or extrapolated where it does not fit."""
        names = ["ours", *FULL, *(["liger"] if self.liger == "runs" else [])]
        small = [name for name in names if name not in FULL or self.fits(vocabulary, tokens, hidden)]
        rows = self.by_turns([self._case(name, vocabulary, tokens, hidden) for name in small])
        rows += [self.extrapolate(name, vocabulary, tokens, hidden) for name in names if name not in small]
        for row in rows:
            mark = " (extrapolated)" if row["extrapolated"] else ""
            print(
                f"V={vocabulary} T={tokens} D={hidden} {row['variant']:13s} {row['peak_gib']['median']:.3f} GiB, "
                f"{row['seconds']['median']:.3f} s{mark}",
                flush=True,
            )
        return rows

    def by_turns(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """The cases in turn, as often as asked, every other time in reverse."""
        found: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
        for turn in range(self.options.turns):
            for case in cases if turn % 2 == 0 else reversed(cases):
                one = self._run(case)
                if isinstance(one, str):
                    raise SystemExit(f"{case} failed: {one}")
                found[case].append(one)
        return [describe(case, turns) for case, turns in found.items()]

    def extrapolate(self, variant: str, vocabulary: int, tokens: int, hidden: int) -> dict[str, Any]:
        """Lines through what fits, at so many tokens."""
        fitting = [count for count in FITS_AT if self.fits(vocabulary, count, hidden)][-3:]
        if len(fitting) < 3:
            raise SystemExit(f"{variant} with V={vocabulary} fits at {fitting} of {FITS_AT} tokens; 3 are needed")
        rows = self.by_turns([self._case(variant, vocabulary, count, hidden) for count in fitting])
        row: dict[str, Any] = asdict(self._case(variant, vocabulary, tokens, hidden)) | {"extrapolated": True}
        for name in ("peak_gib", "seconds"):
            values = [one[name]["median"] for one in rows]
            value, residual = line(fitting, values, tokens)
            row[name] = {"median": value, "measured": dict(zip(map(str, fitting), values, strict=True))}
            row[name]["largest_residual"] = residual
        return row

    def fits(self, vocabulary: int, tokens: int, hidden: int) -> bool:
        """Whether all logits of a comparison go into memory, with gradients of everything."""
        return 4 * (FULL_BLOCKS * tokens * vocabulary + 3 * hidden * (vocabulary + tokens)) <= self.room

    def chunks(self) -> list[dict[str, Any]]:
        """Ours by chunk size, at the most tokens of every vocabulary."""
        most = max(self.options.tokens)
        rows = []
        for hidden in self.options.hidden:
            for vocabulary in self.options.vocabularies:
                base = asdict(self._case("ours", vocabulary, most, hidden))
                rows += self.by_turns([Case(**base | {"chunk_rows": size}) for size in self.options.chunk_rows])
        return rows

    def _case(self, variant: str, vocabulary: int, tokens: int, hidden: int) -> Case:
        return Case(variant, vocabulary, tokens, hidden, self.options.dtype, self.place.device, self.options.repeats)

    def _run(self, case: Case) -> dict[str, Any] | str:
        """A measurement in a process of its own, or what it said when it could not be made."""
        python = self.options.liger if case.variant == "liger" else sys.executable
        done = run_child([python, "-m", "benchmarks.bench_logps", "--child", json.dumps(asdict(case))], self.place)
        if done.code:
            return refusal(done)
        found: dict[str, Any] = json.loads(done.output.splitlines()[-1])
        return found


def describe(case: Case, turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of a case."""
    return asdict(case) | {
        "extrapolated": False,
        "peak_gib": spread(turn["peak_gib"] for turn in turns),
        "seconds": spread(second for turn in turns for second in turn["seconds"]),
        "check": turns[0]["check"],
        "turns": [{"peak_gib": turn["peak_gib"], "seconds": turn["seconds"]} for turn in turns],
    }


def line(x: Sequence[float], y: Sequence[float], at: float) -> tuple[float, float]:
    """The least-squares line at a place, and its largest distance from the points, relative to them."""
    import numpy

    slope, offset = numpy.polyfit(x, y, 1)
    residuals = [abs(slope * one + offset - other) / other for one, other in zip(x, y, strict=True)]
    return float(f"{slope * at + offset:.6g}"), float(f"{max(residuals):.3g}")


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours over every other variant at the same sizes."""
    ours = {(row["vocabulary"], row["tokens"], row["hidden"]): row for row in rows if row["variant"] == "ours"}
    found = []
    for row in rows:
        mine = ours[row["vocabulary"], row["tokens"], row["hidden"]]
        if row is not mine:
            names = ("vocabulary", "tokens", "hidden", "extrapolated")
            shares = {name: mine[name]["median"] / row[name]["median"] for name in ("peak_gib", "seconds")}
            found.append({"against": row["variant"], **{name: row[name] for name in names}, **shares})
    return found


def disagreement(rows: Sequence[dict[str, Any]]) -> float:
    """The largest relative difference of a measured variant's sum or gradient norm from ours."""
    measured = [row for row in rows if not row["extrapolated"]]
    ours = {(row["vocabulary"], row["tokens"], row["hidden"]): row for row in measured if row["variant"] == "ours"}
    differences = [
        abs(value - other) / abs(other)
        for row in measured
        for value, other in zip(
            row["check"], ours[row["vocabulary"], row["tokens"], row["hidden"]]["check"], strict=True
        )
    ]
    return max(differences)


# ---- in the child ----------------------------------------------------------------------------------------------------


def measure(case: Case) -> dict[str, Any]:
    """Peak memory of the first forward and backward, seconds of the others (of the first if there are none)."""
    import torch

    torch.manual_seed(0)
    device, dtype = torch.device(case.device), torch.bfloat16 if case.dtype == "bf16" else torch.float32
    negative_sum = variant(case)
    warm = tensors(case, min(64, case.tokens), device, dtype)
    negative_sum(*warm).backward()
    del warm
    hidden, weight, targets = tensors(case, case.tokens, device, dtype)
    seconds: list[float] = []
    for _ in range(1 + case.repeats):
        hidden.grad = weight.grad = None
        gc.collect()
        memory = Memory(case.device)
        started = time.perf_counter()
        loss = negative_sum(hidden, weight, targets)
        loss.backward()
        synchronize(case.device)
        seconds.append(time.perf_counter() - started)
        if len(seconds) == 1:
            peak = memory.peak_gib()
            check = [float(loss), float(hidden.grad.float().norm()), float(weight.grad.float().norm())]
    return {"peak_gib": round(peak, 5), "seconds": seconds[1:] or seconds, "check": check}


def tensors(case: Case, tokens: int, device: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """Hidden states [T, D], output embedding [V, D], both with gradient, and targets [T]."""
    import torch

    hidden = torch.randn(tokens, case.hidden, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(case.vocabulary, case.hidden, device=device, dtype=dtype).mul_(case.hidden**-0.5)
    return hidden, weight.requires_grad_(), torch.randint(case.vocabulary, (tokens,), device=device)


def variant(case: Case) -> Callable[..., Any]:
    """(hidden, weight, targets) -> -sum of the log-probs."""
    import torch
    import torch.nn.functional as F

    def log_softmax(hidden: Any, weight: Any, targets: Any) -> Any:
        logps = F.linear(hidden, weight).float().log_softmax(-1)
        return -logps.gather(-1, targets.unsqueeze(-1)).sum()

    def cross_entropy(hidden: Any, weight: Any, targets: Any) -> Any:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    def ours(hidden: Any, weight: Any, targets: Any) -> Any:
        from mrpo_ds.memory import total_bytes
        from mrpo_ds.ops.logps import chunk_rows, selected_logps

        rows = case.chunk_rows or chunk_rows(case.vocabulary, total_bytes(hidden.device))
        return -selected_logps(hidden, weight, targets, rows=rows).sum()

    def liger(hidden: Any, weight: Any, targets: Any) -> Any:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss: torch.Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets)
        return loss

    known: dict[str, Callable[..., Any]] = {
        "ours": ours,
        "log_softmax": log_softmax,
        "cross_entropy": cross_entropy,
        "liger": liger,
    }
    return known[case.variant]


class Memory:
    """The most memory since it was made, above what there was then."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
            self._before = _status("VmRSS")

    def peak_gib(self) -> float:
        if self._device == "cuda":
            import torch

            return (torch.cuda.max_memory_allocated() - self._before) / 2**30
        return (_status("VmHWM") - self._before) / 2**30


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def free_gib(device: str) -> float:
    """Memory of the host, or of the GPU, that is free now."""
    if device == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info()[0]
        return free / 2**30
    import psutil

    available: int = psutil.virtual_memory().available
    return available / 2**30


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


if __name__ == "__main__":
    sys.exit(main())
