"""`dgn doctor`: can this machine do it?"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from cluster.storage import open_store
from dgn import discriminator as discriminators
from dgn import tuning
from dgn.errors import ShardFailed, WeightsMissing


def doctor_command(url: str | None, network: str, weights: str | None) -> None:
    """Prints one line per check. Raises: DgnError for the first that a person must mend."""
    import torch

    print(", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "ray")))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            print(
                f"ok  device cuda:{index} {torch.cuda.get_device_name(index)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB"
            )
    else:
        has_bfloat16 = tuning.has_bfloat16(tuning.device_at_hand())
        print(f"ok  device cpu, {os.cpu_count()} cores, bfloat16 {'in' if has_bfloat16 else 'not in'} hardware; no GPU")
    model = tuning.device_model(tuning.device_at_hand())
    own = tuning.load(tuning.stored_at()).get(model)
    print(f"ok  tuning of {model}: {own or 'none, so defaults; dgn tune measures what is faster'}")
    try:
        frozen = discriminators.load_weights(network, Path(weights) if weights else None)
        print(f"ok  weights {frozen.source} for {network}, sha256 {frozen.sha256[:12]}")
        missing = False
    except WeightsMissing as error:
        print(f"--  weights: {error}")
        missing = True
    if url is not None:
        store = open_store(url)
        store.check(must_write=True)
        print(f"ok  store {store.url} can be written and keeps create-once")
    if missing:
        raise ShardFailed(f"{network} cannot be used here without --weights FILE")
