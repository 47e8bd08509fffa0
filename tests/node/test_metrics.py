from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from node.metrics import Metrics
from node.stages import Stages


def samples(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_is_counted_is_rendered_under_its_name() -> None:
    metrics = Metrics()
    metrics.commit_height.set(42)
    metrics.transactions_admitted.labels("client").inc(3)
    metrics.transactions_executed.labels("not_admin").inc()
    metrics.persist_seconds.observe(0.003)
    found = samples(metrics)
    assert found["carequorum_commit_height"] == 42
    assert found["carequorum_transactions_admitted_total{source=client}"] == 3
    assert found["carequorum_transactions_executed_total{code=not_admin}"] == 1
    assert found["carequorum_persist_seconds_count"] == 1
    assert found["carequorum_persist_seconds_bucket{le=0.0025}"] == 0
    assert found["carequorum_persist_seconds_bucket{le=0.005}"] == 1


def test_two_nodes_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.elections.inc()
    assert samples(one)["carequorum_elections_total"] == 1
    assert samples(other)["carequorum_elections_total"] == 0


def test_every_series_is_an_attribute_of_the_same_name() -> None:
    """What the code calls a series is what the operator sees."""
    metrics = Metrics()
    rendered = {family.name for family in text_string_to_metric_families(metrics.render().decode())}
    attributes = {
        f"carequorum_{name}"
        for name, value in vars(metrics).items()
        if isinstance(value, Counter | Gauge | Histogram | Stages)
    }
    assert attributes == {name for name in rendered if not name.endswith("_created")}
