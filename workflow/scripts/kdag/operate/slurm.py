"""What Snakemake's plugin for SLURM (2.8) has to be helped with."""

import functools


def remember_how_long_jobs_are_shown() -> None:
    """Let the plugin ask the controller for MinJobAge until it has answered once, and not again.

    It asks before every look at the jobs. While the controller is away it gets no answer, takes squeue for
    useless and turns to sacct, which never answers on a cluster without accounting: the rest of its
    `slurm-status-attempts` then goes there, also when squeue works again, and jobs that end are not seen.
    """
    import snakemake_executor_plugin_slurm as plugin

    plugin.get_min_job_age = until_known(plugin.get_min_job_age)


def until_known(ask):
    """ask(), and once that is not None its answer for ever."""
    known = []

    @functools.wraps(ask)
    def asked():
        if not known and (answer := ask()) is not None:
            known.append(answer)
        return known[0] if known else None

    return asked
