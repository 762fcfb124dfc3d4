"""Pictures that kill the process that reads or decodes them, on workers of a cluster too.

A worker imports this module when it gets a ``PoisonCorpus``, and with it the fatal bytes.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from rrcluster.io import decode, webdataset
from rrcluster.io.corpus import CorpusSpec

DEADLY_PICTURE = b"\xff\xd8\xff this picture kills"
DEADLY_CAPTION = b'{"caption": "this caption kills"}'


class PoisonCorpus(CorpusSpec):
    """Settings of a corpus that holds deadly bytes."""


def _fatal(function: Any, bytes_: bytes) -> Any:
    def wrapped(content: bytes, *rest: Any, **named: Any) -> Any:
        if content == bytes_:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(content, *rest, **named)

    return wrapped


decode.decode = _fatal(decode.decode, DEADLY_PICTURE)
webdataset.caption_and_uid = _fatal(webdataset.caption_and_uid, DEADLY_CAPTION)
