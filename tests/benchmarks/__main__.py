"""``make bench``: every benchmark, one after the other."""

from tests.benchmarks import mill, near_duplicates, operators, serve

mill.main()
operators.main([])
near_duplicates.main([])
serve.main([])
