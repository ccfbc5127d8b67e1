"""The three cluster files and the recipe of docs/cluster.md, as their tests read them."""

import re
from pathlib import Path
from textwrap import dedent

import yaml

ROOT = Path(__file__).parent.parent.parent
AWS, LOCAL, KUBERAY = "ray_cluster.yaml", "cluster/local.yaml", "cluster/kuberay.yaml"
DOCS = (ROOT / "docs/cluster.md").read_text()
RECIPE = dedent(re.search(r"```bash\n(.*?)```", DOCS.partition("2. Once per account")[2], re.DOTALL)[1])


def load(name):
    documents = list(yaml.safe_load_all((ROOT / name).read_text()))
    return documents if name == KUBERAY else documents[0]
