"""What is asked: data, loss, metric, and the shapes that go in and come out."""

from mixers.registry import Registry

TASKS = Registry("task", {"digits": "experiments.tasks.digits:Digits"})
