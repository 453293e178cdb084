"""One process of a two-process run on two virtual CPU devices each: `test_mesh.py` starts two of this file."""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from processes import answer

from lumiere_jax.checkpoints.checkpointing import CheckpointManager, tree_hash
from lumiere_jax.distributed.mesh import initialize, make_mesh
from lumiere_jax.distributed.partitioning import replicated, shard_batch


def main(directory: pathlib.Path) -> None:
    initialize()
    initialize()  # a second call changes nothing
    clip = np.full((1, 2, 4, 4, 3), 10.0 + jax.process_index(), np.float32)
    try:
        shard_batch(make_mesh(data=1, rows=4), {"video": clip})
    except ValueError as error:
        answer(f"error {error}")

    mesh = make_mesh(data=2, rows=2)
    video = shard_batch(mesh, {"video": clip})["video"]
    assert video.shape == (2, 2, 4, 4, 3)
    means = jax.jit(lambda video: video.mean((1, 2, 3, 4)), out_shardings=replicated(mesh))(video)
    answer(f"means {np.asarray(means).tolist()}")

    divided = NamedSharding(mesh, PartitionSpec("data", "rows"))
    abstract = {
        "divided": jax.ShapeDtypeStruct((4, 4), np.float32, sharding=divided),
        "same": jax.ShapeDtypeStruct((3,), np.int32, sharding=replicated(mesh)),
    }
    with CheckpointManager(directory) as manager:
        step, tree = manager.restore(abstract)
        assert tree["divided"].sharding == divided
        answer(f"hash {tree_hash(tree)}")
        manager.save(step + 1, jax.tree.map(lambda leaf: -leaf, tree))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
