"""Every CUDA source compiles without a warning; no kernel spills; kernels that read rows load 16 bytes at a time."""

import pytest

from tests.gates import cuda_aot


@pytest.mark.skipif(bool(cuda_aot.missing()), reason=f"cuda ahead-of-time gate: {cuda_aot.missing()}")
@pytest.mark.parametrize("source", cuda_aot.sources(), ids=lambda source: str(source.relative_to(cuda_aot.ROOT)))
def test_kernels_compile_clean(source):
    kernels = cuda_aot.check(source)
    assert {kernel.arch for kernel in kernels} == set(cuda_aot.ARCHITECTURES)
    faults = [f"sm_{kernel.arch} {kernel.name}: {fault}" for kernel in kernels for fault in kernel.faults]
    assert not faults, "\n".join(faults)


def test_gate_sees_faults():
    kernel = cuda_aot.Kernel("kl", "90a", "forward_kernel f", 64, 8, 0, 2, 0)
    assert len(kernel.faults) == 2
    kernel = cuda_aot.Kernel("images", "90a", "crop_flip_kernel fLb1", 32, 0, 0, 0, 0)
    assert kernel.faults == ["no 16-byte store (STG.E.128)"]
