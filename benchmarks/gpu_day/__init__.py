"""Everything that has to run once on a machine with a GPU; see bench_gpu_day.py."""
