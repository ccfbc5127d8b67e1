import ctypes
import os
import sys


def has_gpu():
    """What `torch.cuda.is_available()` says, without importing torch: tests of pure modules start in a moment."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


if "pytest" in sys.modules and not has_gpu():  # in Ray's workers it does not matter
    # Before anything imports Triton, as torchvision does: tests/engine/test_kernels.py.
    os.environ["TRITON_INTERPRET"] = "1"
