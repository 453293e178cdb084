import os
import pathlib
import subprocess
import sys


def test_on_eight_devices():
    """The number of virtual devices is fixed when JAX starts: these tests have a process of their own."""
    file = pathlib.Path(__file__).with_name("on_eight_devices.py")
    process = subprocess.run(
        [sys.executable, "-m", "pytest", str(file)],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        },
        cwd=file.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "37 passed" in process.stdout
