"""The engine on one GPU: `python -m benchmarks.gpu --out benchmarks/gpu.json`.

VGG-16 with random weights, which cost what trained ones cost. Prints a table per section and writes everything to JSON:
the card's own ceilings, each convolution of G in its forms, VGG-16 alone, the whole update, and a sample of the full
target set scaled up. Times are medians; rates count the operations of `dgn.info.cost`, a multiply-add as two.
Without a GPU it runs at sizes that only show that it runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.engine import frozen, same_start
from dgn import generator, picture, render
from dgn.decoder import random_decoder
from dgn.discriminator import Discriminator
from dgn.generator import Architecture, Conv, conv_after_upsample, conv_same
from dgn.info import cost
from dgn.recipes import RenderConfig
from dgn.render import DTYPES
from dgn.replay import Replayed
from dgn.targets import Target, WeightedUnit, parse_targets

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
BATCHES = (1, 8, 32, 64) if HAS_GPU else (2,)
Form = Callable[[Tensor, Tensor, Tensor, Conv], Tensor]


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


def median_s(function: Callable[[], object], repeats: int = 7, warm_ups: int = 2) -> float:
    """Median time of one call, by the device's own clock."""
    for _ in range(warm_ups if HAS_GPU else 0):
        function()
    if not HAS_GPU:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda.synchronize()
    for first, last in marks:
        first.record()
        function()
        last.record()
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in marks) / 1e3


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


# Forms of a convolution whose N targets have weights of their own. x (N, C, H, W), w (N, O, C, k, k), b (N, O).


