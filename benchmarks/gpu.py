"""The engine on one GPU: `python -m benchmarks.gpu --out benchmarks/gpu.json`.

VGG-16 with random weights, which cost what trained ones cost. Prints a table per section and writes everything to JSON:
the card's own ceilings, each of the generator's convolutions in its forms (`gpu_convolutions.py`), VGG-16 alone, the
whole update, and a sample of the full target set scaled up. Times are medians; rates count the operations of
`dgn.cost.counted`, a multiply-add as two. Without a GPU it runs at sizes that only show that it runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.engine import frozen, same_start
from benchmarks.gpu_convolutions import measure_convs
from benchmarks.timing import DEVICE, HAS_GPU, median_s
from dgn.cost.counted import count_cost
from dgn.engine import engine_for
from dgn.method.architecture import Architecture, Conv, Weights
from dgn.method.batch import recipe_for, start_batch
from dgn.method.decoder import random_decoder
from dgn.method.engine import BETAS, EPS, Engine
from dgn.method.generator import NORM_EPS, conv_after_upsample, conv_same, generate_shared
from dgn.method.loop import render_batch, update
from dgn.method.precision import DTYPES, exact_float32
from dgn.method.recipes import RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.specs import parse_targets
from dgn.pictures.codec import encode_png, quantised
from dgn.pictures.scoring import read_pictures, score
from dgn.targets import Target, WeightedUnit

BATCHES = (1, 8, 32, 64) if HAS_GPU else (2,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--network", default="vgg16" if HAS_GPU else "vgg16-mini")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"device": described(), "network": args.network, "weights": "random"}
    print(" · ".join(f"{name} {value}" for name, value in report["device"].items()))
    for section in args.sections:
        start = time.perf_counter()
        report[section] = SECTIONS[section](args.network, report)
        print(f"({section}: {time.perf_counter() - start:.0f} s)\n", flush=True)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")


def described() -> dict[str, Any]:
    name = torch.cuda.get_device_name() if HAS_GPU else "no GPU"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if HAS_GPU:
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return {"card": name, **versions}


def measure_peaks(network: str, report: dict[str, Any]) -> dict[str, float]:
    """What the card gives a stock matrix product and a stock copy, on random numbers."""
    n = 8192 if HAS_GPU else 256
    peaks: dict[str, float] = {}
    for name, dtype, allow_tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
    ):
        a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        peaks[f"{name}_tflops"] = 2 * n**3 / median_s(lambda: a @ b) / 1e12  # noqa: B023
    torch.backends.cuda.matmul.allow_tf32 = False
    a = torch.randn(n * n * 16, device=DEVICE)
    b = torch.empty_like(a)
    peaks["copy_gb_s"] = 2 * a.nbytes / median_s(lambda: b.copy_(a)) / 1e9
    print(f"{n}^3 products and a copy:", {name: round(value, 1) for name, value in peaks.items()})
    return peaks


class LoopEngine(Engine):
    """Stock PyTorch: one target after another through the generator. Only weights are laid out as for the engine."""

    def lay_out(self, stacked: Tensor) -> Tensor:
        return engine_for(DEVICE).lay_out(stacked)

    def adamax(self, variables: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adamax(variables, lr=learning_rate, betas=BETAS, eps=EPS, capturable=HAS_GPU)


class GroupedEngine(LoopEngine):
    """Stock PyTorch: the generator as `torch.vmap` makes it of one target's, with grouped convolutions."""

    def draw(self, architecture: Architecture, own: Weights, shared: Weights, features_NK: Tensor) -> Tensor:
        def one(weights: Weights, features_K: Tensor) -> Tensor:
            return generate_shared(architecture, {**shared, **weights}, features_K[None], mapped_statistics, mapped)[0]

        drawn: Tensor = torch.vmap(one)(dict(own), features_NK)
        return drawn


def mapped(x: Tensor, weights: Weights, i: int, conv: Conv) -> Tensor:
    """`generator.convolve` without the memory order of its kernels, which `torch.vmap` does not know."""
    convolve = conv_after_upsample if conv.is_after_upsample else conv_same
    y = convolve(x, weights[f"conv{i}.weight"].to(x.dtype), weights[f"conv{i}.bias"].to(x.dtype))
    return F.relu(y) if conv.has_relu else y


def mapped_statistics(x: Tensor, weights: Weights, i: int) -> Tensor:
    """`generator.own_statistics` without batch norm's own kernels, which refuse `torch.vmap`."""
    var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0, keepdim=True)
    gamma, beta = (weights[f"norm{i}.{name}"][:, None, None] for name in ("gamma", "beta"))
    return ((x.float() - mean) * (var + NORM_EPS).rsqrt() * gamma + beta).to(x.dtype)


class StockNetwork(FrozenNetwork):
    """As torchvision and PyTorch run it: no norm folded."""

    @lru_cache  # noqa: B019
    def cut_behind(self, layers: tuple[str, ...]) -> torch.nn.Module:
        with mock.patch("dgn.networks.frozen.fold_norms", lambda network: network):
            return super().cut_behind(layers)


