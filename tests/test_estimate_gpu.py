import pytest

from slm.estimate import known_peak


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("NVIDIA H100 80GB HBM3", (989, 67, 495)),
        ("NVIDIA H100 PCIe", (756, 51, 378)),
        ("NVIDIA H100 NVL", (835, 60, 418)),
        ("NVIDIA A100-SXM4-40GB", (312, 19.5, 156)),
        ("NVIDIA GeForce RTX 4090", (165.2, 82.6, 82.6)),
        ("Tesla T4", (65, 8.1, 8.1)),
        ("NVIDIA L40S", (362, 91.6, 183)),
        *((name, None) for name in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU")),
        *((name, None) for name in ("NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3080 Ti", "NVIDIA B300", "")),
    ],
)
def test_peaks_of_whole_known_gpus(name, peaks):
    """In 16 bits, float32 and TF32; None for a slice, another variant, an unknown one."""
    assert [known_peak(name, column) for column in range(3)] == [peak and peak * 1e12 for peak in peaks or [None] * 3]
