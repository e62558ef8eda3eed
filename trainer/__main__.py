"""`python -m trimtab.trainer -C DIR`: what the server starts and supervises. People use `trimtab serve`."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path


def main() -> int:
    """The exit status; errors on purpose are one line."""
    parser = argparse.ArgumentParser(prog="python -m trimtab.trainer", description=__doc__)
    parser.add_argument("-C", dest="directory", type=Path, default=Path(), help="folder of trimtab.toml")
    directory = parser.parse_args().directory
    # What imports make stays; to go through it again and again would take a third of the time of importing.
    gc.disable()
    from trimtab.client.errors import ClientError
    from trimtab.kernels.errors import KernelError
    from trimtab.models.errors import ModelError
    from trimtab.store.errors import StoreError
    from trimtab.trainer.errors import TrainerError
    from trimtab.trainer.process import run_trainer

    gc.freeze()
    gc.enable()
    try:
        return run_trainer(directory)
    except (TrainerError, StoreError, ModelError, KernelError, ClientError) as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
