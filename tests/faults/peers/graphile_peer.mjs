// graphile-worker: 8 jobs at once, the pool that its page on configuration says for them, and nothing batched.
import { EventEmitter } from "node:events";
import { makeWorkerUtils, run } from "graphile-worker";
import { CONCURRENCY, POOLED, SECONDS, effect, lock, produce, sleep } from "./notes.mjs";

const connectionString = process.env.DATABASE_URL;
const events = new EventEmitter();
// Who notices that this process has ended has to know whose locks to undo. Since 0.17 those are the pool's.
events.on("pool:create", ({ workerPool }) => lock(workerPool.id));
events.on("worker:create", ({ worker }) => lock(worker.workerId));
const preset = {
  worker: {
    connectionString,
    concurrentJobs: CONCURRENCY,
    maxPoolSize: Math.max(10, CONCURRENCY + 2),
    preparedStatements: !POOLED,
    events,
  },
};

if (process.argv[2] === "work") {
  const taskList = { work: ({ n }, helpers) => effect(n, helpers.job.id, () => sleep(SECONDS * 1000)) };
  const runner = await run({ preset, taskList });
  await runner.promise;
} else {
  const utils = await makeWorkerUtils({ preset });
  if (process.argv[2] === "prepare") await utils.migrate();
  else await produce(async (n) => (await utils.addJob("work", { n })).id);
  await utils.release();
}