def grouped(x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> Tensor:
    one = conv_after_upsample if conv.is_after_upsample else conv_same
    return torch.vmap(lambda x, w, b: one(x[None], w, b)[0])(x, w, b)


def looped(x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> Tensor:
    one = conv_after_upsample if conv.is_after_upsample else conv_same
    return torch.cat([one(x[n : n + 1], w[n], b[n]) for n in range(len(x))])


def by_products(
    valid: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, w: Tensor, b: Tensor, conv: Conv
) -> Tensor:
    """Through `valid`, a 'valid' convolution of (N, H, W, C) by (N, k, k, C, O)."""
    from dgn import stacked

    x, w, k = x.permute(0, 2, 3, 1), w.permute(0, 3, 4, 2, 1), conv.kernel_px
    if not conv.is_after_upsample:
        before, after = (k - 1) // 2, k // 2
        return valid(F.pad(x, (0, 0, before, after, before, after)), w, b).permute(0, 3, 1, 2)
    wide, px = stacked._widened(w), 2 * x.shape[1] - k + 1
    y = x.new_empty(len(x), px, px, conv.out_channels)
    for p, q in itertools.product(range(2), repeat=2):
        taps, phase = wide[:, 1 - p :: 2, 1 - q :: 2], y[:, p::2, q::2]
        reach = [phase.shape[1] + taps.shape[1] - 1, phase.shape[2] + taps.shape[2] - 1]
        beyond = [max(0, need - x.shape[1]) for need in reach]
        source = F.pad(x, (0, 0, 0, beyond[1], 0, beyond[0]))[:, : reach[0], : reach[1]]
        y[:, p::2, q::2] = valid(source, taps, b)
    return y.permute(0, 3, 1, 2)


def unfolded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """im2col, then one batched product."""
    (n, h, _, c), (_, k, k_w, _, o) = x.shape, w.shape
    windows = x.unfold(1, k, 1).unfold(2, k_w, 1).permute(0, 1, 2, 4, 5, 3)  # (N, H', W', k, k, C)
    y = torch.baddbmm(b.to(x.dtype)[:, None], windows.reshape(n, -1, k * k_w * c), w.reshape(n, k * k_w * c, o))
    return y.reshape(n, h - k + 1, -1, o)


def summed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A batched product per tap. Rows keep the source's width, so that no window has to be copied."""
    (n, h, width, c), (_, k, k_w, _, o) = x.shape, w.shape
    out_h = h - k + 1
    rows = F.pad(x, (0, 0, 0, 0, 0, 1)).reshape(n, -1, c)
    y = b.to(x.dtype)[:, None].expand(n, out_h * width, o)
    for i, j in itertools.product(range(k), range(k_w)):
        y = torch.baddbmm(y, rows[:, i * width + j :][:, : out_h * width], w[:, i, j])
    return y.reshape(n, out_h, width, o)[:, :, : width - k_w + 1]


def by_triton(x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> Tensor:
    from dgn import stacked

    w = w.permute(0, 3, 4, 2, 1)
    w = (stacked._widened(w) if conv.is_after_upsample else w).contiguous()
    y = stacked.Convolution.apply(x.permute(2, 3, 0, 1).contiguous(), w, b, conv.is_after_upsample, False)
    return y.permute(2, 3, 0, 1)


FORMS: dict[str, tuple[Form, str]] = {  # and the memory order of the maps that it gets
    "grouped, channels last": (grouped, "hwnc"),
    "grouped, contiguous": (grouped, "nchw"),
    "loop": (looped, "nhwc"),
    "im2col + product": (partial(by_products, unfolded), "nhwc"),
    "sum over taps": (partial(by_products, summed), "nhwc"),
    "Triton": (by_triton, "hwnc"),
}


def laid_out(x: Tensor, order: str) -> Tensor:
    axes = ["nchw".index(axis) for axis in order]
    back = [order.index(axis) for axis in "nchw"]
    return x.permute(axes).contiguous().permute(back).detach().requires_grad_()


def measure_convs(network: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every convolution of G, forward and backward, for N targets."""
    rows = []
    cases = [(1.0, torch.bfloat16), (0.5, torch.bfloat16), (0.5, torch.float32)] if HAS_GPU else [(0.02, torch.float32)]
    for width, dtype in cases:
        n, px = 32 if HAS_GPU else 2, generator.FEATURE_PX
        print(f"convolutions of G, width {width}, N = {n}, {dtype}, forward + backward, ms: {', '.join(FORMS)}")
        for i, conv in enumerate(Architecture("untrained", width).convs):
            stream = torch.Generator(DEVICE).manual_seed(i)
            draw = partial(torch.randn, generator=stream, device=DEVICE, dtype=dtype)
            c, o, k = conv.in_channels, conv.out_channels, conv.kernel_px
            x, w, b = draw(n, c, px, px), draw(n, o, c, k, k) / math.sqrt(c * k * k), draw(n, o)
            row: dict[str, Any] = {"width": width, "dtype": str(dtype), "conv": i, "in": [c, px, px], "out": o, "k": k}
            exact = None
            for name, (form, order) in FORMS.items():
                if name == "Triton" and not HAS_GPU:
                    continue
                row[name] = conv_s(form, laid_out(x, order), w, b, conv)
                with torch.no_grad():
                    y = form(laid_out(x, order), w, b, conv).float()
                exact = y if exact is None else exact
                difference = ((y - exact).norm() / exact.norm()).item()
                if not difference < 0.02:
                    print(f"  {name} differs by {difference:.1e}")
            px = 2 * px - k + 1 if conv.is_after_upsample else px
            rows.append(row)
            print(f"  {i:2} {c:3}->{o:3} k{k} {px:3}px", *(f"{row.get(name, 0) * 1e3:8.3f}" for name in FORMS))
        mine = [row for row in rows if (row["width"], row["dtype"]) == (width, str(dtype))]
        print("  all            ", *(f"{sum(row.get(name, 0) for row in mine) * 1e3:8.3f}" for name in FORMS))
    return rows


def conv_s(form: Form, x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> float:
    w = w.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2).requires_grad_()
    b = b.float().requires_grad_() if form is by_triton else b.requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(form(x, w, b, conv))
    return median_s(lambda: torch.autograd.grad(form(x, w, b, conv), (x, w, b), grad), repeats=5, warm_ups=1)


@lru_cache(maxsize=2)
def discriminator(network: str, precision: str, is_stock: bool = False) -> Discriminator:
    """`is_stock`: as torchvision and PyTorch run it, nothing fused."""
    d = Discriminator(frozen(network), DEVICE, DTYPES[precision])
    if is_stock:
        d._as_deep_as = partial(stock_network, d)  # type: ignore[method-assign]
    return d


@lru_cache
def stock_network(d: Discriminator, layers: tuple[str, ...]) -> torch.nn.Module:
    whole = mock.patch("dgn.frozen.fold_norms", lambda network: network)
    with whole, mock.patch("dgn.frozen.fuse", lambda network, make: network):
        return Discriminator._as_deep_as(d, layers)


def measure_discriminator(network: str, report: dict[str, Any]) -> dict[str, Any]:
    """D alone on the views of 32 targets, to the pictures' gradient; its convolutions alone, one by one."""
    views = 128 if HAS_GPU else 2
    d = discriminator(network, "bfloat16")
    layer = d.layout.class_layer
    images = torch.rand(views, 3, 224, 224, device=DEVICE, requires_grad=True)
    ops = (
        views * cost(RenderConfig.from_preset("standard", "bfloat16"), "untrained", network).discriminator_ops_per_view
    )
    stock = discriminator(network, "bfloat16", is_stock=True)
    result: dict[str, Any] = {"views": views}

    def there_and_back(d: Discriminator) -> Tensor:
        return torch.autograd.grad(d.responses(images, [layer])[layer].float().sum(), images)[0]

    result["is_bit_for_bit"] = torch.equal(there_and_back(stock), there_and_back(d))
    result["stock_s"] = median_s(lambda: there_and_back(stock))
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        result["stock_cudnn_benchmark_s"] = median_s(lambda: there_and_back(stock))
    result["fused_s"] = median_s(lambda: there_and_back(d))
    if HAS_GPU:
        compiled = discriminator.__wrapped__(network, "bfloat16", is_stock=True)
        begun = time.perf_counter()
        program = torch.compile(stock_network(compiled, (layer,)))
        compiled._as_deep_as = lambda layers: program  # type: ignore[method-assign, assignment]
        there_and_back(compiled)
        result["compiling_s"] = time.perf_counter() - begun
        result["compiled_s"] = median_s(lambda: there_and_back(compiled))
    convs, px, x_channels = [], 224, 3
    for module in d.model.features:  # type: ignore[union-attr, operator]
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


def mapped(architecture: Architecture, own: Any, shared: Any, features_NK: Tensor) -> Tensor:
    """G as `torch.vmap` makes it of one target's: grouped convolutions. Batch norm's own kernels refuse the map."""

    def statistics(x: Tensor, weights: Any, i: int) -> Tensor:
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0, keepdim=True)
        gamma, beta = (weights[f"norm{i}.{name}"][:, None, None] for name in ("gamma", "beta"))
        return ((x.float() - mean) * (var + generator.NORM_EPS).rsqrt() * gamma + beta).to(x.dtype)

    one = torch.vmap(lambda w, f: generator.layers(architecture, {**shared, **w}, f[None], statistics)[0])
    return one(dict(own), features_NK)


def looped_over_targets(architecture: Architecture, own: Any, shared: Any, features_NK: Tensor) -> Tensor:
    """G as a CPU makes it."""
    parts = {name: stacked.unbind() for name, stacked in own.items()}
    one = partial(generator.generate, architecture)
    pictures = [
        one({**shared, **{k: w[n] for k, w in parts.items()}}, features_K) for n, features_K in enumerate(features_NK)
    ]
    return torch.stack(pictures)


def class_targets(d: Discriminator, n: int, mode: str = "untrained") -> list[Target]:
    units = range(d.layout.units[d.layout.class_layer])
    return [Target((WeightedUnit(d.layout.class_layer, units[i % len(units)]),), mode, i) for i in range(n)]  # type: ignore[arg-type]


def update_s(
    config: RenderConfig, d: Discriminator, targets: list[Target], form: str, decoder: Any = None
) -> tuple[float, int]:
    """Seconds of one update and the most bytes allocated.

    form: loop and grouped, stock but for G; fast, the engine's update launch by launch; replayed, the engine.
    """
    generate = {"loop": looped_over_targets, "grouped": mapped}.get(form, render.generate_batch)
    with same_start(), render.exact_float32(), mock.patch.object(render, "generate_batch", generate):
        batch = render._Batch.start(targets, config, d, decoder)
        if form in ("loop", "grouped"):
            settings = {"lr": batch.recipe.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}
            optimiser: Any = torch.optim.Adamax(batch.own.values(), **settings, capturable=HAS_GPU)
        else:
            optimiser = render.make_optimiser(batch.recipe, batch.own)
        plain = partial(batch.update, optimiser)

        def update(*drawn: Tensor) -> object:
            return plain(*(tensor.to(DEVICE, non_blocking=True) for tensor in drawn))

        run = Replayed(plain, DEVICE) if form == "replayed" else update
        if HAS_GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        slow = form == "loop"
        elapsed = median_s(lambda: run(*batch.draw()), repeats=3 if slow else 6, warm_ups=1 if slow else 3)
    return elapsed, torch.cuda.max_memory_allocated() if HAS_GPU else 0


def measure_updates(network: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole update of N targets in its forms."""
    rows = []
    peak = report.get("peaks", {}).get("bfloat16_tflops", math.nan)
    forms = ("loop", "grouped", "fast", "replayed") if HAS_GPU else ("loop", "grouped")
    for precision in ("bfloat16", "float32"):
        for preset, n in itertools.product(("standard", "paper"), BATCHES):
            if precision == "float32" and n not in (1, 32):
                continue
            changes = {} if HAS_GPU else {"width": 0.05, "num_views": 1}
            config = RenderConfig.from_preset(preset, precision, **changes)  # type: ignore[arg-type]
            counted = cost(config, "untrained", network)
            for form in forms if n in (1, 32) else forms[1:]:
                d = discriminator(network, precision, is_stock=form in ("loop", "grouped"))
                elapsed, most = update_s(config, d, class_targets(d, n), form)
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
    d, judge = discriminator(network, "bfloat16"), Discriminator(frozen(network), DEVICE)
    decoder = random_decoder(full.pretrained.width)
    rows, engine_s, saving_s, count = [], 0.0, 0.0, 0
    for block in parse_targets(["all"], d.layout, None):
        targets = [block.target(i) for i in range(min(batch_size, len(block)))]
        marks: list[float] = []

        def mark(update: int, loss_N: Tensor) -> None:
            if update >= 4 or not HAS_GPU:  # after compiling, recording and the first replay
                loss_N.sum().item()
                marks.append(time.perf_counter())  # noqa: B023

        start = time.perf_counter()
        results = render.render_batch(targets, short, d, decoder, on_update=mark)
        end = time.perf_counter()
        per_update_s = (marks[-1] - marks[0]) / (len(marks) - 1)
        around_s = end - start - num_updates * per_update_s
        pngs = [picture.encode_png(result.picture_3HW.nan_to_num()) for result in results]
        for png, target in zip(pngs, targets, strict=True):
            picture.rescore([png], [target], judge)
        saved_s = (time.perf_counter() - end) / len(targets)
        batch_s = around_s + full.recipe(block.mode).num_updates * per_update_s
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
    "discriminator": measure_discriminator,
    "updates": measure_updates,
    "sample": measure_sample,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    main()
