"""What does the lag sweep cost, against the loops that it replaces, and what does its sampling lose?

    python benchmarks/truncation.py [ratios] [trained] [many] [stated] [growth [--output FILE]] [--threads 2] [--quick]

Every number is a ratio to a plain training step (torch's fused kernel, forward and backward, with a linear head),
interleaved in one run: the steps are timed again between the others. Times of several threads are seconds on the clock,
those of one thread are CPU seconds, which a busy machine disturbs less. Where the loops that the sweep replaces would
take too long they are timed for a few windows and projected; the projection is printed.

*Its products alone* are the matrix products that a sweep over every window cannot do without, on memory at hand:
for each lag one to move the losses back, and one to sum what they give to the weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.promises import tell  # noqa: E402
from benchmarks.trained_models import KERNELS, TASKS, Model, batch, training  # noqa: E402
from rnndiag.engine.adjoints import adjoints  # noqa: E402
from rnndiag.engine.layer_run import LayerRun  # noqa: E402
from rnndiag.engine.truncation.sweep.credit import credit_matrix  # noqa: E402
from rnndiag.engine.truncation.sweep.lag_sweep import lag_sweep  # noqa: E402
from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep  # noqa: E402
from rnndiag.stats.reach import reach, reach_error  # noqa: E402
from rnndiag.stats.window import smallest_window  # noqa: E402


def seconds(call: Callable[[], object]) -> float:
    """Seconds of one call: of the CPU for one thread, on the clock for more."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def interleaved(
    step: Callable[[], object], calls: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Of every round each call's time over the mean of the training steps right before and after it."""
    step()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before = min(seconds(step) for _ in range(2))
            taken = seconds(call)
            after = min(seconds(step) for _ in range(2))
            found[name].append(2 * taken / (before + after))
    return found


def stacked_window(model: Model, run: LayerRun, tau: int) -> None:
    """One window through the fused kernel: the last tau steps of every loss side by side on the batch axis."""
    T, B = run.T, run.B
    at = torch.arange(T)[None, :] - tau + 1 + torch.arange(tau)[:, None]
    x = run.inputs[at.clamp(min=0)].flatten(1, 2)
    before = torch.cat([run.initial[0].expand(min(tau, T), B, -1), run.states[0][: T - tau]])
    state = [part.flatten(0, 1)[None].contiguous() for part in (before, *_others(run, tau))]
    out, _ = model.rnn(x, tuple(state) if len(state) > 1 else state[0])
    (out[-1] * run.direct[0].flatten(0, 1)).sum().backward()


def _others(run: LayerRun, tau: int) -> list[Tensor]:
    return [
        torch.cat([first.expand(min(tau, run.T), run.B, -1), part[: run.T - tau]])
        for first, part in zip(run.initial[1:], run.states[1:], strict=True)
    ]


def looped_window(model: Model, run: LayerRun, tau: int, losses: range) -> None:
    """One window, one loss after the other, each from a detached state: the naive way, for some of the losses."""
    for u in losses:
        start = max(0, u - tau + 1)
        parts = run.initial if start == 0 else tuple(part[start - 1] for part in run.states)
        state = tuple(part[None].contiguous() for part in parts)
        out, _ = model.rnn(run.inputs[start : u + 1], state if len(state) > 1 else state[0])
        (out[-1] * run.direct[0][u]).sum().backward()


def products_alone(run: LayerRun) -> Callable[[], None]:
    """The matrix products of a sweep over every window, and nothing else."""
    weight = run.weights["weight_hh"]
    gates, right = weight.shape[0], weight.shape[1] + run.inputs.shape[-1] + 1
    left = torch.randn(run.T * run.B, gates)
    factor, total = torch.randn(run.T * run.B, right), torch.empty(right, gates)
    back = torch.empty(run.T * run.B, weight.shape[1])

    def multiply() -> None:
        for d in range(run.T):
            rows = (run.T - d) * run.B
            torch.mm(left[:rows], weight, out=back[:rows])
            torch.mm(factor[:rows].T, left[:rows], out=total)

    return multiply


FEW, MANY, LONG = 4, 12, 80
"""Windows that are timed of the loops that the sweep replaces: fused (few, many) and naive (few, long)."""


COLUMNS = (
    "cell",
    "credit only",
    "every window",
    "its products alone",
    "default",
    "in a recording",
    "fused, one by one",
    "over the sweep",
    "naive loops",
    "over the sweep",
)


