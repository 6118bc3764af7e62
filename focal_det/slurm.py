"""Jobs of a Slurm cluster, through submitit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from .messages import parse_value


def make_executor(folder: Path, words: Sequence[str], cluster: Optional[str] = None) -> Any:
    """submitit's executor.

    Args:
        folder: of its logs.
        words: KEY=VALUE parameters; a value is a Python literal or a text.
        cluster: None for Slurm, where there is one; "local" for this machine.

    Raises:
        ModuleNotFoundError: no submitit; says how to get it.
        ValueError: a word of another form.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--launcher slurm needs submitit: pip install submitit") from None
    parameters = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ValueError(f"--slurm takes KEY=VALUE, got {word!r}")
        parameters[key] = parse_value(value)
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**parameters)
    return executor
