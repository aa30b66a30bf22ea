"""The flow `compare`: one pool, several selections of it, the same training on each."""

from typing import Any

import pyarrow as pa
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from vlmdata import snapshot
from vlmdata.compare import measures, selections, trial
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.flows import curate
from vlmdata.parts import write_parquet
from vlmdata.pipelines import select as select_stage
from vlmdata.pipelines import shards as shards_stage
from vlmdata.plan import STAGES, Plan, made_from, make_plan
from vlmdata.recipe import ContrastiveJob, Recipe, Select
from vlmdata.report import comparison, write_report
from vlmdata.train import source

MEASURED = list(STAGES[: STAGES.index("select")])


def run_here(recipe: Recipe, chosen: dict[str, Select], seeds: int) -> dict[str, Any]:
    """The flow `compare` in this process; its parameters are without the secrets of the recipe's URLs."""
    token = curate.whole.set(recipe)
    try:
        given = {name: select.model_dump(mode="json") for name, select in chosen.items()}
        return compare(snapshot.without_secrets(recipe.model_dump(mode="json")), given, seeds)
    finally:
        curate.whole.reset(token)


@flow(name="compare", validate_parameters=False)
def compare(recipe: dict[str, Any], chosen: dict[str, dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Measure the pool, publish all of it that has an image as a snapshot, train the recipe's first job on each
    selection with each of `seeds` seeds, and write compare.json and compare.html.

    chosen: name -> a selection as `Select.model_dump()` gives it. Returns what compare.json holds. What is done is
    found done: tables, snapshot, and each training by the key of all that decides it. Raises VlmdataError subclasses.
    """
    parsed = curate.whole.get() or Recipe.model_validate(recipe)
    dataset, job = Dataset(parsed.dataset), selections.first_job(parsed)
    test = _test_shards(parsed, job)
    plan = make_plan(parsed)
    selects = {name: Select.model_validate(options) for name, options in chosen.items()}
    plans = selections.plans(plan, {"": selections.RAW} | selects)
    curate.curate(recipe, None, MEASURED)
    with curate.at_work(dataset, "vlmdata compare", parsed.runner) as runner:
        plans = {name: curate.with_runner(one, runner) for name, one in plans.items()}
        run = curate.Run(plans.pop(""), dataset, ("select", "shards"))
        run.ready("dedup", list(plan.tables))
        manifest = _pool(run)
        shards = {job.train_split: source.of_snapshot(dataset, manifest)[job.train_split], job.test_split: test}
        test_sha256 = trial.sha256_of(test)
        result: dict[str, Any] = {
            "format_version": 1,
            "snapshot": manifest["number"],
            "test": parsed.compare.test,
            "test_sha256": test_sha256,
            "job": job.model_dump(mode="json"),
            "seeds": seeds,
            "samples_seen": job.steps * job.batch * job.accumulate,
            "selections": {},
        }
        measured = {}
        for name, judged in plans.items():
            rows, funnel = judge.with_options(name=f"select {name}")(judged, run, name)
            done = []
            for seed in range(job.seed, job.seed + seeds):
                seeded = job.model_copy(update={"seed": seed})
                key = trial.trial_key(seeded, rows, manifest, test_sha256)
                named = train.with_options(name=f"train {name}, seed {seed}")
                done.append(named(dataset, seeded, shards, rows, key, name))
            measured[name] = measures.hits([each["ranks"] for each in done])
            result["selections"][name] = {
                "select": selects[name].model_dump(mode="json", exclude_defaults=True),
                "pairs": rows.num_rows,
                "samples": int(rows["copies"].to_numpy().sum()),
                "distinct": int(done[0]["metrics"]["train/samples"]),
                "funnel": funnel,
                "loss": [each["metrics"]["train/loss"] for each in done],
            }
        result |= {"queries": measured[name].shape[2], **measures.compared(measured)}
        dataset.write_json("compare/compare.json", result)
        dataset.write_bytes("compare/compare.html", comparison.page(dataset, result).encode("utf-8", "replace"))
        if dataset.latest() == manifest:
            write_report(dataset, manifest)
    return result


def _test_shards(recipe: Recipe, job: ContrastiveJob) -> list[str]:
    """The test's shards. Raises InputError where there are none, or the pool is not decontaminated against them."""
    if recipe.compare.test is None:
        raise InputError("compare.test: name the clean pairs to measure on: shards, or a dataset")
    found = source.shards(recipe.compare.test, job.train_split, job.test_split)
    test = found.get(job.test_split) or [path for paths in found.values() for path in paths]
    selections.check_clean(recipe, test)
    return test


def _pool(run: curate.Run) -> dict[str, Any]:
    """The manifest of the snapshot that holds the whole pool; published now, if it is not there."""
    dataset = run.dataset
    for number in reversed(dataset.numbers()):
        manifest = dataset.snapshot(number)
        if made_from(manifest, run.plan, run.tables.values()) and not snapshot.missing_file(dataset, manifest):
            return manifest
    published = curate.publish(run)
    assert published is not None, "shards are among the stages"
    shards_stage.clean(dataset)
    return published


@task(name="judge", cache_policy=NO_CACHE)
def judge(plan: Plan, run: curate.Run, name: str) -> tuple[pa.Table, list[dict[str, Any]]]:
    """What a selection keeps of the pool (uid, copies), also as `compare/selections/<name>.parquet`; and its funnel."""
    dataset = run.dataset
    rows, funnel = select_stage.kept(plan, dataset, run.tables, snapshot.next_number(dataset))
    if not rows.num_rows:
        raise InputError(f"{name}: the selection keeps no pair of the pool")
    with dataset.spool() as folder:
        write_parquet(rows, folder / "rows.parquet")
        dataset.commit(folder / "rows.parquet", f"compare/selections/{name}.parquet")
    get_run_logger().info("%s: keeps %d pairs", name, rows.num_rows)
    return rows, funnel


@task(name="train", cache_policy=NO_CACHE)
def train(
    dataset: Dataset, job: ContrastiveJob, shards: dict[str, list[str]], rows: pa.Table, key: str, name: str
) -> dict[str, Any]:
    """One training; see `trial.run`."""
    copies = dict(zip(rows["uid"].to_pylist(), rows["copies"].to_pylist(), strict=True))
    try:
        return trial.run(dataset, job, shards, copies, key)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
