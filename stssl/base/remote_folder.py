"""Read and write the files of a folder in an object store (`s3://`, `gs://`, `az://`): results of runs and sweeps."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from stssl.base.errors import DataError, RunError
from stssl.base.remote import bucket, explained, get_object, object_tail, split_url

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

PART_BYTES = 32 << 20
"""Larger files are sent in parts of this size, so that a lost connection costs one part."""


class ObjectMark(NamedTuple):
    """Identify the present content of an object by its entity tag and version. Each write changes them.

    One of them is None if the object store does not have it.
    """

    tag: str | None
    version: str | None


class Listed(NamedTuple):
    """Describe a file in a folder of an object store: its size in bytes and its entity tag, if the store lists it."""

    size: int
    tag: str | None


class OtherWriterError(RunError):
    """Report that another process has written an object since this process read or wrote it.

    Ray may restart workers that raise this error.
    """

    passing = True


class RemoteFolder:
    """Read and write the files below one URL. All files are written whole or not at all."""

    def __init__(self, url: str) -> None:
        """Set the URL of the folder. Ask the store nothing yet."""
        self.url = url
        self.bucket_url, self.key = split_url(url)

    def place(self, name: str) -> str:
        """Return the key of the file `name` in this folder: its path inside the bucket."""
        return f"{self.key}/{name}".strip("/")

    @contextlib.contextmanager
    def _bucket(self, name: str = "") -> Iterator["ObjectStore"]:
        """Return a context that yields a client for the bucket, and turns errors of the store into clear DataErrors.

        Args:
            name: Name of the file that the errors name; empty for the folder.
        """
        with explained(f"{self.url}/{name}".rstrip("/")):
            yield bucket(self.bucket_url)

    def listed(self) -> dict[str, Listed]:
        """Return the size in bytes and the entity tag of each file below the URL, by the file's path relative to it.

        Raises:
            DataError: The bucket does not exist, or it cannot be read.
        """
        found: dict[str, Listed] = {}
        head = f"{self.key}/" if self.key else ""
        try:
            with self._bucket() as store:
                for chunk in store.list(head or None):
                    for entry in chunk:
                        name = entry["path"].removeprefix(head)
                        if not {"", ".", ".."} & set(name.split("/")):
                            found[name] = Listed(int(entry["size"]), entry.get("e_tag"))
        except FileNotFoundError:
            raise self._no_bucket() from None
        return found

    def read(self, name: str) -> bytes | None:
        """Download the file `name` of this folder, and return its bytes. Return None if it does not exist."""
        try:
            return get_object(self.bucket_url, self.place(name))[0]
        except FileNotFoundError:
            return None

    def tail(self, name: str, size: int) -> bytes | None:
        """Return the last `size` bytes of the file `name`, or all bytes if it has fewer; None if it does not exist."""
        return object_tail(self.bucket_url, self.place(name), size)

    def read_marked(self, name: str) -> tuple[bytes, ObjectMark] | None:
        """Download the file `name`. Return its bytes and the mark that identifies them; None if it does not exist."""
        with contextlib.suppress(FileNotFoundError), self._bucket(name) as store:
            answer = store.get(self.place(name))
            mark = ObjectMark(answer.meta.get("e_tag"), answer.meta.get("version"))
            return bytes(answer.bytes()), mark
        return None

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Upload `data` as the file `name` of this folder. It replaces a file of the same name.

        Raises:
            DataError: The bucket does not exist or refuses the file, or the store does not answer.
        """
        try:
            with self._bucket(name) as store:
                store.put(self.place(name), bytes(data), use_multipart=len(data) > PART_BYTES, chunk_size=PART_BYTES)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def replace(self, name: str, data: bytes, known: ObjectMark | None) -> ObjectMark:
        """Upload a file, but only if no other process has written it since this process learned the mark `known`.

        Args:
            name: Name of the file.
            data: Its new content.
            known: Mark of the content to replace; None if the file must not exist yet.

        Returns:
            Mark of the new content.

        Raises:
            OtherWriterError: The file in the object store has another content than that of `known`.
            DataError: The bucket does not exist or refuses the file, or the store does not answer.
        """
        from obstore import exceptions

        try:
            with self._bucket(name) as store:
                try:
                    if known is None:
                        put = store.put(self.place(name), data, mode="create", use_multipart=False)
                    else:
                        put = store.put(self.place(name), data, mode=_mode(known), use_multipart=False)
                    return ObjectMark(put["e_tag"], put["version"])
                except (exceptions.AlreadyExistsError, exceptions.PreconditionError, exceptions.NotFoundError):
                    pass
        except FileNotFoundError:
            pass
        # If an answer is lost, obstore sends the file again. The store refuses it, since the first try has already
        # changed the file. So compare the contents before blaming another process.
        found = self.read_marked(name)
        if found is not None and found[0] == data:
            return found[1]
        if found is None and known is None:
            raise self._no_bucket()
        raise OtherWriterError(f"{self.url}/{name}: another process has written it meanwhile")

    def copy(self, name: str, target: str) -> None:
        """Copy the file `name` of this folder to the file `target` of the same folder, inside the object store.

        Raises:
            FileNotFoundError: The file does not exist.
            DataError: The store refuses the copy, or does not answer.
        """
        with self._bucket(target) as store:
            store.copy(self.place(name), self.place(target))

    def remove(self, name: str) -> None:
        """Remove the file `name` of this folder, if it exists."""
        with contextlib.suppress(FileNotFoundError), self._bucket(name) as store:
            store.delete(self.place(name))

    def _no_bucket(self) -> DataError:
        return DataError(f"{self.url}: there is no bucket {self.bucket_url}. Make it, or correct the URL.")


def _mode(known: ObjectMark) -> "UpdateVersion":
    """Return obstore's condition for an upload: the object must still have the content that `known` identifies."""
    condition: UpdateVersion = {}
    if known.tag is not None:
        condition["e_tag"] = known.tag
    if known.version is not None:
        condition["version"] = known.version
    return condition
