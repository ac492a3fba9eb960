"""Fetching single files of a hub's model into the hub client's own cache, with signs of progress while it takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.file_download import repo_folder_name

from backpropagate_backends.model_source import Source

_CONFIG = "config.json"
_SIGN = 1.0  # seconds between two signs of progress


class Fetcher:
    """`names` are the files that the model has; without a network, those that the cache has of it."""

    def __init__(self, source: Source, advance: Callable[[int, int, str], None]) -> None:
        self._source, self._advance = source, advance
        self._sizes: dict[str, int] = {}
        self._parameters = 0
        self._done = 0
        try:
            self._folder = Path(
                hf_hub_download(source.path, _CONFIG, revision=source.revision, local_files_only=True)
            ).parent
            if source.local:
                found = (p for p in self._folder.rglob("*") if p.is_file())
                self._sizes = {p.relative_to(self._folder).as_posix(): p.stat().st_size for p in found}
            else:
                self._ask()
        except Exception as error:
            raise source.failure(error) from error
        self.names = self._sizes.keys()

    def told(self) -> tuple[int, int]:
        """Parameters (0: unknown) and bytes of the weights, as the hub says or as the cache has them."""
        return self._parameters, sum(n for name, n in self._sizes.items() if fnmatch(name, "model*.safetensors"))

    def fetch(self, patterns: Iterable[str]) -> Path:
        """The folder where they are now. Raises ModelLoadError; OSError if the disk does not take them."""
        wanted = [name for name in self._sizes if any(_same_depth(name, pattern) for pattern in patterns)]
        total = self._done + sum(self._sizes[name] for name in wanted)
        if not self._source.local:
            with ThreadPoolExecutor(1, "fetch") as worker:
                for name in wanted:
                    self._wait(worker.submit(self._download, name), total, name)
                    self._done += self._sizes[name]
                    self._advance(self._done, total, name)
        return self._folder

    def _ask(self) -> None:
        info = HfApi().model_info(self._source.path, revision=self._source.revision, files_metadata=True)
        self._sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        self._parameters = info.safetensors.total if info.safetensors else 0

    def _download(self, name: str) -> str:
        return hf_hub_download(self._source.path, name, revision=self._source.revision)

    def _wait(self, download: Future[str], total: int, name: str) -> None:
        while True:
            try:
                download.result(_SIGN)
                return
            except TimeoutError as error:
                if download.done():
                    raise self._source.failure(error, f"{name} of ") from error
                self._advance(self._done + self._under_way(), total, name)
            except OSError as error:
                if error.errno is not None and not hasattr(error, "response"):
                    raise  # the disk's or the system's own
                raise self._source.failure(error, f"{name} of ") from error
            except Exception as error:
                raise self._source.failure(error, f"{name} of ") from error

    def _under_way(self) -> int:
        """Bytes of the file that is just being fetched, as the hub client's cache shows them."""
        blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self._source.path, repo_type="model") / "blobs"
        try:
            return max((path.stat().st_size for path in blobs.glob("*.incomplete")), default=0)
        except OSError:
            return 0  # it was complete in this very moment


def _same_depth(name: str, pattern: str) -> bool:
    """A pattern's star does not reach into folders."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)
