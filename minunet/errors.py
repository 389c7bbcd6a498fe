"""The one exception for what a user can mend: a wrong folder, file or setting. Its message is one clear sentence."""


class UserError(Exception):
    """Says what came, what is allowed and what to do; the command line prints it and exits with 2."""


class IncompleteError(UserError):
    """A device is there, but not all of the software that it needs."""
