"""``python -m pipelines`` is ``labelmill``."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
