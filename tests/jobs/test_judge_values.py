"""Second opinions: what they say of a picture, computed again by other means, and that each stays with its own row."""

import functools
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dgn.networks import embedded
from dgn.networks.weights import load_weights
from dgn.runs.judgements import DISTORTION_NAMES, SCHEMA
from tests.helpers.judged import FOLDER, check_compacted, judged_rows, table_of


def by_hand(image, distortion):
    """What a distortion is documented to do, by Pillow and NumPy alone."""
    if distortion == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=50)
        return Image.open(buffer)
    if distortion == "crop":
        return image.resize((224, 224), Image.Resampling.BILINEAR, box=(22.4, 22.4, 201.6, 201.6))
    if distortion == "turn":
        wide = np.pad(np.asarray(image, np.float32), ((50, 50), (50, 50), (0, 0)), "symmetric")
        channels = [
            Image.fromarray(channel).rotate(10, Image.Resampling.BILINEAR) for channel in np.moveaxis(wide, 2, 0)
        ]
        turned = np.stack([np.asarray(channel)[50:274, 50:274] for channel in channels], 2)
        return Image.fromarray(np.rint(turned).astype(np.uint8))
    kernel = np.exp(-(np.arange(-8, 9) ** 2) / (2 * 2.0**2))
    kernel /= kernel.sum()
    pixels = np.pad(np.asarray(image, np.float64), ((8, 8), (8, 8), (0, 0)), "reflect")
    pixels = sum(kernel[k] * pixels[k : k + 224] for k in range(17))
    pixels = sum(kernel[k] * pixels[:, k : k + 224] for k in range(17))
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


@functools.cache
def model_of(network):
    model = embedded.build()
    model.load_state_dict(load_weights(network).state)
    return model.eval()


def forward(network, image, layer):
    """One pass by hand: the layer's units, averaged over space after a ReLU, and the softmax of the output."""
    model = model_of(network)
    kept = []
    module = {"conv1_1": model.features[1], "conv5_1": model.features[25], "fc8": model.classifier[-1]}[layer]
    handle = module.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        output = model((pixels - mean[:, None, None]) / std[:, None, None])
    handle.remove()
    response = kept[0][0]
    return response if response.ndim == 1 else response.relu().mean((1, 2)), output[0].softmax(0)


@pytest.mark.parametrize(
    ("target_id", "layer", "weights"),
    [
        ("fc8-00007-untrained-s0", "fc8", {7: 1.0}),
        ("fc8-1_2-untrained-s0", "fc8", {1: 1.0, 2: 1.0}),
        ("conv1_1-00001-untrained-s0", "conv1_1", {1: 1.0}),
        ("conv5_1-3x0.5_17-untrained-s0", "conv5_1", {3: 0.5, 17: 1.0}),
    ],
)
def test_a_judgement_equals_one_by_hand(judged, target_id, layer, weights):
    [path] = judged.glob(f"images/*/*/{target_id}.png")
    row = judged_rows(judged)[target_id]
    image = Image.open(path).convert("RGB")
    assert row["by"] == "vgg16-mini-b"
    if layer == "fc8":
        logits, probabilities = forward("vgg16-mini-b", image, "fc8")
        lowest = min(logits[unit] for unit in weights)
        others = [value for unit, value in enumerate(logits) if unit not in weights]
        assert row["judge_rank"] == 1 + sum(value > lowest for value in others)
        assert row["judge_probability"] == pytest.approx(sum(probabilities[u].item() for u in weights), rel=1e-4)
        assert row["judge_top_unit"] == logits.argmax()
        assert row["judge_top_label"] == embedded.LABELS[row["judge_top_unit"]]
    else:
        assert [row[name] for name in SCHEMA.names if name.startswith("judge_")] == [None] * 4
    for name in DISTORTION_NAMES:
        units, _ = forward("vgg16-mini", by_hand(image, name), layer)
        activation = sum(weight * max(units[unit].item(), 0) for unit, weight in weights.items())
        assert row[f"{name}_activation"] == pytest.approx(activation, rel=0.005, abs=0.001), name
        lowest, near = min(units[unit] for unit in weights), 0.005 * units.abs().max()
        others = [value for unit, value in enumerate(units) if unit not in weights]
        fewest, most = (1 + sum(value > lowest + sign * near for value in others) for sign in (1, -1))
        assert fewest <= row[f"{name}_rank"] <= most, name


def test_files_hold_every_row_and_whose_they_are(judged, rendered):
    frozen = load_weights("vgg16-mini-b")
    found = judged_rows(judged)
    rows = {row["target_id"]: row for row in table_of(rendered / "metadata").to_pylist()}
    assert found.keys() == rows.keys()
    assert len(found) == 8
    for path in (judged / "judgements" / FOLDER).iterdir():
        file = pq.read_table(path)
        assert file.schema.equals(SCHEMA)
        about = json.loads(file.schema.metadata[b"dgn"])
        assert (about["schema_version"], about["by_weights_sha256"]) == (1, frozen.sha256)
        settings = {"jpeg_quality": 50, "blur_sigma_px": 2, "crop_share": 0.8, "turn_deg": 10}
        assert about.items() >= settings.items()
    for name, row in found.items():
        assert (row["shard"], row["attempt"]) == (rows[name]["shard"], rows[name]["attempt"])
        assert row["by_weights_sha256"] == frozen.sha256
        assert (row["judge_rank"] is None) == (rows[name]["layer"] != "fc8")


def test_the_index_holds_them_beside_the_rows(judged):
    check_compacted(judged, judged_rows(judged))


def test_the_summary_counts(judged, dgn):
    code, out, _ = dgn("judge", judged, "--summary", "--json")
    assert code == 0
    found = {one["layer"]: one for one in json.loads(out)}
    assert list(found) == ["conv1_1", "conv5_1", "fc8"]
    rows = {row["target_id"]: row for row in table_of(judged / "metadata").to_pylist()}
    judgements = judged_rows(judged).values()
    for layer, one in found.items():
        ours = [row for row in judgements if rows[row["target_id"]]["layer"] == layer]
        n = len(ours)
        assert (one["num_pictures"], one["mode"], one["by"]) == (n, "untrained", "vgg16-mini-b")
        assert one["saved_first"] == sum(rows[row["target_id"]]["rank"] == 1 for row in ours) / n
        for name in DISTORTION_NAMES:
            assert one[f"{name}_first"] == sum(row[f"{name}_rank"] == 1 for row in ours) / n
        is_class = layer == "fc8"
        assert one["judge_first"] == (sum(row["judge_rank"] == 1 for row in ours) / n if is_class else None)
        assert one["judge_top5"] == (sum(row["judge_rank"] <= 5 for row in ours) / n if is_class else None)
    code, out, _ = dgn("judge", judged, "--summary")
    [line] = [line for line in out.splitlines() if " fc8 " in line]
    assert line.split()[:4] == ["vgg16-mini-b", "fc8", "untrained", "5"]
    assert f"{found['fc8']['judge_top5']:.0%}" in line
