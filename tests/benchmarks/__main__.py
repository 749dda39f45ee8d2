"""``make bench``: every benchmark, one after the other."""

from tests.benchmarks import mill, operators

mill.main()
operators.main([])
