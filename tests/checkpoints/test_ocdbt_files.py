"""That every file counts which a database's values lie in, whatever the height of its tree."""

import pytest
import tensorstore
from etils import epath

from lumiere_jax.checkpoints.ocdbt_files import check_files


@pytest.fixture
def database(tmp_path):
    """Several files of values and of a tree of three levels."""
    directory = epath.Path(tmp_path / "a directory: 100%")
    spec = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{directory}/"},
        "config": {"max_decoded_node_bytes": 1000, "max_inline_value_bytes": 4},
        "target_data_file_size": 2000,
    }
    store = tensorstore.KvStore.open(spec).result()
    with tensorstore.Transaction() as transaction:
        for number in range(500):
            store.with_transaction(transaction)[f"key {number}"] = b"x" * (number % 16)
    return directory


def test_all_there(database):
    manifest = tensorstore.ocdbt.dump(tensorstore.KvStore.open(f"{database.as_uri()}/").result()).result()
    assert manifest["versions"][-1]["root_height"] == 2
    check_files(database)


def test_any_file_missing_or_cut_short(database):
    files = list((database / "d").iterdir())
    assert len(files) > 2
    for file in files:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(ValueError, match=file.name):
            check_files(database)
        file.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=r"bytes, not|byte range"):
            check_files(database)
        file.write_bytes(content)
    check_files(database)
