#!/usr/bin/env bash
# Where pandas is installed, the first array that PyArrow makes of a Python list imports all of it.
#
# Seen with PyArrow 26.0.1 and pandas 3.1.1, CPython 3.11, Linux. To find out whether it was given a pandas object,
# PyArrow imports pandas, also for a plain list of numbers with an explicit type. Programs that never mention pandas pay
# its import, about 0.3 s and 25 MB in each process, on machines where somebody installed it, and nowhere else: importing
# PyArrow and NumPy alone takes 0.13 s, which is what people measure in a clean environment. Arrays from buffers or from
# Parquet files, and reading them, leave pandas out. `import pyarrow.dataset` alone imports it too.
#
# Output seen:
#   import pyarrow, and Parquet: without pandas
#   an array of a buffer: without pandas
#   an array of a list: with pandas
#   import pyarrow.dataset: with pandas
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1
cat > "$folder/program.py" <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet

what = sys.argv[1]
if what == "list":
    pa.array([1, 2, 3], pa.int64())
elif what == "buffer":
    pa.Array.from_buffers(pa.int64(), 3, [None, pa.py_buffer(bytes(24))])
elif what == "dataset":
    import pyarrow.dataset
print("with pandas" if "pandas" in sys.modules else "without pandas")
PYTHON
run() { "$folder/venv/bin/python" "$folder/program.py" "$1"; }
{
    echo "import pyarrow, and Parquet: $(run import)"
    echo "an array of a buffer: $(run buffer)"
    echo "an array of a list: $(run list)"
    echo "import pyarrow.dataset: $(run dataset)"
} > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
