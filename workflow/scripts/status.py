"""Say what of an experiment is done, running, failed and waiting, with the last line of each log.

python workflow/scripts/status.py [--config experiments/demo.yaml]

It takes no lock and changes no file of the run: ask while a run goes on as often as you like, also on SLURM.
"""

from pathlib import Path

from kdag.job import cli
from kdag.job.errors import UserError
from kdag.operate import status


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="instead of config.yaml")
    return parser


def main(args):
    if args.config and not args.config.is_file():
        raise UserError(f"{args.config}: no such file")
    everything = status.jobs(status.dry_run(args.config, "--forceall"))
    open_jobs = set(status.jobs(status.dry_run(args.config)))
    kept = Path(".snakemake")
    begun, ended = status.records(kept / "incomplete"), status.records(kept / "metadata")
    past = status.runs(kept / "log")
    alive = bool(past) and status.going_on(past[0], Path())
    states = {
        job: status.state(job, begun, ended, past, alive) if job in open_jobs else status.DONE
        for job in everything
    }
    done = sum(state == status.DONE for state in states.values())
    print(f"{done} of {len(states)} jobs done; {'a run is going on' if alive else 'no run is going on'}\n")
    print(status.table(states))
    if lines := status.details(states):
        print("", *lines, sep="\n")


if __name__ == "__main__":
    cli.run(main, arguments())
