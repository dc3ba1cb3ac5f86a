"""Is the verdict of memory_need right where the truth is known, and is its promise kept?

    python -m benchmarks.need [--only TABLE ..] [--seeds 3] [--first-seed 0] [--null-seeds 12] [--quick]

Tables: truth (gains where the need is known), ar (against the closed form), leads (the leading verdict of cases with
known truth, RNN, LSTM and GRU: those that the rules were tried on, and others), use (used memory), nulls (how often a
need is claimed where there is none), power (over the number of sequences), control (planted needs), fitters (boosting
rounds, and Adam), promise (the promised gain against what training with the longer window brought), bytes (the same
on the source text of Python's library), programs (a forecast of a seasonal series and a model of text, before and
after), cost (of a default call). The whole form of the false alarms is --null-seeds 120, half an hour on an idle core.
Power and bytes are smaller than the tables that the rules were made from (3 draws of 4 sizes; 500 steps of training):
minutes each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.need_cases import (
    DEVELOPED,
    KINDS,
    UNSEEN,
    Case,
    Net,
    autoregressive,
    copy,
    cue,
    delayed,
    held_out,
    loss_fn,
    measured,
    noise,
    sine_of_now,
    train,
    trained,
)
from benchmarks.need_programs import cost, programs
from benchmarks.need_tables import bytes_of_python, control, fitters, pooled_screen, power, truth

AR = ((8, 0.4, 3), (8, 0.4, 1), (8, 0.2, 3), (8, 0.1, 3), (12, 0.3, 4), (4, 0.4, 1), (8, 0.0, 3))
"""Order, weight, window."""


def ar(quick: bool) -> None:
    """Promised gain (the present and all lags) against the gain of the true predictor on the same sequences."""
    print("| p, b, window | L | true gain | promised | found | split gap | lead |")
    print("|---|---|---|---|---|---|---|")
    for order, weight, window in AR[:1] if quick else AR:
        draw = autoregressive({order: weight})
        case = Case("", draw, 1, 1, 600, window, window, batches=24)
        need = measured(case, "gru", 0)
        true = need.loss - best_loss(case, order, weight)
        promised = need.present.gain + need.within.gain + need.further.gain
        found = f"{promised / true:.0%}" if weight else "-"
        print(
            f"| {order} {weight} {window} | {need.loss:.3f} | {true:.4f} | {promised:.4f} | {found} "
            f"| {need.gap:.2%} | {need.lead} |",
            flush=True,
        )


def best_loss(case: Case, order: int, weight: float) -> float:
    """The loss of the best prediction, on the sequences that memory_need tested (the last 10 of 24 batches)."""
    found = []
    for batch in held_out(case, 0)[14:]:
        best = torch.zeros_like(batch["y"])
        best[:, order - 1 :] = weight * batch["x"][:, : best.shape[1] - order + 1, 0]
        found.append(float((batch["y"] - best).square().mean()))
    return sum(found) / len(found)


def leads(seeds: range, quick: bool) -> None:
    """The leading verdict of every case, kind of net and seed."""
    for title, cases in (("not tried on", UNSEEN), ("tried on", DEVELOPED)):
        right = total = 0
        print(f"\nCases that the rules were {title}:\n")
        print(
            "| case | net | seed | lead | right | gain beyond | split gap | plain steps | CPU s |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for case in cases[4::4] if quick else cases:
            for kind in ("gru",) if quick else KINDS:
                for seed in seeds:
                    start = time.process_time()
                    need = measured(case, kind, 500 + seed)
                    seconds = time.process_time() - start
                    good = need.lead in case.right
                    right, total = right + good, total + 1
                    print(
                        f"| {case.name} | {kind} | {seed} | {need.lead} | {'yes' if good else 'NO'} "
                        f"| {need.further.gain:.3g} | {need.gap:.2%} | {need.plain_steps:.0f} | {seconds:.1f} |",
                        flush=True,
                    )
        print(f"\n{right} of {total} leading verdicts are right.", flush=True)


def use(quick: bool) -> None:
    """How many inputs nets that were trained on a known lag draw on."""
    cases = (
        (Case("copy 4", copy(4), 2, 2, 900, None, 8), 5),
        (Case("copy 6", copy(6), 2, 2, 1200, None, 8), 7),
        (Case("AR(8) .4, whole", autoregressive({8: 0.4}), 1, 1, 1200, None, 8, batches=8), 8),
        (Case("noise", noise(2), 2, 2, 40, None, 4), None),
    )
    print("| task | truth | used memory | burn-in | lead |\n|---|---|---|---|---|")
    for case, right in cases[:1] if quick else cases:
        need = measured(case, "gru", 0)
        print(
            f"| {case.name} | {right} inputs | {need.used_memory} | {need.burn_in} | {need.lead} |",
            flush=True,
        )


def nulls(seeds: range, quick: bool) -> None:
    """How often past inputs are claimed to help where they do not: of all lags, one claim a net."""

    def null(name: str, draw: object, steps: int, outputs: int, **how: object) -> Case:
        return replace(
            Case(name, noise(2), 2, outputs, steps, None, 1, batches=8), draw=draw, **how
        )  # type: ignore[arg-type]

    cases = [
        null("noise, cross-entropy, trained 40 steps", noise(2), 40, 2),
        null("noise, cross-entropy, untrained", noise(2), 1, 2),
        null("noise, cross-entropy, AR(1) inputs", noise(2, 0.9), 40, 2),
        null("noise, many-to-one", cue(12, shuffled=True), 40, 3, last=True, inputs=3, batches=16),
        null("noise, squared error, heavy tails", noise(None, heavy=True), 40, 1),
        null("noise, cross-entropy, 4 batches of 16", noise(2, batch=16), 40, 2, batches=4),
        null("sine of the present input, AR(1) inputs, early", sine_of_now(0.9), 60, 1, inputs=1),
        null("sine of the present input, AR(1) inputs, later", sine_of_now(0.9), 300, 1, inputs=1),
    ]
    print(
        f"| null (seeds {seeds[0]} to {seeds[-1]}) | screen | screen above 2 % | gain > 0 | gain > control | both "
        "| both and 1 % of R | needed_beyond leads |\n|---|---|---|---|---|---|---|---|"
    )
    for case in cases[:2] if quick else cases:
        counts = torch.zeros(7)
        for seed in seeds:
            model = trained(case, "gru", seed)
            screen = pooled_screen(model, held_out(case, seed))
            need = measured(case, "gru", seed, model)
            all_lags = need.further
            counts += torch.tensor(
                [
                    screen is not None and bool((screen.p <= 0.05).any()),
                    screen is not None and screen.peak is not None,
                    all_lags.p <= 0.05,
                    all_lags.p_over_control <= 0.05,
                    all_lags.significant,
                    all_lags.passes(need.gate),
                    need.lead == "needed_beyond",
                ]
            )
        cells = " | ".join(f"{float(share):.3f}" for share in counts / len(seeds))
        print(f"| {case.name} | {cells} |", flush=True)


PROMISED = (
    Case("copy 6", copy(6), 2, 2, 300, 3, 3),
    Case("xor 0 and 6", copy(6, product=True), 2, 2, 300, 3, 3),
    Case("x at lag 8, squared error", delayed(8), 1, 1, 300, 3, 3),
    Case("AR(8) .4", autoregressive({8: 0.4}), 1, 1, 300, 3, 3),
    Case("AR(1) .4", autoregressive({1: 0.4}), 1, 1, 300, 3, 3),
)
MORE_STEPS = 400


def promise(quick: bool) -> None:
    """The gain promised beyond the window against what going on with a longer one brought, over the same window."""
    print(
        f"| task, window 3 | L | promised beyond | {MORE_STEPS} more steps, whole sequence | same window | realised "
        "|\n|---|---|---|---|---|---|"
    )
    for case in PROMISED[4:] if quick else PROMISED:
        before = trained(case, "gru", 0)
        need = measured(case, "gru", 0, before)
        losses = []
        for window in (None, case.window):
            model = Net("gru", case.inputs, case.outputs)
            model.load_state_dict(before.state_dict())
            train(model, case.draw, 100 if quick else MORE_STEPS, window, 1)
            losses.append(mean_loss(model, replace(case, batches=24)))
        long, same = losses
        print(
            f"| {case.name} | {need.loss:.4f} | {need.further.gain:.4f} ({need.lead}) | {long:.4f} | {same:.4f} "
            f"| {same - long:.4f} |",
            flush=True,
        )


def mean_loss(model: nn.Module, case: Case) -> float:
    """The loss on batches of a case that nothing was fitted to."""
    with torch.no_grad():
        found = [float(loss_fn(model, batch)) for batch in held_out(case, 77)]
    return sum(found) / len(found)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="of `leads` and `nulls`")
    parser.add_argument("--null-seeds", type=int, default=12)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figures", type=Path, help="where `programs` draws its figures")
    args = parser.parse_args()
    quick = args.quick

    def seeds(count: int) -> range:
        return range(args.first_seed, args.first_seed + count)

    tables: dict[str, Callable[[], None]] = {
        "truth": lambda: truth(quick),
        "ar": lambda: ar(quick),
        "leads": lambda: leads(seeds(1 if quick else args.seeds), quick),
        "use": lambda: use(quick),
        "nulls": lambda: nulls(seeds(2 if quick else args.null_seeds), quick),
        "power": lambda: power(quick),
        "control": lambda: control(quick),
        "fitters": lambda: fitters(quick),
        "promise": lambda: promise(quick),
        "bytes": lambda: bytes_of_python(quick),
        "cost": lambda: cost(quick),
        "programs": lambda: programs(quick, args.figures),
    }
    unknown = set(args.only or ()) - set(tables)
    if unknown:
        parser.error(f"no table is called {', '.join(sorted(unknown))}: {', '.join(tables)}")
    for name in args.only or tables:
        print(f"\n## {name}\n", flush=True)
        tables[name]()


if __name__ == "__main__":
    main()
