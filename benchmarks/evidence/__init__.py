"""Do the methods teach? The CIFAR-10 runs of docs/benchmarks/cifar10.md, hours of them, by one command."""
