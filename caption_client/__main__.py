"""`python -m caption_client` is the command `caption`."""

import os
import sys

INTERRUPTED = 130  # exit status


def run() -> None:
    """The command; what threads still wait for when it is interrupted is not waited for."""
    try:
        from caption_client.cli import main

        status = main()
    except KeyboardInterrupt:  # while the modules load, or once more at the end
        status = INTERRUPTED
    if status == INTERRUPTED:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
