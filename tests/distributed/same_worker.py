"""Says on one rank whether all ranks have the same bytes: once they have, once they have not."""

from __future__ import annotations

import sys

import torch

from stack.base.dist import process_group
from stack.train.ranks import same_on_all_ranks

if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(device=torch.device("cpu")) as here:
        own = same_on_all_ranks(f"plan of rank {here.rank}".encode())
        sys.stdout.write(f"{same_on_all_ranks(b'one plan')} {own}")
