"""The one exception whose message is meant for the user: a stage prints it alone and exits with 1."""


class UserError(Exception):
    """Bad input, a refused combination, a damaged file: what is wrong, where, and what to do."""


def missing(path) -> str:
    """What to do about an input that is not there; stages have no network, so only Snakemake can make it."""
    return (
        f"{path} is not there. `snakemake {path}` makes it, with the --configfile of its experiment; what is "
        "fetched needs a network: on a cluster, run that on the login node"
    )