def ratios(
    T: int = 200, B: int = 32, H: int = 128, kinds: tuple[str, ...] = tuple(KERNELS)
) -> None:
    """The sweep against a training step, and against the loops that it replaces, by one thread and by all."""
    most = torch.get_num_threads()
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        print(
            f"\n## All {T} windows at T={T}, B={B}, H={H} (float32, {counted(threads)}), in plain training steps\n"
        )
        print(f"| {' | '.join(COLUMNS)} |")
        print(f"|{'---|' * len(COLUMNS)}")
        for kind in kinds:
            print(ratio_line(kind, T, B, H, threads == most), flush=True)
    print(
        "\nIn a recording the sweep finds the adjoints made. Fused, one by one: windows "
        f"{FEW} and {MANY} timed, all {T} projected on a straight line in the window. "
        f"Naive loops: windows {FEW} and {LONG} timed for 4 of the {T} losses, projected likewise; a window longer "
        "than T/2 is counted as T/2 (the first losses reach no further back)."
    )


def counted(threads: int) -> str:
    """1 thread, 2 threads."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


PROMISED_AT = (200, 32, 128)
"""T, B and H that the promises speak of."""


def all_windows(few: float, many: float, T: int) -> float:
    """The time of all T windows one by one, on the straight line through two of them."""
    slope = (many - few) / (MANY - FEW)
    return sum(few + slope * (tau - FEW) for tau in range(1, T + 1))


def ratio_line(kind: str, T: int, B: int, H: int, promised: bool) -> str:
    """One cell's line; `promised`: the promises are held against it."""
    torch.manual_seed(0)
    model = Model(kind, 16, H)
    x, targets = batch(T, B, 16)
    run = model.layer_run(x, targets)
    losses = range(T // 2, T // 2 + 4)

    def step() -> None:
        model.training_step(x, targets)

    adj = adjoints(run)
    defaults = {"default": lambda: lag_sweep(run), "recorded": lambda: lag_sweep(run, adj=adj)}
    taken = interleaved(step, defaults, rounds=6)
    taken |= interleaved(
        step,
        {
            "credit": lambda: credit_matrix(run),
            "whole": lambda: lag_sweep(run, budget=None, chunks=()),
            "products": products_alone(run),
            "few": lambda: stacked_window(model, run, FEW),
            "many": lambda: stacked_window(model, run, MANY),
            "loop_few": lambda: looped_window(model, run, FEW, losses),
            "loop_long": lambda: looped_window(model, run, LONG, losses),
        },
        rounds=2,
    )
    found = {name: float(np.median(values)) for name, values in taken.items()}
    stacked = all_windows(found["few"], found["many"], T)
    rounds = zip(taken["few"], taken["many"], taken["whole"], strict=True)
    fused = [all_windows(few, many, T) / whole for few, many, whole in rounds]
    loop_slope = (found["loop_long"] - found["loop_few"]) / (LONG - FEW)
    naive = sum(
        T / len(losses) * max(0.0, found["loop_few"] + loop_slope * (min(tau, T / 2) - FEW))
        for tau in range(1, T + 1)
    )
    whole = found["whole"]
    told: dict[str, tuple[list[float], str]] = {
        "whole lag sweep": (taken["whole"], "plain steps"),
        "default lag sweep": (taken["default"], "plain steps"),
        "default lag sweep in a recording": (taken["recorded"], "plain steps"),
        "matrix products of the whole lag sweep": (taken["products"], "plain steps"),
        "sweep over fused windows one by one": (fused, "x faster"),
        "sweep over naive loops": ([naive / whole], "x faster"),
    }
    by = "" if promised else f", {counted(torch.get_num_threads())}"
    for what, (values, unit) in told.items():
        tell(f"{what}, {kind}{by}", values, unit=unit, whole=(T, B, H) == PROMISED_AT)
    return (
        f"| {kind} | {found['credit']:.1f} | {whole:.1f} | {found['products']:.1f} | {found['default']:.1f} | "
        f"{found['recorded']:.1f} | {stacked:.0f} | {stacked / whole:.0f}x | {naive:.0f} | {naive / whole:.0f}x |"
    )


def reach_and_window(sweep: LagSweep) -> tuple[float, float]:
    """The two numbers that people read."""
    log = sweep.profile.log.numpy()
    windows = np.array([0, *sweep.sampling.windows])
    bias = sweep.window_bias.numpy()[windows]
    steps = len(sweep.log_credit)
    return reach(log, steps=steps).value, smallest_window(bias, 0.1, windows, steps).steps


def trained(steps: int = 250) -> None:
    """Reach and recommended window of trained models: everything looked at, and the default sampling."""
    print(
        "\n## Three trained models, T=200, B=32, H=128: the whole sweep against the default sampling\n"
    )
    columns = (
        "model",
        "loss",
        "reach",
        "default",
        "window",
        "default",
        "cost",
        "default",
        "in a recording",
    )
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    errors: dict[str, list[float]] = {"reach": [], "window": []}
    for name in TASKS:
        print("\n".join(trained_lines(name, steps, errors)), flush=True)
    for what, values in errors.items():
        tell(f"{what} by default sampling, error", values)


def many(looks: tuple[int, ...] = (60, 250), seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    """Reach and recommended window of more models, as the whole sweep and the default one have them."""
    print("\n## More trained models, T=200, B=32, H=128\n")
    print("| model | seed | steps | reach | by default | window | by default | off by |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (_, make) in TASKS.items():
        for seed in seeds:
            for steps, model in training(name, seed, looks):
                run = model.layer_run(*make(1))
                whole = reach_and_window(lag_sweep(run, budget=None, chunks=()))
                default = reach_and_window(lag_sweep(run))
                print(
                    f"| {name} | {seed} | {steps} | {whole[0]:.1f} | {default[0]:.1f} | {whole[1]:.0f} | "
                    f"{default[1]:.0f} | {abs(default[1] / whole[1] - 1):.0%} |",
                    flush=True,
                )


def stated(draws: int = 40, seeds: tuple[int, ...] = (1, 2)) -> None:
    """What the reach of the default sampling is off by over draws, and what it says that it is off by."""
    print(f"\n## The stated error of the reach, over {draws} draws\n")
    print("| model | seed | reach | off by (rms) | stated (rms) | within two stated errors |")
    print("|---|---|---|---|---|---|")
    for name, (_, make) in TASKS.items():
        for seed in seeds:
            ((_, model),) = training(name, seed, (250,))
            run = model.layer_run(*make(1))
            whole = reach_and_window(lag_sweep(run, budget=None, chunks=()))[0]
            off, errors = np.empty(draws), np.empty(draws)
            for k in range(draws):
                found = lag_sweep(run, generator=torch.Generator().manual_seed(k)).profile
                off[k] = reach(found.log.numpy(), steps=run.T).value - whole
                errors[k] = reach_error(found.log, found.without_one, found.unsampled)
            rms = (np.sqrt(np.mean(values**2)) for values in (off, errors))
            inside = np.mean(np.abs(off) <= 2 * errors)
            print(
                f"| {name} | {seed} | {whole:.1f} | {' | '.join(f'{value:.2g}' for value in rms)} | {inside:.0%} |",
                flush=True,
            )


def trained_lines(
    name: str, steps: int, errors: dict[str, list[float]], seeds: int = 3
) -> tuple[str, str]:
    """One model's line, and what its default sweep sampled; the sampling's errors are added to `errors`."""
    ((_, model),) = training(name, 1, (steps,))
    data = TASKS[name][1](1)
    loss = float(model.loss(model.rnn(data[0])[0], data[1]).detach())
    run = model.layer_run(*data)
    whole = reach_and_window(lag_sweep(run, budget=None, chunks=()))
    adj = adjoints(run)
    sweeps = [lag_sweep(run, generator=torch.Generator().manual_seed(s)) for s in range(seeds)]
    drawn = [reach_and_window(sweep) for sweep in sweeps]
    cost = interleaved(
        lambda: model.training_step(*data),
        {
            "whole": lambda: lag_sweep(run, budget=None, chunks=()),
            "default": lambda: lag_sweep(run),
            "recorded": lambda: lag_sweep(run, adj=adj),
        },
        rounds=3,
    )
    for what, at in (("reach", 0), ("window", 1)):
        errors[what] += [abs(one[at] / whole[at] - 1) for one in drawn]
    reaches = ", ".join(f"{r:.1f}" for r, _ in drawn)
    windows = ", ".join(f"{w:.0f}" for _, w in drawn)
    costs = (f"{np.median(values):.1f}" for values in cost.values())
    tell(f"default lag sweep in a recording, trained {TASKS[name][0]}", cost["recorded"])
    line = (
        f"| {name} | {loss:.2f} | {whole[0]:.1f} | {reaches} | {whole[1]:.0f} | {windows} | "
        f"{' | '.join(costs)} |"
    )
    return line, f"<!-- {name}: {sweeps[-1].sampling.sentence} -->"


GROWTH = {
    # T, B, H, D
    "T": [(50, 4, 64, 50), (200, 4, 64, 200), (800, 4, 64, 800), (2000, 4, 64, 2000)],
    "D": [(200, 16, 64, 25), (200, 16, 64, 50), (200, 16, 64, 100), (200, 16, 64, 200)],
    "B": [(200, 4, 64, 200), (200, 16, 64, 200), (200, 64, 64, 200)],
    "H": [(50, 8, 32, 50), (50, 8, 128, 50), (50, 8, 512, 50), (50, 8, 1024, 50)],
}
"""Shapes by what grows in them; where T grows, D = T grows along."""


def measure(T: int, B: int, H: int, D: int) -> None:
    """One line of the growth table, in a process of its own so that its peak memory is its own."""
    torch.manual_seed(0)
    model = Model("lstm", 16, H)
    x, targets = batch(T, B, 16)
    model.training_step(x, targets)
    step = min(seconds(lambda: model.training_step(x, targets)) for _ in range(2))
    run = model.layer_run(x, targets)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sampled = seconds(lambda: lag_sweep(run, D))
    peak_sampled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = seconds(lambda: lag_sweep(run, D, budget=None, chunks=()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = {"step": step, "whole": whole, "default": sampled}
    line |= {"memory": (peak - base) / 1024, "memory_default": (peak_sampled - base) / 1024}
    print(json.dumps(line))


def growth(output: Path | None = None) -> None:
    """How the cost grows with T, B, H and D, with the exponent of the last two sizes; a Markdown page if asked."""
    lines = [
        "## Growth of the lag sweep (LSTM, float32, CPU seconds of one thread, memory beyond the training step's)",
        "",
        "| grows | T | B | H | D | training step | every window | in steps | memory | default | in steps | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n" + "\n".join(lines), flush=True)
    exponents = []
    for axis, shapes in GROWTH.items():
        found = []
        for shape in shapes:
            command = [sys.executable, __file__, "--measure", *map(str, shape)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            lines.append(growth_line(axis, shape, found[-1]))
            print(lines[-1], flush=True)
        at = "TBHD".index(axis)
        size = np.log([shape[at] for shape in shapes[-2:]])
        steps = (
            (what, float(np.diff(np.log([one[what] for one in found[-2:]]))[0] / np.diff(size)[0]))
            for what in ("step", "whole", "default")
        )
        exponents.append(f"{axis}: " + ", ".join(f"{what} {power:.1f}" for what, power in steps))
    lines += ["", "Exponents between the last two sizes: " + "; ".join(exponents) + "."]
    print("\n" + lines[-1])
    if output is not None:
        output.write_text("\n".join(lines) + "\n")


def growth_line(axis: str, shape: tuple[int, ...], found: dict[str, float]) -> str:
    """One shape's line."""
    step, whole, default = (found[what] for what in ("step", "whole", "default"))
    return (
        f"| {axis} | {' | '.join(map(str, shape))} | {step * 1e3:.1f} ms | {whole:.2f} s | {whole / step:.0f} | "
        f"{found['memory']:.0f} MB | {default:.2f} s | {default / step:.1f} | {found['memory_default']:.0f} MB |"
    )


PARTS: dict[str, Callable[[], None]] = {
    "ratios": ratios,
    "trained": trained,
    "many": many,
    "stated": stated,
}
USUAL = ("ratios", "trained")


def main() -> None:
    """Run the parts asked for, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", help=f"{', '.join(PARTS)}, growth (default: the first two)"
    )
    parser.add_argument("--output", type=Path, help="a Markdown file that growth writes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="ratios of an LSTM alone, T=60, H=64")
    parser.add_argument("--measure", nargs=4, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        torch.set_num_threads(1)
        measure(*asked.measure)
        return
    torch.set_num_threads(asked.threads)
    if asked.quick:
        ratios(60, 16, 64, ("lstm",))
        return
    for part in asked.parts or USUAL:
        if part == "growth":
            growth(asked.output)
        else:
            PARTS[part]()


if __name__ == "__main__":
    main()
