"""What the benchmarks share: processes, clocks, planted parts, tables and charts."""
