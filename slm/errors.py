"""The one exception that means "the user can mend this". Everything else that is raised is our bug."""


class UserError(ValueError):
    """A mistake in a command, a config, data or a checkpoint.

    The message is one line: what was given, what must hold, the likely fix. The command line prints it
    without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class ResourceError(UserError):
    """Not a mistake but a limit of the machine: memory or disk."""

    exit_code = 4
