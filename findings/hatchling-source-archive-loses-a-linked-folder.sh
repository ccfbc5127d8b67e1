#!/usr/bin/env bash
# A source archive made by Hatchling lacks a folder that can be reached in two ways, without a word.
#
# Seen with hatchling 1.33.0 and build 1.6.1, Python 3.11, Linux. A package links to two folders beside it, `base` and
# `utils`: one sorts before the package, one behind it. A wheel built from the checkout has the files of both. The source
# archive has each folder's file once, wherever it comes first: `base` at the top only. So a wheel built from the
# archive, which is what `python -m build` and `pip install ARCHIVE` do, lacks `package/base`. Excluding one of the two
# ways can lose the folder altogether, because an excluded folder is still visited and then counts as seen;
# `skip-excluded-dirs` prevents that. All commands succeed, and none warns.
#
# Output seen:
#   wheel from the checkout: package/base package/utils
#   source archive: base package/utils
#   wheel from the archive: package/utils
#   archive with /package/utils excluded: base
#   archive with /package/utils excluded and skipped: base utils
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hatchling==1.33.0 build==1.6.1
mkdir -p "$folder/project/package" "$folder/project/base" "$folder/project/utils"
here=$(realpath "$0")
cd "$folder/project"
touch package/__init__.py base/tool.py utils/tool.py
ln -s ../base package/base
ln -s ../utils package/utils

# build NAME FROM KIND [SETTING...]: one archive in ../NAME, and the folders in it that hold tool.py
build() {
    local out=../$1 from=$2 kind=$3
    shift 3
    {
        printf '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        printf '[project]\nname = "package"\nversion = "1"\n[tool.hatch.build]\n'
        if [ $# -gt 0 ]; then printf '%s\n' "$@"; fi
    } > "$from/pyproject.toml"
    "$folder/venv/bin/python" -m build "--$kind" --no-isolation --outdir "$out" "$from" > "$out.log" 2>&1
    "$folder/venv/bin/python" - "$out" <<'PYTHON'
import sys
import tarfile
import zipfile
from pathlib import Path

[archive] = Path(sys.argv[1]).iterdir()
if archive.suffix == ".whl":
    names = zipfile.ZipFile(archive).namelist()
else:
    names = [name.partition("/")[2] for name in tarfile.open(archive).getnames()]
print(*sorted(name.removesuffix("/tool.py") for name in names if name.endswith("tool.py")))
PYTHON
}

{
    echo "wheel from the checkout: $(build wheel . wheel)"
    echo "source archive: $(build archive . sdist)"
    tar xzf ../archive/*.tar.gz -C ..
    echo "wheel from the archive: $(build second ../package-1 wheel)"
    echo "archive with /package/utils excluded: $(build third . sdist 'exclude = ["/package/utils"]')"
    skipped=$(build fourth . sdist 'exclude = ["/package/utils"]' 'skip-excluded-dirs = true')
    echo "archive with /package/utils excluded and skipped: $skipped"
} > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$here" | diff - "$folder/output"
