"""Whether the files that hold a checkpoint's arrays are all there, before the first array is read.

Orbax writes arrays into an OCDBT database (TensorStore's): a manifest names the root of a B-tree, whose leaves say in
which file the bytes of each array lie, and where. Orbax reads all arrays at once and gives up at the first that fails;
what the other reads then find is a closed event loop, and the user finds hundreds of tracebacks of it below the one
message that matters. Walking the tree first takes milliseconds, and names the file.
"""

from collections import defaultdict

import tensorstore
from etils import epath


def check_files(database: epath.Path) -> None:
    """Follows the tree of the OCDBT database in the directory `database`; reads no array.

    Raises:
      ValueError: a file is missing or shorter than what lies in it; the message names it.
    """
    store = tensorstore.KvStore.open(f"{database.as_uri()}/").result()
    root = tensorstore.ocdbt.dump(store).result()["versions"][-1]["root"]
    nodes, sizes = [root["location"]], defaultdict(int)
    while nodes:
        for entry in tensorstore.ocdbt.dump(store, nodes.pop()).result()["entries"]:
            if "location" in entry:
                nodes.append(entry["location"])
            elif "indirect_value" in entry:  # other values are so small that they lie in the tree
                _, directory, name, offset, length = entry["indirect_value"].split(":")
                sizes[directory + name] = max(sizes[directory + name], int(offset) + int(length))
    for name, size in sizes.items():
        file = database / name
        if not file.exists():
            raise ValueError(f"{file} is missing")
        if (length := file.stat().length) < size:
            raise ValueError(f"{file} has {length} bytes, not {size}")
