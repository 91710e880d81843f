"""The one exception whose message is meant for the user: a stage prints it alone and exits with 1."""


class UserError(Exception):
    """Bad input, a refused combination, a damaged file: what is wrong, where, and what to do."""
