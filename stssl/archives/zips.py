"""Check the size of a zip file's list of members before this list is read: a hostile list could fill the memory."""

import struct
from pathlib import Path

from stssl.base.errors import DataError

MOST_MEMBERS, MOST_DIRECTORY = 2_000_000, 512 << 20
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
_WIDE = 0xFFFFFFFF


def check_directory(path: Path) -> None:
    """Raise an error if a zip file claims too many members, or too long a list of them. Do not read the list.

    Args:
        path: Path of the zip file.

    Raises:
        DataError: The file claims more members or bytes than any data set has, or a longer list than the file.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - _END.size - _LOCATOR.size))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0 or at + _END.size > len(tail):
            return  # This is no zip file. Raise no error, since the zip reader reports it later.
        members, length = _END.unpack_from(tail, at)[4:6]
        # If a field has its largest value, the real number did not fit into it. Then it is in the Zip64 record.
        if (members == 0xFFFF or length == _WIDE) and at >= _LOCATOR.size:
            mark, _, where, _ = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
            file.seek(min(where, size))
            wide = file.read(_END64.size)
            if mark == b"PK\6\7" and len(wide) == _END64.size:
                members, length = _END64.unpack(wide)[7:9]
    if members > MOST_MEMBERS or length > min(MOST_DIRECTORY, size):
        raise DataError(f"{path} claims {members:,} members in a list of {length:,} bytes: it is damaged or hostile")
