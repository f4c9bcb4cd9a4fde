// graphile-worker as its page on performance runs it: 24 jobs at once, a local queue of 500, batched completion.
import { makeWorkerUtils, run } from "graphile-worker";
import { begun } from "./marks.mjs";

const connectionString = process.env.DATABASE_URL;

if (process.argv[2] === "prepare") {
  const utils = await makeWorkerUtils({ connectionString });
  await utils.migrate();
  const jobs = Number(process.argv[3]);
  if (jobs > 0) {
    await utils.withPgClient((client) =>
      client.query(
        `select from graphile_worker.add_jobs(array(
           select json_populate_record(null::graphile_worker.job_spec,
             json_build_object('identifier', 'noop', 'payload', json_build_object('n', n)))
           from generate_series(1, $1::int) n))`,
        [jobs],
      ),
    );
  }
  await utils.release();
} else {
  const quiet = () => () => {};
  const { Logger } = await import("graphile-worker");
  const runner = await run({
    preset: {
      worker: {
        connectionString,
        concurrentJobs: 24,
        maxPoolSize: 25,
        pollInterval: 1000,
        localQueue: { size: 500 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
        logger: new Logger(quiet),
      },
    },
    taskList: {
      noop: async (payload) => begun(payload.n),
    },
  });
  await runner.promise;
}
