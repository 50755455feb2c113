"""A small classifier. plain_torch.py and with_samestep.py are made to be diffed."""

import hashlib

import torch
from torch import nn

MICRO_BATCHES = 8  # a step


def micro_batch(step, index):
    """64 points in the plane and the ring that each lies in. A function of its place in the run."""
    generator = torch.Generator().manual_seed(step * MICRO_BATCHES + index)
    points = torch.randn(64, 2, generator=generator)
    return points, points.norm(dim=1).mul(1.5).long().clamp(max=3)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    for step in range(100):
        optimizer.zero_grad()
        for index in range(MICRO_BATCHES):
            points, rings = micro_batch(step, index)
            loss = nn.functional.cross_entropy(model(points), rings, reduction="sum") / (64 * MICRO_BATCHES)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    print(f"sha256:{hashlib.sha256(weights).hexdigest()}")


if __name__ == "__main__":
    main()
