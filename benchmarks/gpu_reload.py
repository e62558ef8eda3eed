"""benchmarks/reload.py on the GPU, under a name by which tools/gpu.py finds it.

usage: python benchmarks/gpu_reload.py [--quick] [--json FILE]
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ["TRIMTAB_DEVICE"] = "cuda"
    import reload

    reload.main()
