"""`m2h-deploy train` for `torchrun`, which starts modules: python -m m2h_deploy.training CONFIG.toml -o FOLDER."""

from __future__ import annotations

import argparse
import os
import sys

from m2h_deploy.causes import machine_words
from m2h_deploy.errors import M2HError
from m2h_deploy.stdio import prepare_streams
from m2h_deploy.training import interrupted_message, run, table


def main() -> int:
    """Parse, call `run`, print the table. Exit codes as the command line's."""
    parser = argparse.ArgumentParser(prog="python -m m2h_deploy.training", description="Train an M2H network.")
    parser.add_argument("config", help="TOML file that describes the run")
    parser.add_argument("-o", "--output", required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in the folder")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--cache", help="where frames are kept (default: in the folder)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read or render frames")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in the folder")
    parser.add_argument("--qat", action="store_true", help="fine-tune the config's checkpoint for INT8")
    prepare_streams()
    arguments = parser.parse_args()
    try:
        result = run(
            arguments.config,
            arguments.output,
            resume=arguments.resume,
            device=arguments.device,
            cache=arguments.cache,
            workers=arguments.workers,
            qat=arguments.qat,
            overwrite=arguments.overwrite,
        )
    except (OSError, MemoryError) as error:
        print(f"error: {machine_words(error)}", file=sys.stderr)
        return 2
    except M2HError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(interrupted_message(arguments.output, overwrite=arguments.overwrite), file=sys.stderr)
        return 130
    if result:
        print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
