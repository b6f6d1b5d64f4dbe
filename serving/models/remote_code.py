"""Whether modelling code that comes with a checkpoint may run.

Called by `engine/start/transformers_loader.py` before such code is imported. Comes in: the
settings. Goes out: nothing, or a `StartupError` that says why not. A name on the Hub can point to
other code tomorrow; a commit cannot.
"""

import re

from serving.models.artefacts import refuse
from serving.models.hub import is_local
from serving.settings import Settings

COMMIT = re.compile(r"[0-9a-f]{40}")


def check_remote_code(settings: Settings) -> None:
    """Refuse to run code that is not trusted, or that may change from one start to the next.

    Local directories are what they are: whoever wrote them has pinned them.
    """
    if not settings.trust_remote_code:
        refuse(
            f"{settings.model_id or 'the model'} can only run with code from its repository",
            "read that code, then set --trust-remote-code and --revision to the commit you read",
        )
    if settings.trust_unpinned_code or is_local(settings.model_id):
        return
    if not COMMIT.fullmatch(settings.revision or ""):
        refuse(
            f"--trust-remote-code runs code of {settings.model_id}, and `revision` "
            f"{settings.revision or 'main'} is not a commit: whoever may write to the repository "
            "could run other code here at the next start",
            "set --revision to the 40 digits of a commit, or --trust-unpinned-code to accept this",
        )