STOCK_ENGINES = {"loop": LoopEngine, "grouped": GroupedEngine}


@lru_cache(maxsize=2)
def classifier(network: str, precision: str, is_stock: bool = False) -> FrozenNetwork:
    if is_stock:
        return StockNetwork(frozen(network), Engine(DEVICE), DTYPES[precision])
    return FrozenNetwork(frozen(network), engine_for(DEVICE), DTYPES[precision])


def measure_classifier(network: str, report: dict[str, Any]) -> dict[str, Any]:
    """The classifier alone on the views of 32 targets, to the pictures' gradient; its convolutions one by one."""
    views = 128 if HAS_GPU else 2
    fused, stock = classifier(network, "bfloat16"), classifier(network, "bfloat16", is_stock=True)
    layer = fused.layers.class_layer
    images = torch.rand(views, 3, 224, 224, device=DEVICE, requires_grad=True)
    config = RenderConfig.from_preset("standard", "bfloat16")
    ops = views * count_cost(config, "untrained", network_named(network)).classifier_ops_per_view
    result: dict[str, Any] = {"views": views}

    def there_and_back(network: FrozenNetwork) -> Tensor:
        return torch.autograd.grad(network.responses(images, [layer])[layer].float().sum(), images)[0]

    result["is_bit_for_bit"] = torch.equal(there_and_back(stock), there_and_back(fused))
    result["stock_s"] = median_s(lambda: there_and_back(stock))
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        result["stock_cudnn_benchmark_s"] = median_s(lambda: there_and_back(stock))
    result["fused_s"] = median_s(lambda: there_and_back(fused))
    if HAS_GPU:
        compiled = StockNetwork(frozen(network), Engine(DEVICE), torch.bfloat16)
        start = time.perf_counter()
        program = torch.compile(compiled.cut_behind((layer,)))
        compiled.cut_behind = lambda layers: program  # type: ignore[method-assign, assignment]
        there_and_back(compiled)
        result["compiling_s"] = time.perf_counter() - start
        result["compiled_s"] = median_s(lambda: there_and_back(compiled))
    convs, px, x_channels = [], 224, 3
    for module in fused.model.features:  # type: ignore[union-attr, operator]
        if isinstance(module, torch.nn.MaxPool2d):
            px //= 2
        if not isinstance(module, torch.nn.Conv2d):
            continue
        x = torch.randn(views, x_channels, px, px, device=DEVICE, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        run = partial(F.conv2d, x, module.weight, None, padding=1)
        grad = torch.randn_like(run())
        forward_s = median_s(run)
        both_s = median_s(lambda: torch.autograd.grad(run(), x, grad))  # noqa: B023
        conv_ops = 2 * views * px * px * module.weight.numel()
        convs.append({"in": x_channels, "out": module.out_channels, "px": px, "forward_s": forward_s, "both_s": both_s})
        print(
            f"  {x_channels:3}->{module.out_channels:3} {px:3}px  forward {forward_s * 1e3:6.3f} ms "
            f"{conv_ops / forward_s / 1e12:4.0f} TFLOP/s, back {1e3 * (both_s - forward_s):6.3f} ms "
            f"{conv_ops / max(1e-9, both_s - forward_s) / 1e12:4.0f} TFLOP/s"
        )
        x_channels = module.out_channels
    result["convs"], result["convs_s"] = convs, sum(conv["both_s"] for conv in convs)
    for name in ("stock_s", "stock_cudnn_benchmark_s", "compiled_s", "fused_s", "convs_s"):
        if name in result:
            print(f"  {name[:-2]}: {result[name] * 1e3:.2f} ms, {ops / result[name] / 1e12:.0f} TFLOP/s")
    print(
        f"  fused as stock bit for bit: {result['is_bit_for_bit']}; compiling took {result.get('compiling_s', 0):.0f} s"
    )
    return result


def class_targets(network: FrozenNetwork, n: int) -> list[Target]:
    layer = network.layers.class_layer
    return [Target((WeightedUnit(layer, i % network.units[layer]),), "untrained", i) for i in range(n)]


def update_s(
    config: RenderConfig, network: FrozenNetwork, targets: list[Target], is_replayed: bool, is_slow: bool
) -> tuple[float, int]:
    """Seconds of one update and the most bytes allocated."""
    with same_start(), exact_float32():
        batch = start_batch(targets, config, network, None)
        once = partial(update, batch, batch.optimiser())

        def run_at_once(*drawn: Tensor) -> object:
            return once(*(tensor.to(DEVICE, non_blocking=True) for tensor in drawn))

        run = network.engine.repeated(once) if is_replayed else run_at_once
        if HAS_GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        repeats, warm_ups = (3, 1) if is_slow else (6, 3)
        elapsed = median_s(lambda: run(*batch.random()), repeats, warm_ups)
    return elapsed, torch.cuda.max_memory_allocated() if HAS_GPU else 0


def measure_updates(network: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole update of N targets in its forms.

    loop and grouped: stock but for the method; fast: the engine's update, launch by launch; replayed: the engine.
    """
    rows = []
    peak = report.get("peaks", {}).get("bfloat16_tflops", math.nan)
    forms = ("loop", "grouped", "fast", "replayed") if HAS_GPU else ("loop", "grouped")
    for precision in ("bfloat16", "float32"):
        for preset, n in itertools.product(("standard", "paper"), BATCHES):
            if precision == "float32" and n not in (1, 32):
                continue
            changes = {"half_share": 0.0} | ({} if HAS_GPU else {"width": 0.05, "num_views": 1})
            config = RenderConfig.from_preset(preset, precision, **changes)  # type: ignore[arg-type]
            counted = count_cost(config, "untrained", network_named(network))
            for form in forms if n in (1, 32) else forms[1:]:
                whole = classifier(network, precision, is_stock=form in STOCK_ENGINES)
                if form in STOCK_ENGINES:
                    whole.engine = STOCK_ENGINES[form](DEVICE)
                elapsed, most = update_s(config, whole, class_targets(whole, n), form == "replayed", form == "loop")
                rate = counted.ops_per_update * n / elapsed / 1e12
                rows.append(
                    {"precision": precision, "preset": preset, "targets": n, "form": form, "update_s": elapsed,
                     "tflops": rate, "bytes_per_target": most / n, "counted_bytes_per_target": counted.bytes_per_target}
                )  # fmt: skip
                print(
                    f"  {precision:8} {preset:8} N={n:2} {form:8} {elapsed * 1e3:8.2f} ms {rate:6.1f} TFLOP/s, "
                    f"{rate / peak:4.0%} of the product's; {most / n / 1e6:6.0f} MB a target, "
                    f"counted {counted.bytes_per_target / 1e6:6.0f}",
                    flush=True,
                )
    return rows


def measure_sample(network: str, report: dict[str, Any]) -> dict[str, Any]:
    """One batch of every layer and mode of the full target set with fewer updates, scaled to all of them."""
    batch_size, num_updates = (32, 24) if HAS_GPU else (1, 2)
    changes = {} if HAS_GPU else {"width": 0.05, "num_views": 1}
    full = RenderConfig.from_preset("standard", "bfloat16", **changes)  # type: ignore[arg-type]
    short = RenderConfig.from_preset("standard", "bfloat16", num_updates=num_updates, **changes)  # type: ignore[arg-type]
    whole, exact = classifier(network, "bfloat16"), classifier(network, "float32")
    decoder = random_decoder(full.pretrained)
    rows, engine_s, saving_s, count = [], 0.0, 0.0, 0
    for block in parse_targets(["all"], whole.layers, None):
        targets = [block.target(i) for i in range(min(batch_size, len(block)))]
        marks: list[float] = []

        def mark(update: int, loss_N: Tensor) -> None:
            if update >= 4 or not HAS_GPU:  # after compiling, recording and the first replay
                loss_N.sum().item()
                marks.append(time.perf_counter())  # noqa: B023

        start = time.perf_counter()
        with whole.engine.keep_memory():
            results = render_batch(targets, short, whole, decoder, on_update=mark)
        end = time.perf_counter()
        per_update_s = (marks[-1] - marks[0]) / (len(marks) - 1)
        around_s = end - start - num_updates * per_update_s
        pngs = [encode_png(quantised(result.picture_3HW.nan_to_num())) for result in results]
        for png, target in zip(pngs, targets, strict=True):
            score(read_pictures([png], exact.size_px), [target], exact)
        saved_s = (time.perf_counter() - end) / len(targets)
        batch_s = around_s + recipe_for(targets[0], full, whole).num_updates * per_update_s
        rows.append(
            {"mode": block.mode, "layer": block.layer, "pictures": len(block), "update_s": per_update_s,
             "around_s": around_s, "saving_s_per_picture": saved_s, "engine_s_per_picture": batch_s / len(targets)}
        )  # fmt: skip
        print(
            f"  {block.mode:10} {block.layer:8} {len(block):4}: update {per_update_s * 1e3:6.1f} ms, around it "
            f"{around_s:5.2f} s a batch, saving {saved_s * 1e3:5.1f} ms a picture",
            flush=True,
        )
        engine_s += batch_s / len(targets) * len(block)
        saving_s += saved_s * len(block)
        count += len(block)
    result = {
        "batch_size": batch_size, "sampled_updates": num_updates, "pictures": count, "rows": rows,
        "engine_hours": engine_s / 3600, "saving_hours": saving_s / 3600,
        "pictures_per_hour": count / (engine_s + saving_s) * 3600,
        "pictures_per_hour_engine_alone": count / engine_s * 3600,
    }  # fmt: skip
    print(f"scaled up to {count} pictures:", {k: round(v, 3) for k, v in result.items() if isinstance(v, float)})
    return result


SECTIONS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "peaks": measure_peaks,
    "convs": measure_convs,
    "discriminator": measure_classifier,
    "updates": measure_updates,
    "sample": measure_sample,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    main()
