"""``make bench``: every benchmark, one after the other."""

from tests.benchmarks import mill

mill.main()
