"""``python -m labelmill`` is ``labelmill``."""

from labelmill.pipelines.cli import main

if __name__ == "__main__":
    main()
