"""`cluster`: planted clusters, whatever the order of the rows; what the columns mean; strange input."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from sklearn.metrics import adjusted_rand_score

from labelmill.operators import cluster as module
from labelmill.operators.cluster import Cluster
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import load_card
from labelmill.operators.models.card import ROOT
from tests.operators.clustering.planted import planted, unit
from tests.operators.clustering.steps import NAMED, SEVERAL, SIZES, WIDTH, build, earlier, run, table, values


def clusters(operator: Cluster, vectors: Any, keys: list[str] | None = None) -> list[Any]:
    return values(run(operator, table(vectors, keys)), "cluster")


@SEVERAL
def test_planted_clusters_are_found(params: dict[str, Any]) -> None:
    vectors, truth = planted(SIZES)
    found = clusters(build(**params), vectors)
    assert adjusted_rand_score(truth, found) > 0.98


@pytest.mark.parametrize("seed", range(3))
def test_images_unlike_all_others_are_noise(seed: int) -> None:
    vectors, truth = planted(SIZES, noise=60, width=256, seed=seed)
    operator = build()
    result = run(operator, table(vectors, kind=embedding(256)))
    found = np.array(values(result, "cluster"))
    assert adjusted_rand_score(truth, found) > 0.98
    assert (found[truth < 0] < 0).mean() > 0.9
    assert np.mean(found < 0) < 0.2
    outlier = np.array(values(result, "outlier"))
    assert np.median(outlier[truth < 0]) > np.quantile(outlier[truth >= 0], 0.95)
    distance = np.array(values(result, "distance"), dtype=float)
    assert (np.isnan(distance) == (found < 0)).all()


@SEVERAL
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(params: dict[str, Any], seed: int) -> None:
    vectors, _ = planted(SIZES, noise=30, spread=1.2)
    vectors[7] = vectors[3]
    operator = build(**{**params, "min_size": 5}, **NAMED)
    keys = [f"{row * 7919 % 1009:04d}.jpg" for row in range(len(vectors))]
    expected = run(operator, table(vectors, keys))
    order = np.random.default_rng(seed).permutation(len(vectors))
    found = run(operator, table(vectors[order], [keys[row] for row in order]))
    for name in ("cluster", "name"):
        assert values(found, name) == [values(expected, name)[row] for row in order]
    for name in ("distance", "outlier"):
        wanted = np.array(values(expected, name), dtype=float)[order]
        np.testing.assert_allclose(np.array(values(found, name), dtype=float), wanted, rtol=1e-5, atol=1e-6)


@SEVERAL
def test_the_number_of_threads_does_not_matter(params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss
    from threadpoolctl import threadpool_limits

    from labelmill.operators.clustering import neighbours

    monkeypatch.setattr(neighbours, "EXACT", 100)
    monkeypatch.setattr(neighbours, "CELL", 8)
    monkeypatch.setattr(neighbours, "PROBES", 4)
    vectors, _ = planted(SIZES, noise=60, spread=1.0)
    before, found = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 4):
            faiss.omp_set_num_threads(threads)
            with threadpool_limits(threads):
                found.append(run(build(**params), table(vectors)))
    finally:
        faiss.omp_set_num_threads(before)
    assert values(found[0], "cluster") == values(found[1], "cluster")
    for name in ("distance", "outlier"):
        one, several = (np.array(values(result, name), dtype=float) for result in found)
        np.testing.assert_allclose(one, several, rtol=1e-6)


def test_many_chunks_give_what_one_gives() -> None:
    vectors, _ = planted(SIZES)
    rows = table(vectors)
    pieces = pa.concat_tables([rows.slice(start, 37) for start in range(0, rows.num_rows, 37)])
    assert pieces.column("embedding").num_chunks > 5
    assert run(build(), pieces).columns == run(build(), rows).columns


@SEVERAL
def test_the_largest_is_the_first(params: dict[str, Any]) -> None:
    vectors, truth = planted([50, 20, 40, 30, 30], seed=3)
    found = clusters(build(**params), vectors)
    numbers = {group: found[truth.tolist().index(group)] for group in range(5)}
    assert [numbers[group] for group in (0, 2, 1)] == [0, 1, 4]
    first, second = sorted((3, 4), key=truth.tolist().index)
    assert (numbers[first], numbers[second]) == (2, 3)


@SEVERAL
def test_the_distance_is_the_cosine_distance_to_the_mean(params: dict[str, Any]) -> None:
    vectors, _ = planted(SIZES, noise=10)
    result = run(build(**params), table(vectors))
    found = np.array(values(result, "cluster"))
    wide = unit(vectors.astype(np.float64))
    for cluster in set(found.tolist()) - {-1}:
        members = wide[found == cluster]
        centre = members.mean(axis=0) / np.linalg.norm(members.mean(axis=0))
        distance = np.array(values(result, "distance"), dtype=float)[found == cluster]
        np.testing.assert_allclose(distance, 1 - members @ centre, atol=1e-6)


def test_copies_count_once() -> None:
    vectors, _ = planted(SIZES, noise=20)
    operator = build()
    alone = run(operator, table(vectors))
    copies = run(operator, table([*vectors, *[vectors[5]] * 500, *[vectors[9]] * 30]))
    before = dict(zip(values(alone, "cluster"), values(copies, "cluster")[: len(vectors)], strict=False))
    assert values(copies, "cluster")[: len(vectors)] == [before[number] for number in values(alone, "cluster")]
    for name in ("distance", "outlier"):
        assert values(copies, name)[: len(vectors)] == values(alone, name)
        assert set(values(copies, name)[len(vectors) : len(vectors) + 500]) == {values(alone, name)[5]}
    assert values(copies, "cluster")[5] == 0


def test_noise_with_many_copies_is_a_cluster() -> None:
    vectors, _ = planted([60, 50], noise=2, width=256, spread=0.3)
    kind = embedding(256)
    found = values(run(build(), table(vectors, kind=kind)), "cluster")
    lonely = found.index(-1)
    more = values(run(build(), table([*vectors, *[vectors[lonely]] * 9], kind=kind)), "cluster")
    assert more[lonely] == 2
    assert more[len(vectors) :] == [2] * 9
    fewer = values(run(build(), table([*vectors, *[vectors[lonely]] * 8], kind=kind)), "cluster")
    assert fewer[lonely] == -1


@SEVERAL
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_hardly_any_images(params: dict[str, Any], count: int) -> None:
    result = run(build(**params), table(planted([count])[0]))
    found = values(result, "cluster")
    if params.get("method") in ("kmeans", "hierarchical"):
        assert min(found, default=0) == 0
    else:
        assert found == [-1] * count
        assert values(result, "distance") == [None] * count
    assert all(value is not None and value > 0 for value in values(result, "outlier"))


@SEVERAL
@pytest.mark.parametrize("count", [2, 9, 10, 500])
def test_all_images_the_same(params: dict[str, Any], count: int) -> None:
    result = run(build(**params), table([planted([1])[0][0]] * count))
    one = params.get("method") in ("kmeans", "hierarchical") or count >= params.get("min_size", 10)
    assert values(result, "cluster") == [0 if one else -1] * count
    assert values(result, "outlier") == [1.0] * count
    assert values(result, "distance") == ([pytest.approx(0, abs=1e-6)] if one else [None]) * count


def test_a_million_copies_of_one_image() -> None:
    vectors, _ = planted([30, 20], width=8, spread=0.2)
    many = np.concatenate([vectors, np.repeat(vectors[:1], 1_000_000, axis=0)])
    array = pa.FixedSizeListArray.from_arrays(pa.array(many.reshape(-1)), 8)
    ids = pa.array(np.arange(len(many)))
    result = run(build(), pa.table({"image_id": ids, "key": ids.cast(pa.string()), "embedding": array}))
    assert result.columns is not None
    assert Counter(result.columns.column("cluster").to_numpy().tolist()).most_common()[0][1] >= 1_000_020


@SEVERAL
def test_unusable_embeddings_fail_and_do_not_count(params: dict[str, Any]) -> None:
    vectors, _ = planted(SIZES)
    operator = build(**params, **NAMED)
    alone = run(operator, table(vectors))
    spoilt: list[Any] = list(vectors)
    keys = [f"{row:06d}.jpg" for row in range(1, len(spoilt) + 1)]
    nan = vectors[0].copy()
    nan[3] = np.nan
    for place, bad in ((0, None), (50, np.zeros(WIDTH)), (len(spoilt), nan)):
        spoilt.insert(place, bad)
        keys.insert(place, f"bad {place}")
    result = run(operator, table(spoilt, keys))
    good = [row for row, key in enumerate(keys) if not key.startswith("bad")]
    assert result.columns is not None and alone.columns is not None
    assert result.columns.take(pa.array(good)).to_pylist() == alone.columns.to_pylist()
    assert result.decisions is not None
    failed = [(decision.decision, decision.reason) for decision in result.decisions if decision.decision != "kept"]
    assert failed == [
        ("failed", "there is no embedding"),
        ("failed", "the embedding must not be all zeros"),
        ("failed", "the embedding must be finite"),
    ]
    for row in set(range(len(keys))) - set(good):
        assert set(result.columns.slice(row, 1).to_pylist()[0].values()) == {None}


@SEVERAL
def test_no_image_is_usable(params: dict[str, Any]) -> None:
    operator = build(**params, **NAMED)
    rows = table([None, np.zeros(WIDTH)])
    result = run(operator, rows)
    assert result.decisions is not None
    assert [decision.decision for decision in result.decisions] == ["failed", "failed"]
    later = run(operator, table([None, *planted([30])[0]], first=3), earlier(operator, rows, result))
    assert values(later, "cluster")[0] is None


def test_more_clusters_than_images() -> None:
    for method in ("kmeans", "hierarchical"):
        assert sorted(clusters(build(method=method, clusters=50), planted([7])[0])) == list(range(7))


@pytest.mark.parametrize("method", ["kmeans", "hierarchical"])
def test_small_clusters_are_dissolved(method: str) -> None:
    vectors, truth = planted([60, 50, 40, 4, 3])
    sizes = Counter(clusters(build(method=method, clusters=5), vectors))
    assert sorted(sizes.values()) == [3, 4, 40, 50, 60]
    found = clusters(build(method=method, clusters=5, min_size=5), vectors)
    assert sorted(set(found)) == [0, 1, 2]
    assert adjusted_rand_score(truth[truth < 3], np.array(found)[truth < 3]) == 1


def test_auto_takes_k_means_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = planted(SIZES, noise=40)
    assert -1 in clusters(build(limit=len(vectors)), vectors)
    beyond = clusters(build(limit=len(vectors) - 1), vectors)
    assert -1 not in beyond
    assert min(Counter(beyond).values()) >= 10
    wide, _ = planted([300], width=2048)
    monkeypatch.setattr(module.centres, "k_means_clusters", lambda points, *rest: np.zeros(len(points), dtype=int))
    kind = embedding(2048)
    assert values(run(build(memory_gb=0.5), table(wide, kind=kind)), "cluster")[0] == -1
    operator = build()
    operator.params = operator.params.model_copy(update={"memory_gb": 0.001})
    assert set(values(run(operator, table(wide, kind=kind)), "cluster")) == {0}


def test_large_datasets_are_judged_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = planted([400, 300, 200, 100], noise=5, spread=0.4)
    monkeypatch.setattr(module, "SAMPLE", 200)
    monkeypatch.setattr(module, "LEAST_SAMPLE", 10)
    result = run(build(method="kmeans", clusters=4), table(vectors))
    found = np.array(values(result, "cluster"))
    assert adjusted_rand_score(truth[truth >= 0], found[truth >= 0]) > 0.98
    assert set(np.argsort(values(result, "outlier"))[-5:].tolist()) == set(np.flatnonzero(truth < 0).tolist())


def test_names_are_the_nearest_of_the_vocabulary() -> None:
    from labelmill.operators.engines.embedding.encoder import text_encoder

    texts = text_encoder(NAMED["model"]).encode([f"a photo of a {name}." for name in NAMED["vocabulary"]])
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), [30, 25, 20])
    noise = unit(random.normal(size=(75, WIDTH))) * np.linalg.norm(texts[0] - texts[1]) / 4
    vectors = unit(texts[truth] + noise).astype(np.float16)
    result = run(build(method="kmeans", clusters=3, **NAMED), table(vectors))
    assert values(result, "name") == [NAMED["vocabulary"][group] for group in truth]


@pytest.mark.parametrize(
    "params", [{"min_size": 5}, {"method": "kmeans", "clusters": 4}, {"method": "hierarchical"}], ids=str
)
def test_drawn_things_are_grouped_and_named(params: dict[str, Any]) -> None:
    from PIL import Image

    from labelmill.operators.engines.embedding.encoder import image_encoder
    from labelmill.operators.miniatures.crops import draw_object
    from labelmill.operators.miniatures.objects import colours, kinds

    card = load_card(ROOT / "conf" / "models" / "clip-miniature.yaml")
    things = [("car", "red"), ("boat", "blue"), ("bottle", "yellow"), ("fish", "purple")]
    random, encoder = np.random.default_rng(0), image_encoder(card)
    pictures = [Image.fromarray(draw_object(*thing, random)) for thing in things for _ in range(20)]
    vectors = encoder.encode([encoder.prepare(picture) for picture in pictures]).astype(np.float16)
    vocabulary = [f"{colour} {kind}" for kind in kinds() for colour in colours()]
    operator = Cluster(Cluster.Params.model_validate({**params, "model": card, "vocabulary": vocabulary}))
    operator.load()
    result = run(operator, table(vectors, kind=embedding(vectors.shape[1])))
    truth = np.repeat(np.arange(4), 20)
    assert adjusted_rand_score(truth, values(result, "cluster")) > 0.9
    said = [f"{things[group][1]} {things[group][0]}" for group in truth]
    assert np.mean([name == wanted for name, wanted in zip(values(result, "name"), said, strict=True)]) > 0.9


def test_columns_are_those_promised() -> None:
    plain = pa.schema([("cluster", pa.int32()), ("distance", pa.float32()), ("outlier", pa.float32())])
    assert build().writes() == plain
    assert build(vocabulary=["cat"]).writes() == plain
    assert build(**NAMED).writes() == plain.append(pa.field("name", pa.string()))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"method": "dbscan"}, "'auto', 'hdbscan', 'kmeans' or 'hierarchical'"),
        ({"clusters": 5}, "clusters needs the method kmeans or hierarchical but method is auto"),
        ({"clusters": 5, "method": "hdbscan"}, "but method is hdbscan"),
        ({"clusters": 0, "method": "kmeans"}, "greater than or equal to 1"),
        ({"min_size": 1}, "min_size must be at least 2 with method auto but is 1"),
        ({"min_size": 0, "method": "kmeans"}, "greater than or equal to 1"),
        ({"neighbours": 0}, "greater than or equal to 1"),
        ({"memory_gb": 0.1}, "greater than or equal to 0.5"),
        ({"memory_gb": float("inf")}, "finite"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"model": load_card(ROOT / "conf/models/grounding-dino-random.yaml")}, "must be a model card for embedding"),
        ({"templates": ["a photo"]}, "must contain {}"),
    ],
)
def test_refuses(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Cluster.Params.model_validate(params)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.list_(pa.float32()), pa.list_(pa.int8(), 4), pa.list_(pa.float16(), 0)]
)
def test_refuses_what_is_not_an_embedding(kind: pa.DataType) -> None:
    with pytest.raises(OperatorError, match="column 'embedding' must hold vectors of one length but is"):
        Cluster(Cluster.Params()).check({"embedding": kind})


def test_refuses_embeddings_of_another_model_than_names_them() -> None:
    operator = Cluster(Cluster.Params.model_validate(NAMED))
    with pytest.raises(OperatorError, match=r"must be fixed_size_list<.*>\[32\] but is"):
        operator.check({"embedding": embedding(512)})


@pytest.mark.parametrize("vocabulary", [None, {}])
def test_refuses_names_without_a_vocabulary(vocabulary: Any) -> None:
    operator = Cluster(Cluster.Params(model=NAMED["model"], vocabulary=vocabulary))
    with pytest.raises(OperatorError, match="vocabulary must name what clusters may be called") as error:
        operator.check({"embedding": embedding(WIDTH)})
    assert error.value.param == ("vocabulary",)


def test_fingerprint() -> None:
    plain, unnamed = build(), build(vocabulary=["cat"], templates=["a {}"])
    assert plain.params.result_params() == unnamed.params.result_params()
    assert plain.digest() == unnamed.digest() == ""
    turned = build(model=NAMED["model"], vocabulary=NAMED["vocabulary"][::-1])
    assert build(**NAMED).digest() != turned.digest()
    assert "vocabulary" in turned.params.result_params()
    assert "model" not in turned.params.result_params()
