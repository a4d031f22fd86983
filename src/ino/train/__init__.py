"""Training. The package can be called: `ino.train(config, out=...)` is `ino.pretrain.pretrain`."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Path:
        """See `ino.pretrain.pretrain`."""
        return import_module("ino.pretrain").pretrain(*args, **options)


sys.modules[__name__].__class__ = _Package
