"""One job in the console: steps and signals, artifacts, its family, and what makes another job of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from console_kit import page_of, post, regions_of
from page_reader import Element, read
from queue_pg_api.pages import job
from queue_pg_api.pages.family import WIDTH, draw

from queue_pg.client import Queue
from queue_pg.looking import Edge, Family, Relative
from queue_pg.models import ClaimedJob, JobState, NewJob, Parent

HOSTILE = '<script>alert("1")</script>\u202eevil'


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


async def part(web: httpx.AsyncClient, prefix: str, job_id: object, name: str, query: str = "") -> Element:
    answer = await web.get(f"{prefix}/console/jobs/{job_id}?part={name}{query}")
    assert answer.status_code == 200, answer.text
    return read(answer.text, prefix)


def form_of(root: Element, name: str) -> Element:
    [form] = [each for each in root.all("form") if each.attributes.get("action", "").endswith(f"/{name}")]
    return form


async def waiting(queue: Queue, event: str = "review") -> ClaimedJob:
    """Return a job that has finished the step `draft` and waits for an event."""
    await queue.submit("publish", {"title": "Queues"})
    [claimed] = await queue.claim("w", ["default"])
    async with queue.connection() as conn:
        pair = (claimed.id, claimed.lease_token)
        await conn.execute("select queue_pg.save_step(%s, %s, 'draft', '{\"words\": 812}')", pair)
        await conn.execute("select queue_pg.wait_for_event(%s, %s, %s)", (*pair, event))
        await conn.execute("select queue_pg.wait(%s, %s)", pair)
    return claimed


# ---- steps and signals ----------------------------------------------------------------------------------------------


async def test_steps_and_what_the_job_waits_for(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    plain = await queue.submit("chat")
    assert (await part(web, prefix, plain.id, "steps")).text == ""
    await queue.cancel(plain.id)
    claimed = await waiting(queue, HOSTILE)
    found = await regions_of(web, f"{prefix}/console/jobs/{claimed.id}", prefix, job.page)
    draft, review = found["steps"].all("ol")[0].children
    assert "finished" in draft.text
    assert '"words": 812' in draft.text
    assert "waits for this event" in review.text
    assert "⟨U+202E⟩" in review.text
    assert [each.text for each in review.all("button")][:2] == ["Approve", "Reject"]
    await queue.cancel(claimed.id)
    ended = await part(web, prefix, claimed.id, "steps")
    assert "waited for this event" in ended.text
    assert ended.all("button") == []


@pytest.mark.parametrize(
    ("fields", "payload"),
    [
        ({"answer": "approve"}, {"approved": True}),
        ({"answer": "reject", "payload": "{"}, {"approved": False}),
        ({"answer": "payload", "payload": '{"by": "ada"}'}, {"by": "ada"}),
        ({"answer": "payload", "payload": ""}, None),
        ({}, None),
    ],
)
async def test_an_event_is_signalled_by_form(
    web: httpx.AsyncClient, prefix: str, queue: Queue, fields: dict[str, str], payload: object
) -> None:
    claimed = await waiting(queue)
    address = f"{prefix}/console/jobs/{claimed.id}"
    answer = await post(web, f"{address}/signal", name="review", **fields)
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    assert (await queue.get(claimed.id)).state is JobState.QUEUED
    async with queue.connection() as conn:
        cursor = await conn.execute("select payload from queue_pg.job_signals where job_id = %s", (claimed.id,))
        assert await cursor.fetchone() == (payload,)


async def test_a_wrong_signal_comes_back(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    claimed = await waiting(queue)
    address = f"{prefix}/console/jobs/{claimed.id}/signal"
    answer = await post(web, address, name="review", answer="payload", payload='{"by": }')
    assert answer.status_code == 422
    root = read(answer.text, prefix)
    assert root.all("p", id="fault-signal")[0].text.startswith("payload")
    assert root.all("textarea", name="payload", aria_invalid="true")[0].text == '{"by": }'
    for fields in ({"name": ""}, {"name": "x" * 201}, {"name": "review", "answer": "maybe"}):
        assert (await post(web, address, **fields)).status_code == 422
    assert (await queue.get(claimed.id)).state is JobState.SCHEDULED
    await queue.cancel(claimed.id)
    answer = await post(web, address, name="review", answer="approve")
    assert answer.status_code == 409
    assert "Not in this state" in read(answer.text, prefix).text
    assert (await post(web, f"{prefix}/console/jobs/{uuid4()}/signal", name="review")).status_code == 404


async def test_a_retry_may_do_the_steps_again(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    claimed = await waiting(queue)
    await queue.cancel(claimed.id)
    headline = await part(web, prefix, claimed.id, "headline")
    assert headline.all("input", name="fresh")
    address = f"{prefix}/console/jobs/{claimed.id}/retry"
    answer = await post(web, address, max_attempts="zero", fresh="yes")
    assert answer.status_code == 422
    root = read(answer.text, prefix)
    assert root.all("html")[0].attributes["data-here"] == address.removesuffix("/retry")
    assert "checked" in root.all("input", name="fresh")[0].attributes
    assert root.all("input", name="max_attempts")[0].attributes["value"] == "zero"
    assert root.all("p", id="fault-retry")
    assert (await post(web, address, fresh="yes")).status_code == 303
    assert await queue.steps(claimed.id) == []


async def test_attempts_as_a_table(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    submitted = await queue.submit("chat", max_attempts=5)
    for message in ("first", "second"):
        [claimed] = await queue.claim(f"worker-{message}", ["default"])
        await queue.fail(claimed.id, claimed.lease_token, {"code": "timeout", "message": message}, delay=0)
    await queue.claim("worker-3", ["default"])
    timeline = await part(web, prefix, submitted.id, "timeline")
    rows = [[cell.text for cell in row.children] for row in timeline.all("tbody")[0].children]
    assert [row[:2] for row in rows] == [["1", "worker-first"], ["2", "worker-second"], ["3", "worker-3"]]
    assert [row[-1] for row in rows] == ["failed timeout first", "failed timeout second", "runs"]


async def test_what_happens_around_attempts_is_none(
    web: httpx.AsyncClient, prefix: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    submitted = await queue.submit("chat")
    [claimed] = await queue.claim("a", ["default"])
    await queue.reprioritize(claimed.id, 5)
    await queue.signal(claimed.id, "go")
    await queue.release(claimed.id, claimed.lease_token)
    [claimed] = await queue.claim("b", ["default"])
    await queue.reprioritize(claimed.id, 6)

    async def rows() -> list[list[str]]:
        timeline = await part(web, prefix, submitted.id, "timeline")
        found = [[cell.text for cell in row.children] for row in timeline.all("tbody")[0].children]
        return [[row[0], row[1], row[-1]] for row in found]

    assert await rows() == [["1", "a", "released"], ["1", "b", "runs"]]
    await queue.release(claimed.id, claimed.lease_token)
    await queue.cancel(claimed.id)
    assert await rows() == [["1", "a", "released"], ["1", "b", "released"]]
    await conn.execute("delete from queue_pg.job_events where seq <= 3")
    assert [row[-1] for row in await rows()] == ["earlier ones are forgotten", "released", "released"]


# ---- output by stream -----------------------------------------------------------------------------------------------


async def test_one_stream_of_the_log(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await queue.submit("chat")
    [claimed] = await queue.claim("w", ["default"])
    said = [("log", {"stream": stream, "line": f"{stream} speaks"}) for stream in ("stdout", "stderr", "x & y")]
    await queue.append_events(claimed.id, claimed.lease_token, [*said, ("chunk", {"text": "streamed"})])
    everything = await part(web, prefix, claimed.id, "output")
    assert [each.text for each in everything.all("nav")[0].all("a")] == ["all", "stderr", "stdout", "x & y"]
    assert "streamed" in everything.text
    [link] = [each for each in everything.all("a") if each.text == "x & y"]
    page = await page_of(web, link.attributes["href"], prefix)
    [box] = page.all("div", role="log")
    assert [child.text.rpartition("x & y ")[2] for child in box.children] == ["speaks"]
    none = await part(web, prefix, claimed.id, "output", "&stream=other")
    assert "Nothing on this stream yet" in none.text
    for query in ("&stream=" + "x" * 65, "&stream=a%00"):
        assert (await web.get(f"{prefix}/console/jobs/{claimed.id}?part=output{query}")).status_code == 422


# ---- artifacts ------------------------------------------------------------------------------------------------------


async def test_artifacts_can_be_fetched(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    submitted = await queue.submit("chat")
    assert (await part(web, prefix, submitted.id, "artifacts")).text == ""
    names = ["a b/ü & 100 %.md", "plain.bin", "b&amp;b.txt"]
    for name in names:
        await queue.put_artifact(submitted.id, name, name.encode() * 100, content_type="text/plain")
    section = await part(web, prefix, submitted.id, "artifacts")
    rows = {row.attributes["data-key"]: row for row in section.all("tbody")[0].children}
    assert set(rows) == set(names)
    for name, row in rows.items():
        assert "text/plain" in row.text
        assert "as an input" in row.text
        [link] = row.all("a")
        assert "download" in link.attributes
        answer = await web.get(link.attributes["href"])
        assert (answer.status_code, answer.content) == (200, name.encode() * 100)


# ---- family ---------------------------------------------------------------------------------------------------------


async def test_parents_children_and_theirs(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    alone = await queue.submit("chat", queue="elsewhere")
    assert (await part(web, prefix, alone.id, "family")).text == ""
    ids = {
        name: made.id
        for name, made in zip(
            ("page", "summary", "german", "report"),
            await queue.submit_graph(
                [
                    NewJob(kind="fetch", key="page"),
                    NewJob(kind="summarise", key="summary", depends_on=["page"]),
                    NewJob(kind="translate", key="german", depends_on=["page"]),
                    NewJob(kind=HOSTILE, depends_on=["summary", Parent("german", on_unsuccessful="run")]),
                ]
            ),
            strict=True,
        )
    }
    section = await part(web, prefix, ids["summary"], "family")
    [parents] = section.all("ul", data_key="parents")
    [children] = section.all("ul", data_key="children")
    assert parents.text.startswith("○ queued fetch")
    assert "as page" in parents.text
    assert "which calls it summary" in children.text
    # The picture has what is further away too, each job a link to it.
    boxes = section.all("svg")[0].all("a")
    assert {each.attributes["href"].rpartition("/")[2] for each in boxes} == {
        str(ids[name]) for name in ("page", "summary", "report")
    }
    assert [each.attributes.get("aria-current") for each in boxes].count("page") == 1
    assert f"family:{ids['summary']}" in section.children[0].attributes["data-topics"]
    report = await part(web, prefix, ids["report"], "family")
    assert len(report.all("svg")[0].all("a")) == 4
    assert "runs all the same" in report.text
    assert "\u202e" not in (await web.get(f"{prefix}/console/jobs/{ids['page']}")).text
    for link in report.all("a"):
        assert (await web.get(link.attributes["href"])).status_code == 200


async def test_a_wide_family_is_cut(
    web: httpx.AsyncClient, prefix: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await queue.submit_graph(
        [NewJob(kind="root", key="root"), *(NewJob(kind="leaf", depends_on=["root"]) for _ in range(30))]
    )
    monkeypatch.setattr(job, "MAX_EDGES", 10)
    section = await part(web, prefix, made[0].id, "family")
    assert "Only the nearest" in section.text
    assert len(section.all("svg")[0].all("a")) == 11


def test_a_child_is_drawn_right_of_all_its_parents() -> None:
    ids = [UUID(int=number) for number in range(1, 8)]
    pairs = [(0, 1), (1, 2), (0, 2), (2, 3), (4, 3), (5, 6)]
    edges = [
        Edge(parent=ids[parent], child=ids[child], name=str(child), on_unsuccessful="cancel", outcome=None)
        for parent, child in pairs
    ]
    relatives = {each: Relative(id=each, kind="k", state=JobState.WAITING) for each in ids}
    picture = draw(Family(relatives=relatives, edges=edges))
    at = {box.job.id: (box.x, box.y) for box in picture.boxes}
    for edge in edges:
        assert at[edge.parent][0] + WIDTH <= at[edge.child][0]
    assert len(set(at.values())) == len(ids)
    assert all(0 <= x < picture.width and 0 <= y < picture.height for x, y in at.values())
    assert len(picture.lines) == len(edges)
    empty = draw(Family(relatives={}, edges=[]))
    assert (empty.boxes, empty.lines) == ([], [])


# ---- chain and rerun ------------------------------------------------------------------------------------------------


async def test_a_prompt_that_takes_the_output(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    first = await queue.submit("chat", {"prompt": "one"}, queue="gpu")
    root = await page_of(web, f"{prefix}/console/jobs/{first.id}", prefix)
    form = form_of(root, "chain")
    assert form.all("textarea", name="prompt")[0].text == "{{ parents.parent.output.text }}"
    assert form.all("input", name="queue")[0].attributes["value"] == "gpu"
    answer = await post(
        web, form.attributes["action"], prompt="Shorter: {{ parents.parent.output.text }}", model="small", queue="gpu",
        on_unsuccessful="fail",
    )  # fmt: skip
    assert answer.status_code == 303
    child = await queue.get(answer.headers["location"].rpartition("/")[2])
    assert (child.state, child.kind, child.queue) == (JobState.WAITING, "chat", "gpu")
    [edge] = (await queue.dependencies(child.id)).parents
    assert (edge.id, edge.name, edge.on_unsuccessful) == (first.id, "parent", "fail")
    [claimed] = await queue.claim("w", ["gpu"])
    await queue.complete(claimed.id, claimed.lease_token, {"text": "the answer"})
    assert (await queue.get(child.id)).payload == {"prompt": "Shorter: the answer", "model": "small"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": "{{ parents.nobody.output }}"}, "payload.prompt"),
        ({"prompt": "x", "on_unsuccessful": "maybe"}, "on_unsuccessful"),
        ({"prompt": "x", "queue": "q" * 201}, "queue"),
        ({"prompt": "x", "colour": "red"}, "colour"),
    ],
)
async def test_a_refused_follower_comes_back(
    web: httpx.AsyncClient, prefix: str, queue: Queue, fields: dict[str, str], field: str
) -> None:
    first = await queue.submit("chat", {"prompt": "one"})
    answer = await post(web, f"{prefix}/console/jobs/{first.id}/chain", **fields)
    assert answer.status_code == 422
    root = read(answer.text, prefix)
    [fault] = root.all("p", id="fault-chain")
    assert field.partition(".")[0] in fault.text
    form = form_of(root, "chain")
    assert form.all("textarea", name="prompt")[0].text == fields["prompt"].strip()
    assert "open" in form.parent.attributes if form.parent else False
    assert len((await queue.list()).jobs) == 1


async def test_run_again_with_another_model_or_payload(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    payload = {"prompt": "one", "temperature": 0.12345678901234567, "n": 12345678901234567890}
    first = await queue.submit("chat", payload, queue="gpu")
    address = f"{prefix}/console/jobs/{first.id}"
    root = await page_of(web, address, prefix)
    form = form_of(root, "rerun")
    [field] = form.all("textarea", name="payload")
    # As the browser sends it: the line that begins the field is none of it.
    text = "".join(field.texts).removeprefix("\n")
    answer = await post(web, f"{address}/rerun", model="large", payload=text, queue="gpu")
    again = await queue.get(answer.headers["location"].rpartition("/")[2])
    assert (again.rerun_of, again.queue, again.payload) == (first.id, "gpu", {**payload, "model": "large"})
    answer = await post(web, f"{address}/rerun", payload='{"prompt": "two"}', queue="cpu")
    other = await queue.get(answer.headers["location"].rpartition("/")[2])
    assert (other.queue, other.payload) == ("cpu", {"prompt": "two"})
    listed = await page_of(web, f"{prefix}/console/jobs?rerun_of={first.id}", prefix)
    assert len(listed.all("tbody")[0].children) == 2
    assert str(first.id) in (await part(web, prefix, other.id, "details")).text
    for fields in ({"payload": "{"}, {"queue": "q" * 201}, {"colour": "red"}):
        answer = await post(web, f"{address}/rerun", **fields)
        assert answer.status_code == 422
        assert read(answer.text, prefix).all("p", id="fault-rerun")
    huge = await queue.submit("resize", {"text": "x" * 9_000})
    page = await page_of(web, f"{prefix}/console/jobs/{huge.id}", prefix)
    form = form_of(page, "rerun")
    assert form.all("textarea", name="payload")[0].text == ""
    assert form.all("input", name="model") == []
    answer = await post(web, f"{prefix}/console/jobs/{huge.id}/rerun", payload="")
    assert (await queue.get(answer.headers["location"].rpartition("/")[2])).payload == {"text": "x" * 9_000}


async def test_its_forms_of_other_origins_are_refused(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    claimed = await waiting(queue)
    for name, fields in (
        ("signal", {"name": "review"}),
        ("chain", {"prompt": "x"}),
        ("rerun", {"payload": "{}"}),
    ):
        address = f"{prefix}/console/jobs/{claimed.id}/{name}"
        answer = await web.post(address, data=fields, headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 403
    assert len((await queue.list()).jobs) == 1
    assert (await queue.get(claimed.id)).state is JobState.SCHEDULED
