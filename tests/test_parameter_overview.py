"""The table of parameters, against clu's own."""

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.distributed.partitioning import replicated
from lumiere_jax.parameter_overview import write_overview


def test_table(tmp_path, capsys):
    draws = np.random.default_rng(0).normal(2.0, 3.0, (4, 500)).astype(np.float32)
    trained = {"layers": {0: {"kernel": jnp.asarray(draws)}}}
    frozen = jax.device_put({"bias": jnp.full((7,), 0.5, jnp.bfloat16)}, replicated(make_mesh()))
    write_overview(tmp_path / "parameters.txt", trained, frozen)
    table = (tmp_path / "parameters.txt").read_text()
    assert str(tmp_path / "parameters.txt") in capsys.readouterr().out
    kernel, bias = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith(("| t", "| f"))
    )
    assert kernel[:4] == ["trained/layers/0/kernel", "(4, 500)", "float32", "2,000"]
    assert bias == ["frozen/bias", "(7,)", "bfloat16", "7", "0.5", "0.0", "()"]
    theirs = parameter_overview.get_parameter_overview({"trained": trained}, include_stats="global").splitlines()[3]
    assert kernel[4:6] == [cell.strip() for cell in theirs.split("|")[5:7]]
