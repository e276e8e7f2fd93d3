"""The pages of docs/benchmarks, made from the files in benchmarks/results and from nothing else."""
