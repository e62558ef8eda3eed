"""The durable workflow: snapshot → check → fit → evaluate → publish → stage → promote, and its conclusion.

DBOS records what each step returned. A trainer that is killed anywhere is restarted, and the workflow goes on behind
the last step that returned; the step that was under way runs again, which every step allows for (steps.py). Workflow
ids are derived from what is retrained on, so that the same trigger met twice is the same workflow.

Functions are registered once, when this module is imported; `attach` says which model's steps they work on.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from dbos import DBOS, SetWorkflowID
from trimtab.trainer.errors import ServerGone
from trimtab.trainer.faults import crash_point
from trimtab.trainer.steps import Json, Steps

__all__ = ["STEPS", "attach", "pending", "run", "workflow_id"]

STEPS = ("snapshot", "check", "fit", "evaluate", "publish", "stage", "promote", "conclude")

GONE = 75
"""Exit status of a trainer whose server went away in the middle of a step: the step runs again with the next one."""

_steps: dict[str, Steps] = {}
_on_step: Callable[[str, str], None] = print


def attach(steps: dict[str, Steps], on_step: Callable[[str, str], None]) -> None:
    """Which steps belong to a model's name, and who is told when one begins ("" when a workflow ends)."""
    global _steps, _on_step
    _steps, _on_step = steps, on_step


def _step(name: str) -> Callable[[Callable[..., Json]], Callable[..., Json]]:
    """Registers a step. It answers with an end instead of raising: an error is a verdict, with its reason."""

    def register(function: Callable[..., Json]) -> Callable[..., Json]:
        @functools.wraps(function)
        def guarded(model: str, *args: Any) -> Json:
            _on_step(model, name)
            crash_point(name, "before")
            try:
                result = function(_steps[model], *args)
            except ServerGone as error:
                # Raising would end the workflow for good. Leaving now lets it go on with the next server.
                print(f"trainer: {error}; {name} will run again", file=sys.stderr, flush=True)
                os._exit(GONE)
            except Exception as error:
                if name == "conclude":
                    raise
                traceback.print_exc()
                result = {"end": ["abandoned", f"{name} failed: {type(error).__name__}: {error}"]}
            crash_point(name, "after")
            return result

        return DBOS.step(name=name)(guarded)

    return register


@_step("snapshot")
def _snapshot(steps: Steps, workflow: str) -> Json:
    return steps.snapshot(workflow)


@_step("check")
def _check(steps: Steps, workflow: str, cut: Json, recipe: str) -> Json:
    return steps.check(workflow, cut, recipe)


@_step("fit")
def _fit(steps: Steps, workflow: str, cut: Json, recipe: str) -> Json:
    return steps.fit(workflow, cut, recipe)


@_step("evaluate")
def _evaluate(steps: Steps, workflow: str, cut: Json, fitted: Json, recipe: str) -> Json:
    return steps.evaluate(workflow, cut, fitted, recipe)


@_step("publish")
def _publish(steps: Steps, workflow: str, cut: Json, fitted: Json, judged: Json, recipe: str) -> Json:
    return steps.publish(workflow, cut, fitted, judged, recipe)


@_step("stage")
def _stage(steps: Steps, workflow: str, fitted: Json) -> Json:
    return steps.stage(workflow, fitted)


@_step("promote")
def _promote(steps: Steps, workflow: str, cut: Json, fitted: Json, judged: Json) -> Json:
    return steps.promote(workflow, cut, fitted, judged)


@_step("conclude")
def _conclude(steps: Steps, workflow: str, recipe: str, trigger: str, results: Json) -> Json:
    return steps.conclude(workflow, recipe, trigger, results)


@DBOS.workflow(name="retrain")
def _retrain(model: str, workflow: str, recipe: str, trigger: str) -> Json:
    results: Json = {}
    _steps_until_the_end(model, workflow, recipe, results)
    outcome: Json = _conclude(model, workflow, recipe, trigger, results)
    return outcome


def _steps_until_the_end(model: str, workflow: str, recipe: str, results: Json) -> None:
    """Fills `results` by step, and its `end` with the verdict and the reason."""

    def ended(name: str, result: Json) -> bool:
        results[name] = result
        if "end" in result:
            results["end"] = result["end"]
        return "end" in result

    if ended("snapshot", _snapshot(model, workflow)):
        return
    cut = results["snapshot"]
    if ended("check", _check(model, workflow, cut, recipe)) or ended("fit", _fit(model, workflow, cut, recipe)):
        return
    fitted = results["fit"]
    if ended("evaluate", _evaluate(model, workflow, cut, fitted, recipe)):
        return
    judged = results["evaluate"]
    if ended("publish", _publish(model, workflow, cut, fitted, judged, recipe)):
        return
    if judged["verdict"] == "promoted" and (
        ended("stage", _stage(model, workflow, fitted))
        or ended("promote", _promote(model, workflow, cut, fitted, judged))
    ):
        return
    results["end"] = [judged["verdict"], judged["reason"]]


def workflow_id(model: str, recipe: str, cause: str) -> str:
    """A name that files may bear; the same cause gives the same workflow."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{model}-{recipe}-{cause}")


def run(model: str, workflow: str, recipe: str, trigger: str) -> Json:
    """Runs a workflow to its end, or gives the result of one that ran before under this id."""
    try:
        with SetWorkflowID(workflow):
            outcome: Json = _retrain(model, workflow, recipe, trigger)
            return outcome
    finally:
        _on_step(model, "")


def pending() -> list[Json]:
    """Waits for the workflows that were resumed at launch; their results."""
    done = []
    for status in DBOS.list_workflows(status=["PENDING", "ENQUEUED"]):
        handle: Any = DBOS.retrieve_workflow(status.workflow_id)
        done.append(handle.get_result())
    return done
