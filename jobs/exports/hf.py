"""A run as a dataset that Hugging Face's `datasets` loads.

data/train-00000-of-00012.parquet   pictures and all columns of their rows
README.md                           the dataset's card, written last
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from dgn.jobs.exports.chosen import Chosen, Piece, described_schema, joined
from dgn.runs.schema import BY_NAME, QUERY_COLUMNS
from dgn.statuses import Status
from dgn.text import printable


def write_hf(chosen: Chosen, pieces: Iterator[Piece], write: Callable[[str, bytes], None]) -> None:
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = {"info": {"features": {"image": {"_type": "Image"}}}}  # the others follow from the columns' types
    schema = described_schema([image], chosen.rows.info, huggingface=json.dumps(features))
    for number, of_file in itertools.groupby(pieces, key=lambda piece: piece[0]):
        file = io.BytesIO()
        with pq.ParquetWriter(file, schema, use_dictionary=list(QUERY_COLUMNS)) as writer:
            for _, rows, pngs in of_file:
                images = [
                    png and {"bytes": png, "path": f"{name}.png"}
                    for name, png in zip(rows["target_id"].to_pylist(), pngs, strict=True)
                ]
                writer.write_table(joined(rows, [pa.array(images, image.type)], schema))
        write(f"data/train-{number:05d}-of-{chosen.num_packs:05d}.parquet", file.getvalue())
    write("README.md", _card(chosen).encode())


def _card(chosen: Chosen) -> str:
    """README.md of a data set: a header for the hub, and what readers need to know."""
    import yaml

    info = chosen.rows.info
    network = info.fingerprint["discriminator"]
    header = {
        "pretty_name": f"What {network} has learned",
        "size_categories": [_size_category(chosen.table.num_rows)],
        "tags": ["image", "synthetic", "activation-maximization", "feature-visualization", "interpretability"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    decoder = info.fingerprint.get("decoder_sha256")
    facts = {
        "network": network,
        "sha256 of its weights": info.fingerprint["weights_sha256"],
        **({"sha256 of the decoder": decoder} if decoder else {}),
        "preset": info.config["preset"],
        "dgn": info.fingerprint.get("dgn_version"),
        "run": f"{info.run_id}, started {info.created_at}",
    }
    lines = [f"* {name}: {_code(value)}" for name, value in facts.items()]
    table = ["| layer | mode | rows | " + " | ".join(status.replace("_", " ") for status in tuple(Status)) + " |"]
    table += ["| --- | --- |" + " ---: |" * (1 + len(tuple(Status)))]
    for (layer, mode), counts in _counts(chosen.table).items():
        cells = [f"{sum(counts.values()):,}", *(f"{counts.get(status, 0):,}" for status in tuple(Status))]
        table.append(f"| {_code(layer)} | {_code(mode)} | {' | '.join(cells)} |")
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        network=_code(network), facts="\n".join(lines), table="\n".join(table), description=chosen.description,
        statuses="\n".join(f"* `{status}`: {status.meaning}" for status in Status),
        columns="\n".join(f"* `{name}`: {BY_NAME[name].meaning}" for name in QUERY_COLUMNS),
    )  # fmt: skip


def _counts(rows: pa.Table) -> dict[tuple[str, str], dict[str, int]]:
    """Rows of each status by layer and mode, in order."""
    keys = ["layer", "mode", "status"]
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows.group_by(keys).aggregate([([], "count_all")]).sort_by([(k, "ascending") for k in keys]).to_pylist():
        counts.setdefault((row["layer"], row["mode"]), {})[row["status"]] = row["count_all"]
    return counts


def _size_category(num_rows: int) -> str:
    """The hub's categories: n<1K, 1K<n<10K and so on."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = max(0, len(str(num_rows)) - 3)
    return f"{steps[power - 1]}<n<{steps[power]}" if power else "n<1K"


def _code(text: object) -> str:
    """Markdown that shows a text literally."""
    return "`" + printable(text).replace("`", "'").replace("|", "/") + "`"


CARD = """\
---
{header}
---

# What {network} has learned

{description}.

Every picture was made by optimising a generator through a frozen network until the picture excites one unit of that
network, which is a class or a filter, or a weighted group of units (dgn, after Despraz et al., "Towards a Better
Understanding of Deep Neural Networks Representations using Deep Generative Networks").

{facts}

{table}

```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="train")
```

## What to keep in mind

The pictures show one network with one set of weights, not the things that its classes are named after. **A high
`activation` alone proves little**: it is easy to make pictures that excite a unit and show a person nothing. Look at
the picture, at `rank` and `status`, and ask an independent network. Activations of different layers or networks cannot
be compared.

All scores are of the 8-bit PNG that is stored here. Without a picture, `image` and the scores are null. The statuses:

{statuses}

## Columns

* `image`: the PNG
{columns}
"""
