"""HTTP's byte ranges, by which browsers load and seek videos (RFC 9110, section 14)."""

import re


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Which bytes of a file a request asks for.

    Args:
      header: `Range` of the request.
      size: of the file.

    Returns:
      the first byte and the one behind the last; None: the whole file, also for several ranges at once and for what
      is not understood, as the standard allows.

    Raises:
      ValueError: the file has none of these bytes.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header or "")
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        first, end = max(0, size - int(found[2])), size
    else:
        first, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < first:
            return None
    if first >= size:
        raise ValueError(f"{header} of {size} bytes")
    return first, end
