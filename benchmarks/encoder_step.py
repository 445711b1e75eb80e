"""How fast ATM-S trains: the folded 75-tap convolution against the published two-step form.

    python benchmarks/encoder_step.py [--batch 128] [--rounds 5] [--threads 2]

One line per form: the median over rounds of forward + backward + optimiser step, trials per second, and the ratio to
the published form in fp32. The forms take turns, so that other load on the machine meets all of them alike; ratios are
taken round by round.
"""

import argparse
import statistics
import time

import torch

from eegrecon.losses.contrastive import info_nce
from eegrecon.models.encoders.atm_s import ATMS


def main() -> None:
    """Print one line per form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = ATMS(63, 250, 256)
    folded, plain = encoder.conv.forward, encoder.conv.plain
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-4)
    eeg, image = torch.randn(options.batch, 63, 250), torch.randn(options.batch, 256)
    subject, scale = torch.ones(options.batch, dtype=torch.long), torch.tensor(2.659)

    def step(convolution, dtype) -> float:
        encoder.conv.forward = convolution
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16-mixed"):
            loss = info_nce(encoder(eeg, subject), image, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    forms = {
        ("two-step", "32-true"): plain,
        ("folded", "32-true"): folded,
        ("two-step", "bf16-mixed"): plain,
        ("folded", "bf16-mixed"): folded,
    }
    seconds = {form: [] for form in forms}
    for turn in range(options.rounds + 1):
        for form, convolution in forms.items():
            spent = step(convolution, form[1])
            if turn:  # the first round warms up
                seconds[form].append(spent)
    base = seconds["two-step", "32-true"]
    print(f"ATM-S, batch {options.batch} of 63 x 250, {options.threads} threads, {options.rounds} rounds")
    for form, spent in seconds.items():
        ratio = statistics.median(b / s for b, s in zip(base, spent, strict=True))
        median = statistics.median(spent)
        print(f"{form[0]:9s} {form[1]:11s} {median:6.3f} s/step {options.batch / median:6.0f} trials/s  x{ratio:.2f}")


if __name__ == "__main__":
    main()
