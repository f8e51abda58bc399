"""budget.max_cost: the seconds that money buys on this device, over all attempts of a run."""

from slm.errors import UserError
from slm.files import jsonl
from slm.planning.devices import price_of
from slm.run.prepare import Job


def time_limit(job: Job) -> tuple[float | None, str]:
    """The seconds of this attempt, by budget.max_time or what earlier attempts have left of budget.max_cost, whichever
    ends first, and its name. None: no limit.

    Raises UserError for a device without a price, or if the cost is reached.
    """
    budget, limit = job.config.budget, job.config.budget.max_seconds()
    if budget.max_cost is None:
        return limit, "budget.max_time"
    price = price_of(job.hardware, job.config.price_per_hour)
    if not price:
        raise UserError(
            f"budget.max_cost={budget.max_cost:g} needs a price, and conf/devices.yaml has none for "
            f"{job.hardware.name}; give price_per_hour=<of this machine>"
        )
    spent = max(jsonl.numbers(job.run_dir / "metrics.jsonl", "seconds"), default=0.0)
    left = 3600 * budget.max_cost / price - spent
    if left <= 0:
        raise UserError(
            f"earlier attempts of {job.run_dir} have used up budget.max_cost={budget.max_cost:g} "
            f"({spent / 3600:.3g} hours at {price:g}); give more"
        )
    return (limit, "budget.max_time") if limit is not None and limit < left else (left, "budget.max_cost")
